"""`roundhouse chat` against a gateway and a worker that are processes of their own, on a terminal and through pipes."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from tests.deployments import default_config
from tests.system import ROOT, System, kill
from tests.terminals import OnTerminal

ANSWER = re.compile(r"\[simulator\]( [a-z]+){20}\n")


@pytest.fixture
def idle(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Iterator[System]:
    """Without a worker."""
    config = default_config()
    config["models"]["slow"] = {"task": "chat", "engine": "simulator", "tokens_per_second": 20, "tokens": 2000}
    with System(tmp_path, mongod_uri, database.name, config) as system:
        system.gateway()
        system.sign_in()
        yield system


@pytest.fixture
def system(idle: System) -> System:
    work(idle)
    return idle


def work(system: System) -> subprocess.Popen[bytes]:
    worker = system.start("worker")
    system.ended(system.chat())
    return worker


def newest(system: System) -> dict[str, Any]:
    job: dict[str, Any] = system.http.get("/api/jobs", params={"limit": 1}).json()["jobs"][0]
    return job


def test_through_a_pipe_there_is_just_the_answer(system: System) -> None:
    done = system.run("chat", "simulator", text="hello\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert ANSWER.fullmatch(done.stdout)
    options = ("--max-tokens", "3", "--system", "Be brief.", "--temperature", "0", "--priority", "low")
    done = system.run("chat", "sim", *options, text="hello")
    assert re.fullmatch(r"\[simulator\]( [a-z]+){3}\n", done.stdout)
    job = newest(system)
    assert (job["priority"], job["model"]) == ("low", "simulator")


def test_through_a_pipe_an_answer_that_is_generated_anew_is_printed_once(system: System) -> None:
    command = [sys.executable, "-m", "gateway.cli", "chat", "slow", "--max-tokens", "200"]
    pipe = subprocess.Popen(
        command, env=system.environ, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert pipe.stdin is not None
    pipe.stdin.write(b"hello")
    pipe.stdin.close()
    pipe.stdin = None
    while not (jobs := system.http.get("/api/jobs", params={"model": "slow", "status": "processing"}).json()["jobs"]):
        assert pipe.poll() is None
    [worker] = [process for process in system._processes if "worker" in process.args[-1]]  # type: ignore[index]
    answer = f"/v1/chat/completions/{jobs[0]['request_id']}"
    with system.http.stream("GET", answer, params={"stream": "true"}) as some:
        begun = next(some.iter_lines())
        kill(worker)
    # Queued again where the lease of the worker has ended by now.
    assert system.job(jobs[0]["request_id"])["status"] in ("processing", "queued")
    work(system)
    out, err = pipe.communicate(timeout=60)
    assert pipe.returncode == 0, err
    assert re.fullmatch(rb"\[simulator\]( [a-z]+){200}\n", out)
    # The id names the attempt: what was told at first was of another one.
    assert begun.startswith("id: ")
    assert begun not in system.http.get(answer, params={"stream": "true"}).text.splitlines()


def test_what_cannot_be_asked_is_said_in_one_sentence(idle: System) -> None:
    for model, says in (
        ("simulatr", "There is no model 'simulatr'; did you mean simulator or sim? (model_not_found)"),
        ("zzz", "there are: simulator, sim, slow"),
        ("tesseract", "tesseract does ocr, not chat"),
    ):
        done = idle.run("chat", model, text="hello")
        assert (done.returncode, done.stdout) == (1, "")
        assert says in done.stderr
    assert idle.run("chat", "simulator", text=" \n").returncode == 2
    failing = idle.run("chat", "simulator", "--max-tokens", "0", text="hello")
    assert failing.returncode == 2


def test_a_gateway_that_is_away_is_said_at_once(idle: System) -> None:
    idle.environ |= {"ROUNDHOUSE_URL": "http://127.0.0.1:9", "ROUNDHOUSE_TOKEN": "t"}
    done = idle.run("chat", "simulator", text="hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No gateway answers at http://127.0.0.1:9" in done.stderr
    assert "`roundhouse up`" in done.stderr


async def test_a_conversation_has_a_memory_that_can_be_cleared(system: System) -> None:
    with OnTerminal(system, "chat", "simulator") as command:
        await command.shows("/help tells what there is", "> ")
        command.types("hello\n")
        await command.shows("[simulator]", "\n> ")
        assert ANSWER.search(command.text)
        assert system.job(newest(system)["request_id"])["result"]["usage"]["prompt_tokens"] == 1
        command.types("hello again\n")
        await command.shows("[simulator]", "\n> ")
        assert system.job(newest(system)["request_id"])["result"]["usage"]["prompt_tokens"] == 1 + 21 + 2
        command.types("/clear\n")
        await command.shows("(forgotten)", "\n> ")
        command.types("hello\n")
        await command.shows("[simulator]", "\n> ")
        assert system.job(newest(system)["request_id"])["result"]["usage"]["prompt_tokens"] == 1
        command.types("\x04")
        assert await asyncio.to_thread(command.ends) == 0


async def test_commands_are_answered_without_asking_the_model(system: System) -> None:
    before = newest(system)["request_id"]
    with OnTerminal(system, "chat", "simulator") as command:
        await command.shows("\n> ")
        for line, says in (
            ("/help", "forget the conversation"),
            ("/model", "there are: simulator, sim, slow"),
            ("/model slo", "did you mean slow or simulator?"),
            ("/nonsense", "There is no /nonsense"),
        ):
            command.types(f"{line}\n")
            await command.shows(says, "\n> ")
        assert newest(system)["request_id"] == before
        command.types("/model slow\n")
        await command.shows("\n> ")
        command.types("hello\n")
        await command.shows("[simulator]")
        assert newest(system)["model"] == "slow"


async def test_ctrl_c_stops_the_answer_with_its_job_and_a_second_one_leaves(system: System) -> None:
    with OnTerminal(system, "chat", "slow") as command:
        await command.shows("\n> ")
        command.types("hello\n")
        await command.shows("[simulator] ")
        command.process.send_signal(signal.SIGINT)
        await command.shows("(stopped)", "\n> ")
        job = newest(system)
        assert job["status"] == "cancelled"
        command.types("/model simulator\n")
        await command.shows("\n> ")
        command.types("hello\n")
        await command.shows("[simulator]", "\n> ")
        # What was seen of the stopped answer belongs to the conversation.
        assert system.job(newest(system)["request_id"])["result"]["usage"]["prompt_tokens"] > 2
        command.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(command.ends) == 130
        assert "Traceback" not in command.text


async def test_who_has_to_wait_is_told_why_and_can_give_up(idle: System) -> None:
    with OnTerminal(idle, "chat", "simulator") as command:
        await command.shows("simulator is not ready (no worker)", "\n> ")
        command.types("hello\n")
        await command.shows("simulator: waits, position 1 (the model: no worker)")
        worker = work(idle)
        await command.shows("[simulator]", "\n> ")
        kill(worker)
        command.types("hello\n")
        await command.shows("simulator: asked")
        command.process.send_signal(signal.SIGINT)
        await command.shows("(stopped)", "\n> ")
        assert newest(idle)["status"] == "cancelled"


async def test_an_answer_outlives_its_gateway(system: System) -> None:
    with OnTerminal(system, "chat", "slow", "--max-tokens", "100") as command:
        await command.shows("\n> ")
        command.types("hello\n")
        await command.shows("[simulator] ")
        kill(system._processes[0])
        await command.shows("trying again")
        system.start("gateway")
        await command.shows("cut off", "\n> ")
        await asyncio.to_thread(system.healthy)
        text = system.ended(newest(system)["request_id"])["result"]["message"]["content"]
        shown = re.sub(r"\nroundhouse: [^\n]*\n", "", command.text)
        assert text in shown

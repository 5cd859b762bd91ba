"""Gateway, worker and a real vLLM as processes, and what becomes of jobs and processes when one of them is killed."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient

from tests.deployments import default_config
from tests.system import System, end, kill
from tests.vllm.conftest import POISON, entry_of
from tests.vllm.processes import named, record_of, records_in, seconds_until, segments

# Seconds. On a machine that is busy with other things a start takes some minutes.
START = 900
# Seconds without a token after which the engine is taken for hung; a busy machine takes its time for one.
STALL = 10.0
# Tokens of an answer that takes 4 s at least.
LONG = 350


class Site:
    """A gateway and one worker at a time, which runs the model ``tiny`` and leaves ``broken`` alone."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.worker = self.next_worker()

    @property
    def home(self) -> Path:
        return self.system.home / "state"

    def next_worker(self, model: str = "tiny") -> subprocess.Popen[bytes]:
        self.worker = self.system.start("worker", "--models", model)
        return self.worker

    def model(self, name: str = "tiny") -> dict[str, Any]:
        response = self.system.http.get(f"/admin/models/{name}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    def until_ready(self) -> None:
        seconds_until(lambda: self.model()["state"] == "ready", within=START, every=0.2)

    def ask(self, text: str = "hi", tokens: int = LONG) -> str:
        return self.system.chat(text, model="tiny", max_tokens=tokens, temperature=0.0)

    def ask_and_begin(self, number: int) -> list[str]:
        """Jobs that run: a job is processing from its submit on where it has a direct lease, but may not have begun."""
        jobs = [self.ask() for _ in range(number)]
        for job in jobs:
            deadline = time.monotonic() + 30.0
            while self.system.until(job, "processing")["attempts"] == 0:
                assert time.monotonic() < deadline, "no worker has begun it"
                time.sleep(0.05)
        return jobs

    def ended(self, job: str) -> dict[str, Any]:
        """The job once it has ended, over starts of the engine."""
        return self.system.ended(job, within=2 * START)

    def outcomes(self, jobs: list[str]) -> list[tuple[str, int, list[str]]]:
        """Status, attempts, and the codes of failed attempts."""
        bodies = [self.ended(job) for job in jobs]
        return [(body["status"], body["attempts"], [each["code"] for each in body["errors"]]) for body in bodies]

    def crashes(self, model: str, code: str, since: datetime) -> list[dict[str, Any]]:
        """Of the engine, not of jobs."""
        query = {"model": model, "since": since.isoformat()}
        crashes = self.system.http.get("/admin/crashes", params=query).json()["crashes"]
        return [crash for crash in crashes if crash["code"] == code and crash["job"] is None]

    def deaths(self, since: datetime) -> list[dict[str, Any]]:
        return self.crashes("tiny", "engine_died", since)

    def death(self, since: datetime) -> dict[str, Any]:
        """The only one, once it is known."""
        seconds_until(lambda: bool(self.deaths(since)), within=60)
        (found,) = self.deaths(since)
        return found

    def change(self, **parameters: Any) -> None:
        """Returns when the gateway goes by them."""
        assert self.system.http.patch("/admin/models/tiny", json=parameters).status_code == 200
        seconds_until(lambda: parameters.items() <= self.model()["parameters"].items(), within=30)


@pytest.fixture(scope="module")
def site(python: str, tiny: Path, mongod_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    config = default_config()
    config["queue"] |= {"lease": 10, "drain_timeout": 300}
    config["models"] = {
        "tiny": entry_of(python, tiny, stall_timeout=STALL, timeout=600),
        "broken": entry_of(python, tiny, args=["--no-such-flag"]),
    }
    config["defaults"] = {"chat": ["tiny"]}
    database = f"test_{uuid4().hex}"
    with System(tmp_path_factory.mktemp("system"), mongod_uri, database, config) as system:
        system.gateway()
        system.sign_in()
        made = Site(system)
        yield made
        end(made.worker)
    with MongoClient[dict[str, Any]](mongod_uri) as client:
        client.drop_database(database)


@pytest.fixture
def ready(site: Site) -> Site:
    """With an engine that is ready, started again where the test before has killed it."""
    site.until_ready()
    return site


def test_a_chat_is_answered_by_the_model_with_its_token_counts(ready: Site) -> None:
    job = ready.ended(ready.ask(tokens=8))
    assert (job["status"], job["attempts"]) == ("completed", 1), job
    assert job["result"]["finish_reason"] == "length"
    prompt = 1 + len("user: hi\nassistant: ")
    usage = job["result"]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (prompt, 8, prompt + 8)
    assert len(job["result"]["message"]["content"]) == 8


def test_what_vllm_refuses_fails_for_good_with_its_words(ready: Site) -> None:
    job = ready.ended(ready.ask(tokens=100_000))
    assert (job["status"], job["attempts"]) == ("failed", 1), job
    assert "32768" in job["error"]["message"], job["error"]


@pytest.mark.parametrize("victim", ["api_server", "VLLM::EngineCore", "VLLM::Worker"])
def test_jobs_outlive_a_killed_process_of_the_engine(ready: Site, victim: str) -> None:
    record = record_of(ready.home)
    members = record.members()
    memory = segments(members)
    assert memory
    pid = named(members, victim)
    jobs = ready.ask_and_begin(2)
    killed_at = datetime.now(UTC)
    os.kill(pid, signal.SIGKILL)
    took = seconds_until(lambda: not record.members(), within=20)
    assert took < 2, f"{took:.2f} s until nothing of the engine was left"
    noticed = datetime.fromisoformat(ready.death(killed_at)["at"]) - killed_at
    assert noticed.total_seconds() < 2
    assert not any(path.exists() for path in memory), "shared memory outlives the engine"
    assert ready.outcomes(jobs) == [("completed", 1, [])] * 2
    assert len(ready.deaths(killed_at)) == 1


def test_jobs_outlive_an_engine_that_hangs_and_nothing_of_it_is_left(ready: Site) -> None:
    record = record_of(ready.home)
    members = record.members()
    memory = segments(members)
    jobs = ready.ask_and_begin(2)
    stopped_at = datetime.now(UTC)
    # With the process that frees the shared memory of the others when they are gone.
    for title in ("multiprocessing.resource_tracker", "VLLM::EngineCore"):
        os.kill(named(members, title), signal.SIGSTOP)
    took = seconds_until(lambda: not record.members(), within=10 * STALL)
    assert STALL - 1 < took < STALL + 3, f"{took:.2f} s until nothing of the engine was left"
    assert "SIGKILL" in ready.death(stopped_at)["message"]
    assert not any(path.exists() for path in memory), "shared memory outlives the engine"
    assert ready.outcomes(jobs) == [("completed", 1, [])] * 2
    assert len(ready.deaths(stopped_at)) == 1


def test_a_job_that_kills_the_engine_fails_and_its_neighbours_do_not(ready: Site) -> None:
    ready.change(max_retries=0)
    begin = datetime.now(UTC)
    neighbours = ready.ask_and_begin(1)
    poison = ready.ask(f"say {POISON}")
    # Its turn comes when the poison has killed the engine alone.
    neighbours += [ready.ask()]
    assert ready.outcomes([poison]) == [("failed", 1, ["engine_died"])]
    assert ready.outcomes(neighbours) == [("completed", 1, [])] * 2
    assert len(ready.deaths(begin)) == 2
    ready.change(max_retries=None)


def test_the_next_worker_ends_what_a_killed_one_has_left_and_runs_its_jobs(ready: Site) -> None:
    record = record_of(ready.home)
    (job,) = ready.ask_and_begin(1)
    # The guard as well: nobody is left who would end the engine, only the record tells of it.
    record.guard.send(signal.SIGSTOP)
    kill(ready.worker)
    record.guard.send(signal.SIGKILL)
    assert record.members(), "an engine that nobody looks after"
    ready.next_worker()
    seconds_until(lambda: not record.members(), within=60)
    # A lease that the worker had not confirmed yet when it was killed costs the job nothing.
    assert ready.outcomes([job])[0] in (("completed", 2, ["lease_expired"]), ("completed", 1, []))
    assert record_of(ready.home).leader.pid != record.leader.pid


def test_a_worker_that_is_told_to_end_finishes_what_runs_and_leaves_nothing(ready: Site) -> None:
    record = record_of(ready.home)
    running = ready.ask_and_begin(2)
    ready.worker.terminate()
    late = ready.ask()
    assert ready.worker.wait(120) == 0
    assert record.members() == []
    assert records_in(ready.home) == []
    # Nobody is left who could have run them since.
    bodies = [ready.system.job(job) for job in running]
    assert [(body["status"], body["attempts"]) for body in bodies] == [("completed", 1)] * 2
    assert [body["result"]["usage"]["completion_tokens"] for body in bodies] == [LONG] * 2
    assert ready.system.job(late)["status"] == "queued"


def test_a_start_that_fails_says_why_to_operators(site: Site) -> None:
    begin = datetime.now(UTC)
    end(site.worker)
    site.next_worker("broken")
    seconds_until(lambda: bool(site.crashes("broken", "engine_start_failed", begin)), within=START)
    (crash, *_) = site.crashes("broken", "engine_start_failed", begin)
    shown = site.model("broken")
    for told in (crash["message"], shown["reason"] or shown["workers"][0]["last_error"]):
        assert "bad flag" in told
        assert "--no-such-flag" in told

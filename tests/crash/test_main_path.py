"""The main path under ``kill -9``: real processes, and the same job completes."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.mongod import EmbeddedMongod
from tests.deployments import default_config
from tests.ports import free_port
from tests.system import System, kill

LETTER = Path(__file__).parents[2] / "samples" / "letter.pdf"


@pytest.fixture
def system(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Iterator[System]:
    with System(tmp_path, mongod_uri, database.name) as system:
        yield system


def test_a_job_whose_worker_was_killed_completes_on_the_next_one(system: System) -> None:
    system.gateway()
    system.sign_in()
    worker = system.start("worker")
    response = system.http.post("/api/ocr", files={"file": ("letter.pdf", LETTER.read_bytes())})
    job_id = response.json()["request_id"]
    system.until(job_id, "processing")
    children = psutil.Process(worker.pid).children(recursive=True)
    kill(worker)
    _gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "nothing that the worker had started outlives it"
    system.start("worker")
    job = system.ended(job_id)
    assert (job["status"], job["attempts"], len(job["result"]["pages"])) == ("completed", 2, 2)
    assert [error["code"] for error in job["errors"]] == ["lease_expired"]


def test_a_job_that_kills_its_worker_each_time_fails_with_its_history(system: System) -> None:
    system.gateway()
    system.sign_in()
    job_id = system.chat(simulate={"fault": "crash", "attempts": 10})
    for _ in range(4):
        system.start("worker").wait(60)
    job = system.ended(job_id)
    assert (job["status"], job["attempts"]) == ("failed", 4)
    assert [error["code"] for error in job["errors"]] == ["lease_expired"] * 4


def test_a_client_that_waits_finds_its_job_after_the_gateway_was_killed(system: System) -> None:
    gateway = system.gateway()
    system.sign_in()
    job_id = system.chat()
    broken: list[httpx.TransportError] = []

    def wait() -> None:
        try:
            system.http.get(f"/api/jobs/{job_id}", params={"wait": 60})
        except httpx.TransportError as error:
            broken.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    (child,) = _until_waited_upon(gateway.pid)
    child.kill()
    waiting.join()
    assert broken, "the connection broke with the gateway"
    system.healthy()
    system.start("worker")
    assert system.ended(job_id)["status"] == "completed"


def _until_waited_upon(supervisor: int) -> list[psutil.Process]:
    """The gateway processes, once a client's connection to one is established."""
    while True:
        children = psutil.Process(supervisor).children()
        for child in children:
            if any(c.status == psutil.CONN_ESTABLISHED and c.laddr.port != 0 for c in child.net_connections("tcp4")):
                return children


def test_the_gateways_end_when_their_supervisor_is_killed(system: System) -> None:
    gateway = system.gateway()
    children = psutil.Process(gateway.pid).children()
    kill(gateway)
    _gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_terminated_worker_hands_its_job_back_without_an_attempt(system: System) -> None:
    system.gateway()
    system.sign_in()
    worker = system.start("worker")
    job_id = system.chat(simulate={"fault": "hang"})
    system.until(job_id, "processing")
    worker.terminate()
    assert worker.wait(30) == 0
    job = system.job(job_id)
    assert (job["status"], job["attempts"], job["errors"]) == ("queued", 0, [])


@pytest.fixture
def patient_system(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Iterator[System]:
    """One whose workers may take ten minutes to finish what they do."""
    config = default_config()
    config["queue"]["drain_timeout"] = 600
    with System(tmp_path, mongod_uri, database.name, config) as system:
        yield system


def test_a_terminated_worker_finishes_what_it_can(patient_system: System) -> None:
    system = patient_system
    system.gateway()
    system.sign_in()
    worker = system.start("worker")
    job_id = system.http.post("/api/ocr", files={"file": LETTER.read_bytes()}).json()["request_id"]
    system.until(job_id, "processing")
    worker.terminate()
    assert worker.wait(60) == 0
    assert (system.job(job_id)["status"], system.job(job_id)["attempts"]) == ("completed", 1)


def test_a_second_sigterm_stops_a_worker_at_once(patient_system: System) -> None:
    system = patient_system
    system.gateway()
    system.sign_in()
    worker = system.start("worker")
    job_id = system.chat(simulate={"fault": "hang"})
    system.until(job_id, "processing")
    worker.terminate()
    _until_draining(system)
    worker.terminate()
    assert worker.wait(30) == 0
    assert (system.job(job_id)["status"], system.job(job_id)["attempts"]) == ("queued", 0)


def _until_draining(system: System) -> None:
    deadline = time.monotonic() + 30
    while "draining" not in {model["state"] for model in system.http.get("/admin/models").json()["models"]}:
        assert time.monotonic() < deadline, "the worker did not drain"
        time.sleep(0.05)


def test_mongod_killed_in_mid_job_loses_nothing(tmp_path: Path) -> None:
    home, config = tmp_path / "state", default_config()
    config["models"]["simulator"]["tokens_per_second"] = 50  # a slow job takes four seconds: time enough to kill mongod
    with System(tmp_path, None, "roundhouse", config) as system:
        try:
            system.gateway()
            system.sign_in()
            system.start("worker")
            done = system.http.post("/api/chat?wait=30", json={"message": "before"}).json()
            assert done["status"] == "completed"
            running = system.chat("during", simulate={"fault": "slow"})
            system.until(running, "processing")
            pid = EmbeddedMongod(home).status().pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            system.healthy()
            assert EmbeddedMongod(home).status().pid != pid
            assert _patiently(system, running)["status"] == "completed"
            assert system.job(done["request_id"])["result"] == done["result"]
            assert system.http.post("/api/chat?wait=30", json={"message": "after"}).json()["status"] == "completed"
        finally:
            system.close()
            asyncio.run(EmbeddedMongod(home).stop())


def _patiently(system: System, job_id: str) -> dict[str, Any]:
    """Looks the job up until it has ended; a 503 meanwhile is an honest answer."""
    while True:
        response = system.http.get(f"/api/jobs/{job_id}", params={"wait": 5})
        assert response.status_code in (200, 503), response.text
        if response.status_code == 200 and response.json()["status"] == "completed":
            body: dict[str, Any] = response.json()
            return body


def test_a_gateway_that_is_told_to_stop_stops_though_its_database_has_gone(tmp_path: Path) -> None:
    mongod = EmbeddedMongod(tmp_path / "elsewhere")
    try:
        with System(tmp_path, asyncio.run(mongod.ensure()), "roundhouse") as system:
            gateway = system.gateway()
            asyncio.run(mongod.stop())
            gateway.terminate()
            assert gateway.wait(60) == 0
    finally:
        asyncio.run(mongod.stop())


@pytest.fixture
def mongod(tmp_path: Path) -> Iterator[EmbeddedMongod]:
    """One of the test's own, to be killed and frozen."""
    mongod = EmbeddedMongod(tmp_path / "elsewhere", cache=0.25)
    asyncio.run(mongod.ensure())
    try:
        yield mongod
    finally:
        asyncio.run(mongod.stop())


@pytest.fixture
def forsaken(tmp_path: Path, mongod: EmbeddedMongod) -> Iterator[System]:
    """A system whose database will be away. A job takes four seconds, and a worker that is to stop gives it one."""
    config = default_config()
    config["queue"]["drain_timeout"] = 1
    config["models"]["simulator"]["tokens_per_second"] = 5
    with System(tmp_path, asyncio.run(mongod.ensure()), "roundhouse", config) as system:
        yield system


@contextmanager
def _away(mongod: EmbeddedMongod, how: signal.Signals) -> Iterator[None]:
    """Killed it refuses connections, stopped it answers none. At the end it is back."""
    pid = mongod.status().pid
    assert pid is not None
    os.kill(pid, how)
    try:
        yield
    finally:
        if how is signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        asyncio.run(mongod.ensure())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_an_idle_worker_that_is_told_to_stop_stops_though_its_database_has_gone(
    how: signal.Signals, forsaken: System, mongod: EmbeddedMongod
) -> None:
    forsaken.gateway()
    forsaken.sign_in()
    worker = forsaken.start("worker")
    forsaken.ended(forsaken.chat(max_tokens=1))
    with _away(mongod, how):
        worker.terminate()
        assert worker.wait(30) == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_job_runs_elsewhere_when_its_worker_stopped_while_the_database_was_away(
    how: signal.Signals, forsaken: System, mongod: EmbeddedMongod
) -> None:
    forsaken.gateway()
    forsaken.sign_in()
    worker = forsaken.start("worker")
    job_id = forsaken.chat()
    forsaken.until(job_id, "processing")
    with _away(mongod, how):
        worker.terminate()
        assert worker.wait(1 + 20) == 0
    forsaken.healthy()
    forsaken.start("worker")
    job = _patiently(forsaken, job_id)
    outcome = job["attempts"], [error["code"] for error in job["errors"]]
    # A mongod that was frozen may find the worker's last word when it goes on.
    assert outcome == (2, ["lease_expired"]) or (outcome == (1, []) and how is signal.SIGSTOP)


def test_a_worker_that_waits_for_a_database_stops_when_it_is_told_to(tmp_path: Path) -> None:
    with System(tmp_path, f"mongodb://127.0.0.1:{free_port()}", "roundhouse") as system:
        worker = system.start("worker")
        _until_logged(system, "worker", "waiting for the database")
        worker.terminate()
        assert worker.wait(30) == 0


def _until_logged(system: System, name: str, words: str) -> None:
    deadline = time.monotonic() + 30
    while not any(words in log.read_text() for log in system.home.glob(f"*-{name}.log")):
        assert time.monotonic() < deadline, f"{name} did not say: {words}"
        time.sleep(0.05)

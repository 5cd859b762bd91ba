"""No database for a while: real processes wait for it, and go on by themselves as if nothing had been."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.daemons import ProcessRecord
from broker.mongod import EmbeddedMongod
from tests.crash.disk import NoNamespaces, SmallDisk
from tests.deployments import default_config
from tests.system import System

# mongod wants 400 MB free before it starts, and its journal takes 200 MB then.
DISK = 800 * 2**20
# Seconds: of an outage, four leases of tests.deployments.default_config, and more than the patience of the driver.
OUTAGE = 8.0
# Seconds: the driver waits five for a server, and clients wait longer than this. That one has stopped answering is
# noticed after five more at the most.
QUICKLY = 15.0
NOTICED = 6.0


def _config() -> dict[str, Any]:
    """A slow job takes four seconds, for it to be under way when the database goes."""
    config = default_config()
    config["models"]["simulator"]["tokens_per_second"] = 50
    return config


class Trial:
    """A gateway and a worker, a job that was done before, one that runs for seconds and some that wait."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.gateway = system.gateway()
        system.sign_in()
        self.worker = system.start("worker")
        self.done = system.http.post("/api/chat?wait=30", json={"message": "before"}).json()
        assert self.done["status"] == "completed"
        self.engines = self._all_engines()
        self.running = system.chat("during", simulate={"fault": "slow"})
        system.until(self.running, "processing")
        self.accepted = [self.running]

    def _engines(self) -> list[tuple[str, str, int]]:
        """Which worker process, by its identity, serves which model. An engine starts once, with its worker."""
        models = self.system.http.get("/admin/models").json()["models"]
        return [(m["name"], w["worker"], w["pid"]) for m in models for w in m["workers"] if w["ready"]]

    def _all_engines(self, within: float = 20.0) -> list[tuple[str, str, int]]:
        """Once each of the two models is served."""
        deadline = time.monotonic() + within
        while len(engines := self._engines()) < 2:
            assert time.monotonic() < deadline, f"only {engines} came"
        return engines

    def submit(self) -> httpx.Response:
        """Sends one more job, a quick one, and remembers it where it is accepted."""
        job = {"message": f"job {len(self.accepted)}", "max_tokens": 1}
        response = self.system.http.post("/api/chat", json=job)
        if response.status_code == 202:
            self.accepted.append(response.json()["request_id"])
        return response

    def until_refused(self, within: float = 60.0) -> None:
        """What is accepted until then counts."""
        deadline = time.monotonic() + within
        while (response := self.submit()).status_code == 202 or response.json()["code"] == "queue_full":
            assert time.monotonic() < deadline, "the gateway never missed its database"

    def is_refused(self, within: float = QUICKLY) -> float:
        """With a word on when to come back, and the gateway says that it is not well; after how many seconds."""
        begin = time.monotonic()
        response = self.submit()
        took = time.monotonic() - begin
        assert (response.status_code, response.json()["code"]) == (503, "database_unavailable"), response.text
        assert int(response.headers["Retry-After"]) > 0
        assert took < within
        assert self.health()["status"] == "unavailable"
        return took

    def health(self) -> dict[str, Any]:
        response = self.system.http.get("/health?detail=1")
        assert (response.status_code == 503) == ("Retry-After" in response.headers)
        body: dict[str, Any] = response.json()
        return body

    def goes_on(self) -> None:
        """By itself: the same processes with the same engines, and every job completed by its first attempt."""
        self.system.healthy()
        deadline = time.monotonic() + 60.0
        while (last := self.system.http.post("/api/chat?wait=60", json={"message": "after"})).status_code == 503:
            # What was accepted before the outage has to end first.
            assert last.json()["code"] == "queue_full", last.text
            assert time.monotonic() < deadline
        assert last.status_code == 200, last.text
        for job_id in self.accepted:
            job = self.system.ended(job_id)
            assert (job["status"], job["attempts"], job["errors"]) == ("completed", 1, []), job
        assert self.system.job(self.done["request_id"])["result"] == self.done["result"]
        assert self.system.http.get("/admin/crashes").json()["crashes"] == []
        assert self.gateway.poll() is None
        assert self.worker.poll() is None
        # Once the worker's heart has been heard again, two seconds later at the most.
        assert self._all_engines() == self.engines


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        disk = SmallDisk(tmp_path / "state", DISK)
    except (NoNamespaces, FileNotFoundError) as error:
        pytest.skip(f"no small disk can be had without more rights here: {error}")
    with disk:
        yield disk


@pytest.fixture
def trial(tmp_path: Path, disk: SmallDisk) -> Iterator[Trial]:
    """With the embedded mongod on a small disk."""
    with System(tmp_path, None, "roundhouse", _config()) as system:
        system.prefix = disk.prefix
        try:
            yield Trial(system)
        finally:
            system.close()
            asyncio.run(EmbeddedMongod(disk.seen).stop())


def _logs(system: System) -> str:
    return "".join(log.read_text() for log in system.home.glob("*.log"))


def test_a_full_disk_is_waited_out_and_named(trial: Trial, disk: SmallDisk) -> None:
    disk.fill()
    trial.until_refused()
    trial.is_refused()
    assert trial.health()["database"]["reason"] == "No space left on device"
    assert "No space left on device" in trial.system.run("doctor").stdout
    assert "cannot be kept up: The disk of" in _logs(trial.system)
    disk.empty()
    trial.goes_on()


def test_a_read_only_disk_is_waited_out_and_named(trial: Trial, disk: SmallDisk) -> None:
    _forbid_writing(disk)
    trial.until_refused()
    trial.is_refused()
    assert trial.health()["database"]["reason"] == "Read-only file system"
    assert "Read-only file system" in trial.system.run("doctor").stdout
    assert "cannot be kept up: The embedded mongod cannot use" in _logs(trial.system)
    disk.allow_writing()
    trial.goes_on()


def _forbid_writing(disk: SmallDisk, within: float = 30.0) -> None:
    """As the kernel does when it has found a fault. That ends mongod; here it has to be ended first, as a disk on which
    a file is open for writing cannot be made read-only otherwise, and keepers start it again.

    That it is gone is not waited for: a dead process closes its files before its parent has taken notice of it, and
    when that is done a keeper may have started the next one."""
    deadline = time.monotonic() + within
    while not disk.forbid_writing():
        assert time.monotonic() < deadline, "the disk cannot be made read-only"
        if record := ProcessRecord.read(disk.seen / "mongod" / "process.json"):
            record.send(signal.SIGKILL)


@contextmanager
def _elsewhere(home: Path) -> Iterator[tuple[EmbeddedMongod, System]]:
    """A mongod that is not Roundhouse's own: nobody starts it again but the test."""
    mongod = EmbeddedMongod(home / "elsewhere")
    try:
        with System(home, asyncio.run(mongod.ensure()), "roundhouse", _config()) as system:
            yield mongod, system
    finally:
        asyncio.run(mongod.stop())


def outlast(home: Path, seconds: float, *, hung: bool) -> list[float]:
    """A mongod that is away for ``seconds``, killed or ``hung``; how long each refusal took."""
    with _elsewhere(home) as (mongod, system):
        trial = Trial(system)
        pid = mongod.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP if hung else signal.SIGKILL)
        deadline = time.monotonic() + seconds
        try:
            took = [trial.is_refused(NOTICED + QUICKLY if hung else QUICKLY)]
            while time.monotonic() < deadline:
                took.append(trial.is_refused())
        finally:
            if hung:
                os.kill(pid, signal.SIGCONT)
            else:
                asyncio.run(mongod.ensure())
        trial.goes_on()
        return took


@pytest.mark.parametrize("hung", [False, True], ids=["killed", "hung"])
def test_a_mongod_that_is_away_for_several_leases_is_waited_for(tmp_path: Path, hung: bool) -> None:
    outlast(tmp_path, OUTAGE, hung=hung)

"""The worker on a real broker, with engines that do what a test tells them."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.asynchronous.database import AsyncDatabase

from broker.errors import EngineDied, EngineError
from broker.job import Job, NewJob
from broker.results import unpack
from tests.conditions import eventually
from tests.unit.worker.workers import LEASE, MODEL, Configure, ended, leased_to, serves, submitted, working
from worker.chunk_writer import LARGEST
from worker.engines.base import Chunk, Delta, Request, Result
from worker.worker import new_identity


class Idle:
    """An engine that needs nothing."""

    async def start(self) -> None:
        """There is nothing to load."""

    async def stop(self) -> None:
        """There is nothing to let go of."""


class Held(Idle):
    """Runs until it may end."""

    def __init__(self) -> None:
        self.runs = asyncio.Event()
        self.may_end = asyncio.Event()

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.runs.set()
        await self.may_end.wait()
        yield Result({"text": "done"})


class CutOff(Idle):
    """Its first run is cancelled by nobody who could be asked."""

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.runs += 1
        if self.runs == 1:
            raise asyncio.CancelledError
        yield Result({"text": "done"})


class Unstorable(Idle):
    """Answers with what no document of the database can hold."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        yield Result({"answer": self._answer})


class Failing(Idle):
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise self._error
        yield


class Obstructive(Idle):
    """Lets nothing else run in the worker's event loop, until the lease of its job was renewed for a whole lease."""

    def __init__(self, uri: str, database: str) -> None:
        self._uri = uri
        self._database = database

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        yield Result({"renewed": self._renewed()})

    def _renewed(self) -> bool:
        deadline = time.monotonic() + 10
        with MongoClient[dict[str, Any]](self._uri) as client:
            first = self._lease(client)
            while time.monotonic() < deadline:
                if self._lease(client) >= first + timedelta(seconds=LEASE):
                    return True
        return False

    def _lease(self, client: MongoClient[dict[str, Any]]) -> Any:
        held = client[self._database].jobs.find_one({"slot": {"$gte": 0}})
        assert held is not None
        return held["lease_expires_at"]


def test_each_start_of_a_worker_is_another_worker() -> None:
    """On the same host, and in a process of the same number, as in a container that starts again."""
    assert new_identity() != new_identity()


async def test_leases_are_renewed_while_an_engine_lets_nothing_else_run(
    configure: Configure, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    async with working(configure(), Obstructive(mongod_uri, database.name)) as (broker, _):
        job = await ended(broker, await submitted(broker))
    assert (job.status, job.attempts, job.result) == ("completed", 1, {"renewed": True})


async def test_a_worker_that_is_told_to_stop_as_it_starts_stops(configure: Configure) -> None:
    """Its first questions to the database are under way then."""
    for _ in range(3):
        async with asyncio.timeout(20), working(configure(), Held()):
            """It is drained at once."""


async def test_leases_are_renewed_while_the_worker_drains(configure: Configure) -> None:
    engine = Held()
    async with working(configure(), engine) as (broker, worker):
        job = await submitted(broker)
        await engine.runs.wait()
        worker.drain()
        before = (await broker.database.jobs_local.find_one({"_id": job.id}) or {})["lease_expires_at"]

        async def renewed() -> bool:
            document = await broker.database.jobs_local.find_one({"_id": job.id}) or {}
            return bool(document["lease_expires_at"] >= before + timedelta(seconds=LEASE))

        await eventually(renewed)
        engine.may_end.set()
        job = await ended(broker, job)
    assert (job.status, job.attempts) == ("completed", 1)


async def test_a_cancelled_jobs_slot_frees_when_its_worker_has_stopped_long_before_the_lease_ends(
    configure: Configure,
) -> None:
    engine = Held()
    async with working(configure(lease=3600.0), engine) as (broker, _):
        job = await submitted(broker)
        await engine.runs.wait()
        await broker.queue.cancel(job.id, None)

        async def freed() -> bool:
            return "slot" not in (await broker.database.jobs_local.find_one({"_id": job.id}) or {})

        await eventually(freed)
        assert (await ended(broker, job)).status == "cancelled"


async def test_an_attempt_that_takes_too_long_is_retried_and_ends_as_a_timeout(configure: Configure) -> None:
    async with working(configure(lease=300.0, timeout=0.1, max_retries=1), Held()) as (broker, _):
        job = await ended(broker, await submitted(broker))
    assert (job.status, job.attempts) == ("timeout", 2)
    assert [error["code"] for error in job.errors] == ["attempt_timeout"] * 2


class Verbose(Idle):
    """Says so much at once."""

    def __init__(self, characters: int) -> None:
        self._characters = characters

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        yield Delta([{"index": 0, "delta": {"content": "first"}}])
        yield Delta([{"index": 0, "delta": {"content": "x" * self._characters}}])
        yield Result({"text": "done"})


async def test_an_attempt_fails_whose_answer_cannot_be_stored_piece_by_piece(configure: Configure) -> None:
    async with working(configure(lease=300.0, max_retries=0), Verbose(LARGEST)) as (broker, _):
        new = NewJob("chat", MODEL, "ann", {}, stream=True)
        job = await ended(broker, await broker.queue.submit(new))
        # What came before is there for who follows it.
        [chunk] = await broker.database.chunks.find({"_id.job": job.id}).to_list()
    assert (job.status, job.error and job.error["code"]) == ("failed", "bad_answer")
    assert [json.loads(event)[0]["delta"]["content"] for event in chunk["events"]] == ["first"]


class Counting(Idle):
    """Counts how often it runs."""

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.runs += 1
        yield Result({"run": self.runs, "attempt": request.attempt})


async def test_an_attempt_that_is_cancelled_by_nobody_is_recorded_and_repeated(configure: Configure) -> None:
    async with working(configure(lease=300.0), CutOff()) as (broker, _):
        job = await ended(broker, await submitted(broker))
    assert (job.status, [error["code"] for error in job.errors]) == ("completed", ["attempt_cut_off"])


async def test_a_direct_lease_whose_notice_was_lost_is_found(configure: Configure) -> None:
    engine, settings = Counting(), configure(lease=300.0)
    async with working(settings, engine) as (broker, worker):
        broker.feed.on_leased = lambda _: None
        await serves(broker)
        job = await ended(broker, await leased_to(worker, settings, broker))
    assert (job.status, job.attempts, job.result) == ("completed", 1, {"run": 1, "attempt": 1})


async def test_a_notice_that_comes_again_begins_nothing(configure: Configure) -> None:
    engine, settings = Counting(), configure(lease=300.0)
    async with working(settings, engine) as (broker, worker):
        await serves(broker)
        job = await leased_to(worker, settings, broker)
        document = await broker.database.jobs_local.find_one({"_id": job.id})
        assert document is not None
        broker.feed.on_leased(document)
        await ended(broker, job)
        broker.feed.on_leased(document)
        await ended(broker, await leased_to(worker, settings, broker))
    assert engine.runs == 2


async def test_a_direct_lease_is_confirmed_long_before_the_next_renewal_of_all(configure: Configure) -> None:
    engine, settings = Held(), configure(lease=300.0)
    async with working(settings, engine) as (broker, worker):
        await serves(broker)
        job = await leased_to(worker, settings, broker)

        async def confirmed() -> bool:
            document = await broker.database.jobs_local.find_one({"_id": job.id}) or {}
            return document["attempts"] == 1 and "lease_expires_at" in document

        await eventually(confirmed)
        engine.may_end.set()
        assert (await ended(broker, job)).attempts == 1


async def test_what_is_leased_to_a_worker_that_drains_is_handed_back(configure: Configure) -> None:
    engine, settings = Counting(), configure(lease=300.0)
    async with working(settings, engine) as (broker, worker):
        await serves(broker)
        worker.drain()
        job = await leased_to(worker, settings, broker)

        async def back() -> bool:
            document = await broker.database.jobs_local.find_one({"_id": job.id}) or {}
            return (document["status"], document["attempts"]) == ("queued", 0)

        await eventually(back)  # long before it would lapse
    assert engine.runs == 0


class Mortal(Idle):
    """Dies under a job that is poison, and takes with it all that run at the time."""

    def __init__(self) -> None:
        self.beside: list[set[str]] = []
        self._running: dict[str, asyncio.Event] = {}
        self.may_end = asyncio.Event()

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        name, died = str(request.payload["name"]), asyncio.Event()
        self._running[name] = died
        self.beside.append(set(self._running))
        try:
            if name == "poison":
                for other in self._running.values():
                    other.set()
            waits = [asyncio.ensure_future(event.wait()) for event in (died, self.may_end)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if died.is_set():
                raise EngineDied("The engine was killed by SIGKILL.")
            yield Result({"name": name})
        finally:
            del self._running[name]


async def test_a_job_that_kills_its_engine_is_found_and_its_neighbours_are_not_charged(configure: Configure) -> None:
    engine = Mortal()
    async with working(configure(lease=300.0, max_retries=1), engine) as (broker, _):

        async def submit(name: str) -> Job:
            return await broker.queue.submit(NewJob("chat", MODEL, "ann", {"name": name}))

        neighbours = [await submit("one"), await submit("two")]
        await eventually(lambda: _holds(engine, {"one", "two"}))
        poison = await submit("poison")
        await eventually(lambda: _holds(engine, {"one", "two", "poison"}))
        engine.may_end.set()
        engine_died = await ended(broker, poison)
        rest = [await ended(broker, job) for job in neighbours]
    assert (engine_died.status, engine_died.attempts) == ("failed", 2)
    assert [error["code"] for error in engine_died.errors] == ["engine_died"] * 2
    assert [(job.status, job.attempts, job.errors) for job in rest] == [("completed", 1, ())] * 2
    # After the first death each of the three had the engine to itself.
    assert {"one", "two", "poison"} in engine.beside
    assert all(len(names) == 1 for names in engine.beside[engine.beside.index({"one", "two", "poison"}) + 1 :])


async def _holds(engine: Mortal, names: set[str]) -> bool:
    return names in engine.beside


async def test_a_worker_says_what_memory_its_machine_has(configure: Configure) -> None:
    async with working(configure(), Counting()) as (broker, worker):
        await serves(broker)
        (known,) = await broker.registry.live_workers()
    assert known.id == worker.id
    assert known.host_memory > 0
    assert all(device.total >= device.free > 0 for device in known.devices)
    assert known.devices


def nested(levels: int) -> Any:
    value: Any = "deep"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "answer", [{"a\0b": 1}, 2**70, nested(150), nested(400)], ids=["NUL", "number", "deep", "deeper"]
)
async def test_an_answer_that_no_document_can_hold_is_kept_all_the_same(configure: Configure, answer: Any) -> None:
    engine, settings = Unstorable(answer), configure(lease=300.0)
    async with working(settings, engine) as (broker, _):
        job = await ended(broker, await submitted(broker))
        assert (job.status, job.attempts) == ("completed", 1)
        assert await unpack(broker.files, job) == {"answer": answer}


async def test_an_error_whose_words_cannot_be_kept_ends_its_job_at_once(configure: Configure) -> None:
    engine, settings = Failing(EngineError("half a character: \ud83d")), configure(lease=300.0, max_retries=0)
    async with working(settings, engine) as (broker, _):
        job = await ended(broker, await submitted(broker))
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", EngineError.code)


async def test_an_answer_that_cannot_be_kept_ends_its_job_at_once(configure: Configure) -> None:
    engine, settings = Unstorable({1, 2}), configure(lease=300.0, max_retries=0)
    async with working(settings, engine) as (broker, _):
        job = await ended(broker, await submitted(broker))
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", "internal_error")

"""Load on a replica set that loses its primary, and what has to be true of every job afterwards."""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from bson import ObjectId
from pymongo.errors import PyMongoError

from broker.broker import Broker
from broker.errors import QueueFull
from broker.feed import JobFeed
from broker.job import Job, NewJob, Status
from broker.queue import JobQueue
from config import Settings
from gateway.problems import is_outage
from tests.conditions import eventually
from tests.deployments import make_settings
from tests.failover.replica_set import ReplicaSet
from worker.engines.factory import build_engines
from worker.worker import Worker, new_identity

MODEL = "simulator"
CONCURRENT, PLACES = 10, 40
CONFIG = {
    "queue": {"lease": 10, "poll_interval": 0.2, "drain_timeout": 20, "retry_backoff": 0.05, "retry_backoff_max": 0.1},
    "models": {
        MODEL: {
            "task": "chat",
            "engine": "simulator",
            "tokens_per_second": 1000,
            "tokens": 400,
            "max_concurrent": CONCURRENT,
            "max_waiting": PLACES - CONCURRENT,
        }
    },
    "defaults": {"chat": [MODEL]},
}
CLIENTS = 12
# Jobs before, during and after the trouble.
ENOUGH = 100
# Seconds after which it is given up: with a cut and other load about, a hundred jobs take more than a minute.
WITHIN = 180.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """``lost``: acknowledged and not completed. ``twice``: runs that had to be repeated. ``pause`` in seconds."""

    acknowledged: int
    completed: int
    lost: int
    twice: int
    pause: float


Trouble = Callable[[ReplicaSet], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def killed(replicas: ReplicaSet) -> AsyncIterator[None]:
    primary = await replicas.primary()
    await replicas.kill(primary)
    yield
    await replicas.restart(primary)


@asynccontextmanager
async def stepped_down(replicas: ReplicaSet) -> AsyncIterator[None]:
    primary = await replicas.primary()
    await replicas.step_down(primary)
    yield
    await replicas.primary(other_than=primary)


@asynccontextmanager
async def isolated(replicas: ReplicaSet) -> AsyncIterator[None]:
    primary = await replicas.primary()
    replicas.cut_off(primary)
    yield
    await replicas.primary(other_than=primary)
    await replicas.mend()


@asynccontextmanager
async def vanished(replicas: ReplicaSet) -> AsyncIterator[None]:
    primary = await replicas.primary()
    replicas.cut_off(primary, clients=True)
    yield
    await replicas.primary(other_than=primary)
    await replicas.mend()


TROUBLES: Mapping[str, Trouble] = {
    "the primary is killed and restarted": killed,
    "the primary is stepped down": stepped_down,
    "the primary is cut off from the other members": isolated,
    "the primary is cut off from everybody": vanished,
}


class WatchedQueue(JobQueue):
    """Remembers what it has acknowledged to a worker."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.runs: set[tuple[ObjectId, str | None]] = set()
        self.completions: defaultdict[ObjectId, list[str | None]] = defaultdict(list)

    async def complete(self, job: Job, result: Mapping[str, Any]) -> bool:
        self.runs.add((job.id, job.token))
        stands = await super().complete(job, result)
        if stands:
            self.completions[job.id].append(job.token)
        return stands


class DeafToPolls(JobFeed):
    """A feed that tells only what its change stream says."""

    async def _poll(self) -> None:
        """Learns nothing."""


@dataclass
class Load:
    """Clients of one gateway's broker that submit, wait to be told, and submit again."""

    broker: Broker
    acknowledged: dict[ObjectId, float] = field(default_factory=dict)
    told: dict[ObjectId, tuple[float, Job]] = field(default_factory=dict)
    refusals: list[PyMongoError] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _over: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ends when each client has been told of its last job."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._client())
            yield
            self._over = True

    async def _client(self) -> None:
        while not self._over:
            submitted = time.monotonic()
            # Some run as long as a failover may take.
            tokens = 1 if next(self._numbers) % 10 else 400
            new = NewJob("chat", MODEL, "ann", {"messages": [{"content": "hello"}], "max_tokens": tokens})
            try:
                job = await self.broker.queue.submit(new)
            except PyMongoError as error:
                self.refusals.append(error)
                await asyncio.sleep(0.05)
            except QueueFull:
                await asyncio.sleep(0.05)
            else:
                self.acknowledged[job.id] = submitted
                self.told[job.id] = await self._answer(job)

    async def _answer(self, job: Job) -> tuple[float, Job]:
        deadline = time.monotonic() + WITHIN
        while True:
            assert time.monotonic() < deadline, f"nobody tells of job {job.id}"
            with suppress(PyMongoError):
                found = await self.broker.feed.when_ended(
                    job.id, lambda: self.broker.reader.get(str(job.id), "ann"), timeout=5.0
                )
                if found.status.terminal:
                    return time.monotonic(), found
            await asyncio.sleep(0.05)

    async def flows(self, since: float, jobs: int) -> float:
        """Returns once so many jobs that were submitted after ``since`` have ended: when the first of them did."""
        times: list[float] = []

        async def enough() -> bool:
            times[:] = sorted(at for job, (at, _) in self.told.items() if self.acknowledged[job] > since)
            return len(times) >= jobs

        await eventually(enough, within=WITHIN)
        return times[0]


@asynccontextmanager
async def gateway_broker(settings: Settings, uri: str) -> AsyncIterator[Broker]:
    broker = Broker(settings, uri)
    broker.start()
    try:
        await asyncio.wait_for(broker.ready.wait(), WITHIN)
        yield broker
    finally:
        await broker.close()


@asynccontextmanager
async def worker_broker(settings: Settings, uri: str) -> AsyncIterator[WatchedQueue]:
    """A worker at work, and drained at the end; its queue."""
    broker = Broker(settings, uri, worker=new_identity())
    broker.queue = queue = WatchedQueue(broker.database, settings.models, settings.queue)
    broker.start()
    worker = Worker(broker, build_engines(settings))
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            yield queue
            worker.drain()
    finally:
        await broker.close()


async def endure(replicas: ReplicaSet, trouble: Trouble, home: Path) -> Outcome:
    """Load before, during and after ``trouble``. Fails where a promise is broken."""
    settings = make_settings(home, replicas.uri, f"failover_{uuid4().hex}", CONFIG)
    async with gateway_broker(settings, replicas.uri) as broker:
        load = Load(broker)
        async with AsyncExitStack() as stack:
            queues = [await stack.enter_async_context(worker_broker(settings, replicas.uri)) for _ in range(2)]
            pause = await _under_load(replicas, trouble, load)
            await eventually(lambda: _is_idle(broker), within=WITHIN)
            await _stream_tells(broker)
        completed = await _check_jobs(broker, load, queues)
        await _check_room(broker)
    lost = len(load.acknowledged) - completed
    # What nobody acknowledged may have been stored and run nevertheless.
    runs, ended = sum(len(queue.runs) for queue in queues), len({job for queue in queues for job in queue.completions})
    return Outcome(len(load.acknowledged), completed, lost, runs - ended, pause)


async def _under_load(replicas: ReplicaSet, trouble: Trouble, load: Load) -> float:
    """Seconds from the trouble's begin to the end of the first job that was submitted after it."""
    async with load.running():
        await load.flows(0.0, ENOUGH)
        begin = time.monotonic()
        async with trouble(replicas):
            pause = await load.flows(time.monotonic(), ENOUGH) - begin
        await load.flows(time.monotonic(), ENOUGH)
    return pause


async def _is_idle(broker: Broker) -> bool:
    held = {"$or": [{"place": {"$exists": True}}, {"slot": {"$exists": True}}, {"lease_expires_at": {"$exists": True}}]}
    return await broker.database.jobs.count_documents(held) == 0


async def _stream_tells(broker: Broker) -> None:
    """Change streams work again, in the process that lived through the trouble."""
    feed = DeafToPolls(broker.database, poll_interval=0.1)
    running = asyncio.create_task(feed.run())
    try:

        async def told() -> bool:
            job = await broker.queue.submit(NewJob("chat", MODEL, "ann", {"max_tokens": 1}))
            seen = await feed.when_ended(job.id, lambda: broker.reader.get(str(job.id), "ann"), timeout=2.0)
            return seen.status is Status.COMPLETED

        await eventually(told)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def _check_jobs(broker: Broker, load: Load, queues: list[WatchedQueue]) -> int:
    """How many of the acknowledged jobs were completed; each once, as it was told, by an attempt that was not lost."""
    jobs = {job["_id"]: Job.from_document(job) async for job in broker.database.jobs.find()}
    assert {job.status for job in jobs.values()} == {Status.COMPLETED}
    for job_id, (_, told) in load.told.items():
        assert jobs[job_id] == told, "what a client has been told stays so"
    for queue in queues:
        for job_id, tokens in queue.completions.items():
            assert tokens == [jobs[job_id].token], "an acknowledged completion stands, and is the only one"
    burnt = [job.errors for job in jobs.values() if job.errors or job.attempts != 1]
    assert not burnt, "a failover burns no attempts"
    unexpected = [error for error in load.refusals if not is_outage(error)]
    assert not unexpected, "clients are asked to come again"
    return sum(job_id in jobs for job_id in load.acknowledged)


async def _check_room(broker: Broker) -> None:
    """No place has leaked, nor a slot: as many jobs as ever are accepted, and as many claimed."""
    for _ in range(PLACES):
        await broker.queue.submit(NewJob("chat", MODEL, "ann", {}))
    with pytest.raises(QueueFull):
        await broker.queue.submit(NewJob("chat", MODEL, "ann", {}))

    async def all_slots_are_held() -> bool:
        """By claims, and by direct leases to workers that the gateway believed in a moment longer."""
        await broker.queue.claim(MODEL, "worker", PLACES)
        return await broker.database.jobs_local.count_documents({"slot": {"$gte": 0}}) == CONCURRENT

    await eventually(all_slots_are_held)

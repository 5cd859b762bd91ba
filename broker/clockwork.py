"""What has to happen by the clock, in one process at a time.

Every gateway and worker process runs the clockwork, but only the one that holds the lease document acts; when it dies
the next one takes over within LEASE seconds. Were two to act for a moment, nothing would break: every write is fenced.
"""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError

from broker.crashes import CrashLog
from broker.database import Database
from broker.job import LEASE_EXPIRED
from broker.queue import JobQueue
from broker.registry import BURIAL, Registry

log = logging.getLogger(__name__)

LEASE = 5.0
CLOCKWORK = "clockwork"


class Leadership:
    """A lease document on the database's clock. ``epoch`` grows with each change of holder: of any two that believe to
    hold the lease, the one with the greater epoch does. ``name``: what is done by one process at a time.
    """

    def __init__(self, database: Database, name: str = CLOCKWORK) -> None:
        self._name = name
        self._locks = database.locks
        self._me = uuid.uuid4().hex
        self.held = False
        self.epoch = 0
        """Of the time that this process holds the lease for, or last did."""

    async def seek(self, runs: Sequence[Mapping[str, Any]] = ()) -> bool:
        """Takes or renews the lease, with what to tell of the last runs; whether this process holds it now."""
        mine = {"$eq": ["$holder", self._me]}
        free = {"$or": [mine, {"$lte": ["$expires_at", "$$NOW"]}]}
        expires = {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": int(LEASE * 1000)}}
        epoch = {"$cond": [mine, "$epoch", {"$add": ["$epoch", 1]}]}
        lease = await self._locks.find_one_and_update(
            {"_id": self._name, "$expr": free},
            [
                {"$set": {"epoch": epoch}},
                {"$set": {"holder": self._me, "expires_at": expires, "runs": {"$literal": list(runs)}}},
            ],
            projection={"epoch": 1},
            return_document=ReturnDocument.AFTER,
        )
        if lease is None:
            self.held = False
            await self._create()
        else:
            self.held, self.epoch = True, lease["epoch"]
        return self.held

    async def look(self) -> Mapping[str, Any] | None:
        """The lease document, whoever holds it; None before the first start."""
        return await self._locks.find_one({"_id": self._name})

    async def _create(self) -> None:
        """An expired lease, once, for the next ``seek`` to take: MongoDB upserts no document that ``$expr`` chose."""
        long_ago = datetime.fromtimestamp(0, UTC)
        with suppress(DuplicateKeyError):
            await self._locks.update_one(
                {"_id": self._name},
                {"$setOnInsert": {"epoch": 0, "holder": None, "expires_at": long_ago}},
                upsert=True,
            )

    async def resign(self) -> None:
        """Lets the next process take over at once."""
        self.held = False
        await self._locks.update_one({"_id": self._name, "holder": self._me}, {"$currentDate": {"expires_at": True}})


class Reaper:
    """Returns the jobs of silent workers to the queue.

    It acts only after it has seen the database answer for one whole lease, so that an outage, during which nobody
    could renew, burns no attempts. An answer that takes a third of a lease is an outage, too: the driver waits for a
    new primary and asks again by itself, and workers renew that often.
    """

    def __init__(self, queue: JobQueue, crashes: CrashLog, lease: float) -> None:
        self._queue = queue
        self._crashes = crashes
        self._lease = lease
        self._answering_since: float | None = None

    async def tick(self) -> int:
        """Reaps what has expired; returns how many jobs."""
        asked = time.monotonic()
        try:
            expired = await self._queue.expired()
        except PyMongoError:
            self._answering_since = None
            raise
        now = time.monotonic()
        if self._answering_since is None or now - asked > self._lease / 3:
            self._answering_since = now
        if now - self._answering_since < self._lease:
            return 0
        reaped = 0
        for job in expired:
            outcome = await self._queue.reap(job)
            if outcome is not None:
                reaped += 1
                await self._crashes.add(job, LEASE_EXPIRED, outcome.value)
                log.warning("job %s: lease of worker %s expired, now %s", job.id, job.worker, outcome.value)
        return reaped

    @property
    def answering(self) -> float:
        """Seconds for which the database has been seen to answer, without a break."""
        return 0.0 if self._answering_since is None else time.monotonic() - self._answering_since

    def forget(self) -> None:
        """This process does not lead: what it saw of the database before counts for nothing."""
        self._answering_since = None


async def bury_workers(registry: Registry, crashes: CrashLog, reaper: Reaper) -> int:
    """Strikes off the workers that fell silent without signing off, each with an entry in the crash log.

    Not before the database has answered for as long: while it is away, everybody is silent.
    """
    if reaper.answering < BURIAL.total_seconds():
        return 0
    dead = await registry.take_dead()
    for worker in dead:
        await crashes.add_worker_death(worker)
        log.warning("worker %s on %s (pid %d) fell silent", worker.id, worker.host, worker.pid)
    return len(dead)


@dataclass(frozen=True, slots=True)
class Task:
    """Something to do every ``every`` seconds."""

    name: str
    every: float
    action: Callable[[], Awaitable[object]]


class Clockwork:
    """Runs ``tasks`` in the process that leads, and tells all others how that goes, in the lease document."""

    def __init__(self, leadership: Leadership, tasks: Sequence[Task], on_follow: Callable[[], None]) -> None:
        self._leadership = leadership
        self._tasks = tasks
        self._on_follow = on_follow
        self._runs: dict[str, dict[str, Any]] = {}
        self._scheduler = AsyncIOScheduler()

    def start(self) -> None:
        """Needs a running event loop."""
        self._schedule(LEASE / 3, self._lead)
        for task in self._tasks:
            self._schedule(task.every, partial(self._run, task))
        self._scheduler.start()

    def _schedule(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        self._scheduler.add_job(
            action, "interval", seconds=seconds, max_instances=1, coalesce=True, misfire_grace_time=None
        )

    async def _run(self, task: Task) -> None:
        if not self._leadership.held:
            return
        started = datetime.now(UTC)
        try:
            outcome, ok = str(await task.action()), True
        except PyMongoError as error:
            outcome, ok = str(error), False
            log.warning("%s waits for the database: %s", task.name, error)
        ended = datetime.now(UTC)
        self._runs[task.name] = {
            "name": task.name,
            "every": task.every,
            "last_run": started,
            "seconds": (ended - started).total_seconds(),
            "next_run": started + timedelta(seconds=task.every),
            "ok": ok,
            "outcome": outcome[:500],
        }

    async def _lead(self) -> None:
        try:
            leads = await self._leadership.seek(list(self._runs.values()))
        except PyMongoError as error:
            log.warning("the clockwork's lease is not renewed: %s", error)
            return
        if not leads:
            self._runs.clear()
            self._on_follow()

    async def stop(self) -> None:
        self._scheduler.shutdown(wait=False)
        if self._leadership.held:
            await self._leadership.resign()

"""What has to happen by the clock, in one process at a time: reap, promote, sweep.

Every gateway and worker process runs the clockwork, but only the one that holds the lease document acts; when it dies
the next one takes over within LEASE seconds. Were two to act for a moment, nothing would break: every write is fenced.
"""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from pymongo.errors import DuplicateKeyError, PyMongoError

from broker.crashes import CrashLog
from broker.database import Database
from broker.files import FileStore
from broker.job import LEASE_EXPIRED
from broker.queue import JobQueue

log = logging.getLogger(__name__)

LEASE = 5.0
_NAME = "clockwork"


class Leadership:
    """A lease document on the database's clock. ``epoch`` grows with each change of holder."""

    def __init__(self, database: Database) -> None:
        self._locks = database.locks
        self._me = uuid.uuid4().hex
        self.held = False

    async def seek(self) -> bool:
        """Takes or renews the lease; whether this process holds it now."""
        mine = {"$eq": ["$holder", self._me]}
        free = {"$or": [mine, {"$lte": ["$expires_at", "$$NOW"]}]}
        expires = {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": int(LEASE * 1000)}}
        epoch = {"$cond": [mine, "$epoch", {"$add": ["$epoch", 1]}]}
        written = await self._locks.update_one(
            {"_id": _NAME, "$expr": free},
            [{"$set": {"epoch": epoch}}, {"$set": {"holder": self._me, "expires_at": expires}}],
        )
        self.held = written.matched_count == 1
        if not self.held:
            await self._create()
        return self.held

    async def _create(self) -> None:
        """An expired lease, once, for the next ``seek`` to take: MongoDB upserts no document that ``$expr`` chose."""
        long_ago = datetime.fromtimestamp(0, UTC)
        with suppress(DuplicateKeyError):
            await self._locks.update_one(
                {"_id": _NAME},
                {"$setOnInsert": {"epoch": 0, "holder": None, "expires_at": long_ago}},
                upsert=True,
            )

    async def resign(self) -> None:
        """Lets the next process take over at once."""
        self.held = False
        await self._locks.update_one({"_id": _NAME, "holder": self._me}, {"$currentDate": {"expires_at": True}})


class Reaper:
    """Returns the jobs of silent workers to the queue.

    It acts only after it has seen the database answer for one whole lease, so that an outage, during which nobody
    could renew, burns no attempts.
    """

    def __init__(self, queue: JobQueue, crashes: CrashLog, lease: float) -> None:
        self._queue = queue
        self._crashes = crashes
        self._lease = lease
        self._answering_since: float | None = None

    async def tick(self) -> int:
        """Reaps what has expired; returns how many jobs."""
        try:
            expired = await self._queue.expired()
        except PyMongoError:
            self._answering_since = None
            raise
        now = time.monotonic()
        if self._answering_since is None:
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

    def forget(self) -> None:
        """This process does not lead: what it saw of the database before counts for nothing."""
        self._answering_since = None


class Clockwork:
    def __init__(self, database: Database, queue: JobQueue, files: FileStore, crashes: CrashLog, lease: float) -> None:
        self._leadership = Leadership(database)
        self._queue = queue
        self._files = files
        self._reaper = Reaper(queue, crashes, lease)
        self._scheduler = AsyncIOScheduler()

    def start(self) -> None:
        """Needs a running event loop."""
        self._every(LEASE / 3, self._lead, leader_only=False)
        self._every(1.0, self._reaper.tick)
        self._every(1.0, self._queue.promote)
        self._every(600.0, self._files.sweep)
        self._scheduler.start()

    def _every(self, seconds: float, action: Callable[[], Awaitable[object]], *, leader_only: bool = True) -> None:
        async def run() -> None:
            if leader_only and not self._leadership.held:
                return
            try:
                await action()
            except PyMongoError as error:
                log.warning("clockwork: %s waits for the database: %s", action, error)

        self._scheduler.add_job(
            run, "interval", seconds=seconds, max_instances=1, coalesce=True, misfire_grace_time=None
        )

    async def _lead(self) -> None:
        if not await self._leadership.seek():
            self._reaper.forget()

    async def stop(self) -> None:
        self._scheduler.shutdown(wait=False)
        if self._leadership.held:
            await self._leadership.resign()

"""News about jobs: one change stream per process, fanned out to everybody in it who waits.

The stream is a hint and polling is the truth: a stream that is lost, late or closed costs at most one poll interval,
never a job. Whoever waits checks, subscribes, and checks again (``when_ended``), so that nothing falls in between.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bson import ObjectId
from pymongo.errors import PyMongoError

from broker.database import Database
from broker.job import TERMINAL, Job, Status

log = logging.getLogger(__name__)

_TERMINAL = [status.value for status in TERMINAL]
_ENDED = {"operationType": "update", "updateDescription.updatedFields.status": {"$in": _TERMINAL}}
# A worker knows of the jobs that it ends itself.
_CANCELLED = {"operationType": "update", "updateDescription.updatedFields.status": Status.CANCELLED.value}
_CLAIMABLE = (
    {"operationType": "insert"},
    {"operationType": "update", "updateDescription.updatedFields.lane": {"$exists": True}},
)
_KEEP = {"operationType": 1, "documentKey": 1, "updateDescription.updatedFields.status": 1}


class JobFeed:
    """Tells of jobs that have ended or, for workers (``claimable=True``), that were cancelled or can be claimed.

    ``claimable`` is an event that is set whenever there may be something to claim; whoever waits for it clears it.
    """

    def __init__(self, database: Database, poll_interval: float, *, claimable: bool = False) -> None:
        self._jobs = database.jobs
        self._poll_interval = poll_interval
        self._match = {"$or": [_CANCELLED, *_CLAIMABLE]} if claimable else _ENDED
        self._waiters: defaultdict[ObjectId, set[asyncio.Event]] = defaultdict(set)
        self._closed = False
        self.claimable = asyncio.Event()

    async def run(self) -> None:
        """Streams and polls until cancelled. Never fails because of the database: it waits for it."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self._stream))
            tasks.create_task(self._repeat(self._poll))

    async def _repeat(self, source: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await source()
            except PyMongoError as error:
                log.warning("job feed interrupted, polling goes on: %s", error)
            await asyncio.sleep(self._poll_interval)

    async def _stream(self) -> None:
        pipeline: list[dict[str, Any]] = [{"$match": self._match}, {"$project": _KEEP}]
        async with await self._jobs.watch(pipeline, max_await_time_ms=1000) as stream:
            self.claimable.set()  # what came while there was no stream
            async for change in stream:
                self._tell(change)

    def _tell(self, change: Mapping[str, Any]) -> None:
        fields = change.get("updateDescription", {}).get("updatedFields", {})
        if fields.get("status") in _TERMINAL:
            self._ended(change["documentKey"]["_id"])
        else:
            self.claimable.set()

    async def _poll(self) -> None:
        self.claimable.set()
        if self._waiters:
            ended = {"_id": {"$in": list(self._waiters)}, "status": {"$in": _TERMINAL}}
            async for document in self._jobs.find(ended, {"_id": 1}):
                self._ended(document["_id"])

    def _ended(self, job_id: ObjectId) -> None:
        for event in self._waiters.get(job_id, ()):
            event.set()

    @contextmanager
    def watch(self, job_id: ObjectId) -> Iterator[asyncio.Event]:
        """An event that is set when the job has ended. Check the job once more after subscribing."""
        event = asyncio.Event()
        if self._closed:
            event.set()
        self._waiters[job_id].add(event)
        try:
            yield event
        finally:
            self._waiters[job_id].discard(event)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    async def when_ended(self, job_id: ObjectId, load: Callable[[], Awaitable[Job]], timeout: float) -> Job:
        """The job as ``load`` gives it, once it has ended or ``timeout`` seconds have passed."""
        with self.watch(job_id) as ended:
            job = await load()
            if job.status.terminal or timeout <= 0 or not await happens(ended, timeout):
                return job
            return await load()

    def close(self) -> None:
        """Sends everybody who waits home with what they have: the process is about to stop."""
        self._closed = True
        for events in self._waiters.values():
            for event in events:
                event.set()


async def happens(event: asyncio.Event, timeout: float) -> bool:
    """Whether ``event`` is set within ``timeout`` seconds."""
    try:
        await asyncio.wait_for(event.wait(), timeout)
    except TimeoutError:
        return False
    return True

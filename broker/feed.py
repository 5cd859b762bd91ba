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

from broker.cancellation import together
from broker.database import Database
from broker.job import TERMINAL, Document, Job, Status

log = logging.getLogger(__name__)

_TERMINAL = [status.value for status in TERMINAL]
_ENDED = {"operationType": "update", "updateDescription.updatedFields.status": {"$in": _TERMINAL}}
# A worker knows of the jobs that it ends itself.
_CANCELLED = {"operationType": "update", "updateDescription.updatedFields.status": Status.CANCELLED.value}
_SUBMITTED = {"operationType": "insert", "fullDocument.status": Status.QUEUED.value}
_BACK = {"operationType": "update", "updateDescription.updatedFields.lane": {"$exists": True}}


def _for_clients() -> list[Document]:
    """All that the end has changed only where that may tell the whole story, see ``job_updates.after_end``."""
    changed = "$updateDescription.updatedFields"
    told = {"$cond": [{"$gt": [f"{changed}.ended_by", None]}, changed, {"status": f"{changed}.status"}]}
    return [{"$match": _ENDED}, {"$project": {"documentKey": 1, "updateDescription": {"updatedFields": told}}}]


def _for_worker(worker: str) -> list[Document]:
    """Whole documents only of the jobs that were stored with a lease of this worker."""
    leased = {"operationType": "insert", "fullDocument.worker": worker}
    document = {"$cond": [{"$eq": ["$fullDocument.worker", worker]}, "$fullDocument", "$$REMOVE"]}
    told = {"documentKey": 1, "updateDescription.updatedFields.status": 1, "fullDocument": document}
    return [{"$match": {"$or": [leased, _SUBMITTED, _BACK, _CANCELLED]}}, {"$project": told}]


class Ending:
    """The news that a job has ended. ``changes``: the fields that its end has changed, as far as they were told.

    ``event`` is set when it comes, and when nobody is to wait any longer; others may use it for news of their own.
    """

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.over = False
        self.changes: Document = {}

    async def happens(self, timeout: float) -> bool:
        """Whether it comes within ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self.event.wait()
        except TimeoutError:
            return False
        return True


class JobFeed:
    """Tells of jobs that have ended or, to a worker, that were cancelled, that can be claimed or that are leased to it.

    ``claimable`` is an event that is set whenever there may be something to claim; whoever waits for it clears it.
    ``on_ended`` and ``on_leased`` are called with the id of each job that has ended, and the document of each that was
    stored with a lease of ``worker``. ``on_webhook``: with the id of each that has ended and may have to be told of.
    """

    def __init__(self, database: Database, poll_interval: float, *, worker: str | None = None) -> None:
        self._jobs = database.jobs
        self._poll_interval = poll_interval
        self._pipeline = _for_clients() if worker is None else _for_worker(worker)
        self._waiters: defaultdict[ObjectId, set[Ending]] = defaultdict(set)
        self._closed = False
        self.claimable = asyncio.Event()
        self.on_ended: Callable[[ObjectId], None] = _ignore
        self.on_leased: Callable[[Document], None] = _ignore
        self.on_webhook: Callable[[ObjectId], None] = _ignore

    async def run(self) -> None:
        """Streams and polls until cancelled. Never fails because of the database: it waits for it."""
        await together(self._repeat(self._stream), self._repeat(self._poll))

    async def _repeat(self, source: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await source()
            except PyMongoError as error:
                log.warning("job feed interrupted, polling goes on: %s", error)
            await asyncio.sleep(self._poll_interval)

    async def _stream(self) -> None:
        async with await self._jobs.watch(self._pipeline, max_await_time_ms=1000) as stream:
            self.claimable.set()  # what came while there was no stream
            async for change in stream:
                self._tell(change)

    def _tell(self, change: Mapping[str, Any]) -> None:
        fields = change.get("updateDescription", {}).get("updatedFields", {})
        if fields.get("status") in _TERMINAL:
            self._ended(change["documentKey"]["_id"], fields)
        elif "fullDocument" in change:
            self.on_leased(change["fullDocument"])
        else:
            self.claimable.set()

    async def _poll(self) -> None:
        self.claimable.set()
        if self._waiters:
            ended = {"_id": {"$in": list(self._waiters)}, "status": {"$in": _TERMINAL}}
            async for document in self._jobs.find(ended, {"_id": 1}):
                self._ended(document["_id"], {})

    def _ended(self, job_id: ObjectId, changes: Document) -> None:
        self.on_ended(job_id)
        # Who cancels a job does not know whether it has a webhook.
        if "webhook_due" in changes or changes.get("status") == Status.CANCELLED.value:
            self.on_webhook(job_id)
        for ending in self._waiters.get(job_id, ()):
            ending.changes = changes
            ending.over = True
            ending.event.set()

    @contextmanager
    def watch(self, job_id: ObjectId) -> Iterator[Ending]:
        """The news of the job's end. Check the job once more after subscribing, unless it is not submitted yet."""
        ending = Ending()
        if self._closed:
            ending.event.set()
        self._waiters[job_id].add(ending)
        try:
            yield ending
        finally:
            self._waiters[job_id].discard(ending)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    async def when_ended(self, job_id: ObjectId, load: Callable[[], Awaitable[Job]], timeout: float) -> Job:
        """The job as ``load`` gives it, once it has ended or ``timeout`` seconds have passed."""
        with self.watch(job_id) as ending:
            job = await load()
            if job.status.terminal or timeout <= 0 or not await ending.happens(timeout):
                return job
            return await load()

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Sends everybody who waits home with what they have: the process is about to stop."""
        self._closed = True
        for endings in self._waiters.values():
            for ending in endings:
                ending.event.set()


def _ignore(_: object) -> None:
    """Nobody has asked to be told."""

"""How jobs and the pages of their documents come along, for whoever follows them: one look at the database for all of
them in this process, each poll interval. A page that has come to its end is not looked at again.

Whoever follows a job is told what is in the database, and not what has happened: so nothing is lost with a process, and
another one can go on where the first has stopped.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from bson import ObjectId
from pymongo.errors import PyMongoError

from broker.barrier import Barrier
from broker.cancellation import cancel_all
from broker.database import Database
from broker.feed import JobFeed
from broker.job import Document, Job, Status
from broker.pages import ENDED

log = logging.getLogger(__name__)

_FIELDS = {"status": 1, "attempts": 1, "progress": 1, "error": 1}


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a job is. ``pages``: the state of each page that was begun, by its number."""

    status: Status
    attempts: int
    progress: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    pages: Mapping[int, str]


@dataclass
class _Followed:
    job: ObjectId
    pages_id: ObjectId
    followers: set[asyncio.Event] = field(default_factory=set)
    standing: Standing | None = None
    gone: bool = False

    def tell(self, standing: Standing | None) -> None:
        if standing is not None and standing == self.standing:
            return
        self.standing, self.gone = standing, standing is None
        for event in self.followers:
            event.set()


class PageFeed:
    """``poll_interval`` in seconds. What ``feed`` tells of jobs' ends is taken for a hint to look at once."""

    def __init__(self, database: Database, feed: JobFeed, poll_interval: float) -> None:
        self._jobs = database.jobs
        self._pages = database.pages
        self._barrier = Barrier(database)
        self._feed = feed
        self._poll_interval = poll_interval
        self._followed: dict[ObjectId, _Followed] = {}
        self._due = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    async def follow(self, job: Job, every: float) -> AsyncGenerator[Standing, None]:
        """Where the job stands, as soon as that is known, at each change, and after ``every`` seconds without one.

        Ends when the job has ended, when it is gone, and when ``feed`` is closed.
        """
        with self._feed.watch(job.id) as ending:
            followed = self._join(job, ending.event)
            try:
                while not (self._feed.closed or followed.gone):
                    ending.event.clear()
                    standing = followed.standing
                    if standing is not None:
                        yield standing
                        if standing.status.terminal:
                            return
                    if await ending.happens(every) and followed.standing is standing:
                        self._due.set()
            finally:
                self._leave(followed, ending.event)

    def _join(self, job: Job, event: asyncio.Event) -> _Followed:
        followed = self._followed.setdefault(job.id, _Followed(job.id, job.pages_id))
        followed.followers.add(event)
        self._due.set()
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        return followed

    def _leave(self, followed: _Followed, event: asyncio.Event) -> None:
        followed.followers.discard(event)
        if not followed.followers:
            self._followed.pop(followed.job, None)
            self._due.set()

    async def _poll(self) -> None:
        """As long as anybody follows anything."""
        try:
            while self._followed:
                self._due.clear()
                try:
                    await self._look(list(self._followed.values()))
                except PyMongoError as error:
                    log.warning("jobs cannot be followed just now: %s", error)
                    self._due.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_interval):
                        await self._due.wait()
        finally:
            self._poller = None

    async def _look(self, all_followed: list[_Followed]) -> None:
        ids = [followed.job for followed in all_followed]
        found = await self._barrier.read(lambda: self._jobs.find({"_id": {"$in": ids}}, _FIELDS).to_list())
        jobs = {document["_id"]: document for document in found}
        moving = [followed for followed in all_followed if _may_have_moved(followed, jobs.get(followed.job))]
        # After the jobs: of one that has ended all pages are there.
        pages = await self._open_pages(moving)
        for followed in all_followed:
            document = jobs.get(followed.job)
            followed.tell(None if document is None else _standing(document, followed, pages.get(followed.pages_id, {})))

    async def _open_pages(self, all_followed: Iterable[_Followed]) -> dict[ObjectId, dict[int, str]]:
        """The states of the pages that are not known to have come to their end."""
        wanted = [
            {"job": followed.pages_id, "number": {"$nin": _ended(followed.standing)}} for followed in all_followed
        ]
        found: dict[ObjectId, dict[int, str]] = {}
        if wanted:
            async for page in self._pages.find({"$or": wanted}, {"_id": 0, "job": 1, "number": 1, "state": 1}):
                found.setdefault(page["job"], {})[page["number"]] = page["state"]
        return found

    async def close(self) -> None:
        if self._poller is not None:
            await cancel_all([self._poller])


def _may_have_moved(followed: _Followed, document: Document | None) -> bool:
    """Whether pages may have been begun or ended since the last look: some are only while the job is processed.

    Of a turn that came and went since then, which is not counted as an attempt, its progress tells.
    """
    known = followed.standing
    if document is None or known is None:
        return document is not None
    now = (Status(document["status"]), document["attempts"], document.get("progress"))
    return Status.PROCESSING in (now[0], known.status) or now != (known.status, known.attempts, known.progress)


def _ended(standing: Standing | None) -> list[int]:
    return [] if standing is None else [number for number, state in standing.pages.items() if state in ENDED]


def _standing(document: Document, followed: _Followed, news: Mapping[int, str]) -> Standing:
    known = followed.standing.pages if followed.standing is not None else {}
    return Standing(
        status=Status(document["status"]),
        attempts=document["attempts"],
        progress=document.get("progress"),
        error=document.get("error"),
        pages={**known, **news},
    )

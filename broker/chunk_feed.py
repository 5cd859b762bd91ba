"""Answers as they are generated, for whoever follows them: one change stream on the chunks per process, fanned out.

The stream is a hint: a follower that it leaves behind, or that is slow, reads on in the database. So what a follower
costs in memory is bounded, he is told every event of his attempt in order, and any process can go on for another one.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeAlias

from bson import ObjectId
from pymongo.errors import PyMongoError

from broker.barrier import Barrier
from broker.cancellation import cancel_all
from broker.chunks import Chunk, Chunks
from broker.database import Database
from broker.feed import Ending, JobFeed
from broker.job import Document, Job
from broker.job_updates import after_end

log = logging.getLogger(__name__)

# Characters of one job that are kept in memory for its followers.
KEPT = 256 * 1024
# Seconds for which a job counts as new, and without a notice after which who follows it looks for the first time.
FIRST_LOOK = 0.1
_INSERTED: list[Document] = [{"$match": {"operationType": "insert"}}, {"$project": {"fullDocument": 1}}]


@dataclass(frozen=True, slots=True)
class Place:
    """How far somebody has been told: so many events of the attempt with that token."""

    token: str
    told: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """What was told so far is void: another attempt, with ``token``, generates anew."""

    token: str


@dataclass(frozen=True, slots=True)
class Quiet:
    """There was nothing new for a while."""


@dataclass(frozen=True, slots=True)
class Over:
    """The job, as it has ended. ``whole``: all its events were told; they are gone an hour after the end."""

    job: Job
    whole: bool


News: TypeAlias = Chunk | Restarted | Quiet | Over
Load: TypeAlias = Callable[[], Awaitable[Job]]


@dataclass
class _Recent:
    """The last chunks of one job, each attempt's in their order."""

    followers: set[asyncio.Event] = field(default_factory=set)
    chunks: deque[Chunk] = field(default_factory=deque)
    size: int = 0
    newest: Place | None = None
    """Up to where events are known to be there, whether they are kept here or not."""

    def add(self, chunk: Chunk) -> None:
        self.newest = Place(chunk.token, chunk.end)
        self.chunks.append(chunk)
        self.size += _size(chunk)
        while self.size > KEPT:
            self.size -= _size(self.chunks.popleft())

    def after(self, place: Place | None) -> list[Chunk]:
        """The events that are next for who is at ``place``, as far as they are here without a gap."""
        found: list[Chunk] = []
        if place is None:
            return found
        for chunk in reversed(self.chunks):
            if chunk.token != place.token:
                continue
            if chunk.end <= place.told:
                break
            if found and chunk.end != found[-1].first:  # a notice between them was lost
                found.clear()
            found.append(chunk)
        if not found or found[-1].first > place.told:
            return []
        return [found.pop().after(place.told), *reversed(found)]

    def beyond(self, place: Place | None) -> bool:
        """Whether the newest is new to who is at ``place``."""
        newest = self.newest
        return newest is not None and (place is None or newest.token != place.token or newest.told > place.told)


def _size(chunk: Chunk) -> int:
    return sum(map(len, chunk.events))


class ChunkFeed:
    """``poll_interval`` in seconds: after so long without a notice it is looked whether one was lost."""

    def __init__(self, database: Database, feed: JobFeed, poll_interval: float) -> None:
        self.poll_interval = poll_interval
        self.feed = feed
        self._chunks = Chunks(database)
        self._barrier = Barrier(database)
        self._collection = database.chunks
        self._recent: dict[ObjectId, _Recent] = {}
        self._fresh: dict[ObjectId, Job] = {}
        self._streaming: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to listen; needs a running event loop."""
        self._streaming = asyncio.create_task(self._stream_for_ever())

    def stored(self, job: Job) -> None:
        """Has whoever watches the job at once wait for notices first: this process has just stored it, as it is here,
        so that there is nothing yet to ask the database for."""
        if not job.status.terminal:
            self._fresh[job.id] = job
            asyncio.get_running_loop().call_later(FIRST_LOOK, self._fresh.pop, job.id, None)

    @contextmanager
    def watch(self, job_id: ObjectId) -> Iterator["Following"]:
        """What is told of the job from now on is kept for who follows it."""
        with self.feed.watch(job_id) as ending:
            recent = self._recent.setdefault(job_id, _Recent())
            recent.followers.add(ending.event)
            try:
                yield Following(self, recent, ending, self._fresh.pop(job_id, None))
            finally:
                recent.followers.discard(ending.event)
                if not recent.followers:
                    del self._recent[job_id]

    async def _stream_for_ever(self) -> None:
        while True:
            try:
                await self._stream()
            except PyMongoError as error:
                log.warning("chunk feed interrupted, polling goes on: %s", error)
            await asyncio.sleep(self.poll_interval)

    async def _stream(self) -> None:
        async with await self._collection.watch(_INSERTED, max_await_time_ms=1000) as stream:
            async for change in stream:
                chunk = Chunk.from_document(change["fullDocument"])
                if recent := self._recent.get(chunk.job):
                    recent.add(chunk)
                    for follower in recent.followers:
                        follower.set()

    async def read(self, job_id: ObjectId, place: Place) -> list[Chunk]:
        """The next chunks for who is at ``place``."""
        return await self._barrier.read(lambda: self._chunks.read(job_id, place.token, place.told))

    async def close(self) -> None:
        if self._streaming is not None:
            await cancel_all([self._streaming])


class Following:
    """Somebody who follows a job, see ``ChunkFeed.watch``."""

    def __init__(self, feed: ChunkFeed, recent: _Recent, ending: Ending, fresh: Job | None) -> None:
        self._feed = feed
        self._recent = recent
        self._ending = ending
        self._fresh = fresh
        self._place: Place | None = None

    async def noticed(self) -> None:
        """Returns once a piece of the answer or the job's end was noticed, or ``wake`` was called. It costs nothing."""
        await self._ending.event.wait()

    def wake(self) -> None:
        """Has it looked at the database now."""
        self._ending.event.set()

    async def news(self, load: Load, place: Place | None, every: float) -> AsyncGenerator[News, None]:
        """What is new to somebody who was told as far as ``place``, and ``Quiet`` after each ``every`` seconds without.

        ``load`` gives the job as it is now. Ends with ``Over``, or without it where the process is about to stop. A
        database that is away is waited for.
        """
        self._place = place
        if place is None and self._fresh is not None and self._fresh.token is not None:
            self._place = Place(self._fresh.token, 0)
        stale, heard = self._fresh is None, monotonic()
        patience = min(FIRST_LOOK, self._feed.poll_interval)
        while not self._feed.feed.closed:
            self._ending.event.clear()
            try:
                async for news in self._news(load, stale=stale or self._ending.over):
                    heard = monotonic()
                    yield news
                    if isinstance(news, Over):
                        return
                stale = not await self._ending.happens(patience)
            except PyMongoError as error:
                log.warning("a job cannot be followed just now: %s", error)
                await asyncio.sleep(self._feed.poll_interval)
                stale = True
            patience = self._feed.poll_interval
            if monotonic() - heard >= every:
                heard = monotonic()
                yield Quiet()

    async def _news(self, load: Load, *, stale: bool) -> AsyncGenerator[News, None]:
        if not stale:
            while chunks := self._recent.after(self._place):
                for chunk in chunks:
                    yield self._told(chunk)
            if not self._recent.beyond(self._place):
                return
        # A notice was lost, the job has ended, another attempt generates, or more has come than memory keeps.
        job = self._as_noticed() or await load()
        if job.token is not None and (self._place is None or self._place.token != job.token):
            if self._place is not None and self._place.told:
                yield Restarted(job.token)
            self._place = Place(job.token, 0)
        async for chunk in self._stored(job):
            yield self._told(chunk)
        if job.status.terminal:
            yield Over(job, whole=job.chunks is None or self._so_far >= job.chunks)

    def _as_noticed(self) -> Job | None:
        """The job as it has ended, where the notice of that has told all."""
        return after_end(self._fresh, self._ending.changes) if self._fresh is not None else None

    async def _stored(self, job: Job) -> AsyncGenerator[Chunk, None]:
        while (place := self._place) is not None and (job.chunks is None or place.told < job.chunks):
            found = self._recent.after(place) or await self._feed.read(job.id, place)
            for chunk in found:
                yield chunk
            if not found:
                return

    @property
    def _so_far(self) -> int:
        return 0 if self._place is None else self._place.told

    def _told(self, chunk: Chunk) -> Chunk:
        self._place = Place(chunk.token, chunk.end)
        return chunk

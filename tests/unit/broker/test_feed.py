"""The feed where one of its two sources is silent or fails: each case forced, with the other source far away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pymongo.errors import AutoReconnect

from broker.database import Database
from broker.feed import JobFeed
from broker.job import Job, NewJob, Status
from broker.queue import JobQueue
from broker.reader import JobReader
from tests.conditions import eventually

Make = Callable[..., NewJob]
HOUR = 3600.0


class SilentStream(JobFeed):
    """Its stream is open and says nothing."""

    async def _stream(self) -> None:
        await asyncio.Event().wait()


class SilentPoll(JobFeed):
    """Its poll never ends. ``broken``: how many streams break before one stands."""

    broken = 0

    async def _poll(self) -> None:
        await asyncio.Event().wait()

    async def _stream(self) -> None:
        if self.broken:
            self.broken -= 1
            raise AutoReconnect("connection closed")
        await super()._stream()


@asynccontextmanager
async def running(feed: JobFeed) -> AsyncIterator[None]:
    task = asyncio.create_task(feed.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_waiter_that_has_looked_is_told_by_polling_where_the_stream_is_silent(
    store: Database, queue: JobQueue, reader: JobReader, new_job: Make
) -> None:
    job = await queue.submit(new_job())
    has_looked = asyncio.Event()

    async def look() -> Job:
        found = await reader.get(str(job.id), None)
        has_looked.set()
        return found

    feed = SilentStream(store, poll_interval=0.05)
    async with running(feed):
        waiting = asyncio.create_task(feed.when_ended(job.id, look, HOUR))
        await has_looked.wait()
        assert not waiting.done()
        await queue.cancel(job.id, None)
        async with asyncio.timeout(20):
            assert (await waiting).status is Status.CANCELLED


async def test_an_end_between_the_look_and_the_wait_is_not_missed(
    store: Database, queue: JobQueue, reader: JobReader, new_job: Make
) -> None:
    """It is told while the first look is still under way, and never again."""
    job = await queue.submit(new_job())
    feed = JobFeed(store, poll_interval=HOUR)
    looks = 0

    async def look() -> Job:
        nonlocal looks
        looks += 1
        found = await reader.get(str(job.id), None)
        if looks == 1:
            with feed.watch(job.id) as told:
                await queue.cancel(job.id, None)
                await told.event.wait()
        return found

    async with running(feed), asyncio.timeout(30):
        await stream_of(feed, store)
        assert (await feed.when_ended(job.id, look, HOUR)).status is Status.CANCELLED
    assert looks == 2


async def stream_of(feed: JobFeed, store: Database) -> None:
    """Returns once the stream of ``feed`` tells of jobs: ends one again and again until it does."""
    job = NewJob("chat", "none", "nobody", {})
    with feed.watch(job.id) as told:

        async def heard() -> bool:
            await store.jobs.update_one({"_id": job.id}, {"$set": {"status": "queued", "model": "none"}}, upsert=True)
            await store.jobs.update_one({"_id": job.id}, {"$set": {"status": "cancelled"}})
            return told.event.is_set()

        await eventually(heard)


async def test_claimers_are_woken_by_polling_again_and_again(store: Database) -> None:
    feed = SilentStream(store, poll_interval=0.05, worker="worker")
    async with running(feed), asyncio.timeout(20):
        for _ in range(3):
            await feed.claimable.wait()
            feed.claimable.clear()


async def test_claimers_are_woken_when_a_stream_begins_for_what_came_before_it(store: Database) -> None:
    feed = SilentPoll(store, poll_interval=HOUR, worker="worker")
    async with running(feed), asyncio.timeout(20):
        await feed.claimable.wait()


async def test_a_stream_that_breaks_is_opened_again(
    store: Database, queue: JobQueue, reader: JobReader, new_job: Make
) -> None:
    feed = SilentPoll(store, poll_interval=0.05)
    feed.broken = 2
    job = await queue.submit(new_job())
    async with running(feed), asyncio.timeout(30):
        await stream_of(feed, store)
        waiting = asyncio.create_task(feed.when_ended(job.id, lambda: reader.get(str(job.id), None), HOUR))
        await queue.cancel(job.id, None)
        assert (await waiting).status is Status.CANCELLED

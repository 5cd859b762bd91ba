"""Answers as those hear of them who follow them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from broker import chunk_feed
from broker.cancellation import cancel_all
from broker.chunk_feed import ChunkFeed, Following, News, Over, Place, Quiet, Restarted
from broker.chunks import Chunk, Chunks
from broker.database import Database, connect, ensure_schema
from broker.feed import JobFeed
from broker.job import Failure, Job, NewJob, Status
from broker.mongod import EmbeddedMongod
from broker.queue import JobQueue
from broker.reader import JobReader
from tests.conditions import eventually
from tests.unit.broker.conftest import MODELS, SETTINGS

MakeJob = Callable[..., NewJob]
# Seconds: never, as far as a test is concerned, and for what should come.
NEVER, PATIENCE = 600.0, 20.0


@dataclass
class Scene:
    """A job that runs, and a process that follows jobs."""

    store: Database
    queue: JobQueue
    reader: JobReader
    feed: ChunkFeed
    job: Job

    async def say(self, first: int, *events: str, job: Job | None = None) -> None:
        """Stores pieces as the attempt's worker would."""
        held = job or self.job
        assert held.token is not None
        await Chunks(self.store).add([(held, Chunk(held.id, held.token, first, events))])

    async def load(self) -> Job:
        return await self.reader.get(str(self.job.id), None)

    async def complete(self, chunks: int, job: Job | None = None) -> None:
        assert await self.queue.complete(job or self.job, {"result": {"choices": []}, "chunks": chunks})

    async def retried(self) -> Job:
        """The job as its next attempt holds it."""
        assert await self.queue.fail(self.job, Failure("engine_died", "It died.")) is Status.QUEUED

        async def claimed() -> bool:
            await self.queue.promote()
            held = (await self.queue.claim("beta", "worker-2")).jobs
            self.job = held[0] if held else self.job
            return bool(held)

        await eventually(claimed)
        return self.job


@asynccontextmanager
async def scene(
    store: Database, new_job: MakeJob, *, poll: float = NEVER, notices: bool = True, jobs: bool = True
) -> AsyncIterator[Scene]:
    """``notices``: of pieces; ``jobs``: of jobs that have ended. ``poll``: seconds."""
    queue = JobQueue(store, MODELS, SETTINGS)
    job_feed = JobFeed(store, poll)
    feed = ChunkFeed(store, job_feed, poll)
    tasks = [asyncio.create_task(job_feed.run())] if jobs else []
    await queue.submit(replace(new_job("beta"), stream=True))
    (job,) = (await queue.claim("beta", "worker-1")).jobs
    try:
        if notices:
            feed.start()
            await _listening(store, feed, queue, new_job)
        yield Scene(store, queue, JobReader(store), feed, job)
    finally:
        await feed.close()
        await cancel_all(tasks)


async def _listening(store: Database, feed: ChunkFeed, queue: JobQueue, new_job: MakeJob) -> None:
    """Returns when the notices come."""
    probe = await queue.submit(replace(new_job("alpha"), stream=True))
    said = 0
    with feed.watch(probe.id) as following:

        async def noticed() -> bool:
            nonlocal said
            said += 1
            await Chunks(store).add([(probe, Chunk(probe.id, "probe", said - 1, ["?"]))])
            return following._recent.newest is not None

        await eventually(noticed, every=0.05)


async def take(news: AsyncIterator[News], count: int) -> list[News]:
    async with asyncio.timeout(PATIENCE):
        return [await anext(news) for _ in range(count)]


def events_of(news: list[News]) -> list[str]:
    return [event for one in news if isinstance(one, Chunk) for event in one.events]


async def to_the_end(following: Following, load: Callable[[], Awaitable[Job]], place: Place | None) -> list[News]:
    async with asyncio.timeout(PATIENCE), aclosing(following.news(load, place, NEVER)) as news:
        return [one async for one in news]


async def never() -> Job:
    raise AssertionError("the database was asked")


async def test_each_piece_is_told_as_it_comes_and_then_the_end(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        with here.feed.watch(here.job.id) as following:
            async with aclosing(following.news(here.load, None, NEVER)) as news:
                for number, word in enumerate(["one", "two", "three"]):
                    await here.say(number, word)
                    assert events_of(await take(news, 1)) == [word]
                await here.complete(3)
                (over,) = await take(news, 1)
                assert isinstance(over, Over)
                assert over.whole
                assert over.job.status is Status.COMPLETED
                assert await anext(news, None) is None


async def test_where_no_notice_comes_polling_tells_all(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job, poll=0.05, notices=False, jobs=False) as here:
        with here.feed.watch(here.job.id) as following:
            async with aclosing(following.news(here.load, None, NEVER)) as news:
                await here.say(0, "one", "two")
                assert events_of(await take(news, 1)) == ["one", "two"]
                await here.say(2, "three")
                assert events_of(await take(news, 1)) == ["three"]
                await here.complete(3)
                (over,) = await take(news, 1)
    assert isinstance(over, Over)


async def test_a_notice_lost_among_others_leaves_no_gap(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        with here.feed.watch(here.job.id) as following:
            async with aclosing(following.news(here.load, None, NEVER)) as news:
                await here.say(0, "one")
                await take(news, 1)
                await here.say(1, "two")
                await here.say(2, "three")

                async def came() -> bool:
                    return following._recent.newest == Place(here.job.token or "", 3)

                await eventually(came)
                following._recent.chunks.remove(next(c for c in following._recent.chunks if c.first == 1))
                told = await take(news, 2)
    assert events_of(told) == ["two", "three"]


async def test_who_falls_behind_what_memory_keeps_is_told_every_event_all_the_same(
    store: Database, new_job: MakeJob
) -> None:
    size, count = 20_000, 2 * chunk_feed.KEPT // 20_000
    async with scene(store, new_job) as here:
        with here.feed.watch(here.job.id) as following:
            async with aclosing(following.news(here.load, None, NEVER)) as news:
                await here.say(0, "begin")
                await take(news, 1)
                for number in range(1, count + 1):
                    await here.say(number, str(number).ljust(size))

                async def came() -> bool:
                    return following._recent.newest == Place(here.job.token or "", count + 1)

                await eventually(came)
                assert following._recent.size <= chunk_feed.KEPT
                assert following._recent.chunks[0].first > 1
                told = events_of(await take(news, count))
    assert [event.rstrip() for event in told] == [str(number) for number in range(1, count + 1)]


async def test_a_piece_larger_than_memory_keeps_is_told_at_once(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        with here.feed.watch(here.job.id) as following:
            async with aclosing(following.news(here.load, None, NEVER)) as news:
                await here.say(0, "begin")
                await take(news, 1)
                await here.say(1, "x" * (chunk_feed.KEPT + 1))
                assert len(events_of(await take(news, 1))[0]) == chunk_feed.KEPT + 1
                assert following._recent.size == 0


async def test_another_attempt_voids_what_was_told(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        with here.feed.watch(here.job.id) as following:
            async with aclosing(following.news(here.load, None, NEVER)) as news:
                await here.say(0, "one", "two")
                await take(news, 1)
                again = await here.retried()
                await here.say(0, "anew", job=again)
                restarted, anew = await take(news, 2)
    assert restarted == Restarted(again.token or "")
    assert events_of([anew]) == ["anew"]


async def test_another_attempt_is_no_news_to_who_was_told_nothing(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        await here.say(0, "one", "two")
        again = await here.retried()
        await here.say(0, "anew", job=again)
        await here.complete(1, again)
        with here.feed.watch(here.job.id) as following:
            told = await to_the_end(following, here.load, None)
    assert [type(one) for one in told] == [Chunk, Over]
    assert events_of(told) == ["anew"]


async def test_who_comes_back_goes_on_where_he_was(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        assert here.job.token is not None
        await here.say(0, "one", "two", "three")
        await here.complete(3)
        for told in range(4):
            with here.feed.watch(here.job.id) as following:
                rest = await to_the_end(following, here.load, Place(here.job.token, told))
            assert events_of(rest) == ["one", "two", "three"][told:]
            assert isinstance(rest[-1], Over)
            assert rest[-1].whole


async def test_who_comes_back_from_an_attempt_that_was_lost_is_told_so(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        await here.say(0, "one")
        await here.complete(1)
        with here.feed.watch(here.job.id) as following:
            told = await to_the_end(following, here.load, Place("0" * 32, 7))
    assert [type(one) for one in told] == [Restarted, Chunk, Over]


async def test_where_the_pieces_are_gone_the_end_says_so(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        assert here.job.token is not None
        await here.say(0, "one")
        await here.say(1, "two")
        await here.complete(2)
        await store.chunks.delete_many({})
        for told in range(3):
            with here.feed.watch(here.job.id) as following:
                (over,) = await to_the_end(following, here.load, Place(here.job.token, told))
            assert isinstance(over, Over)
            assert over.whole == (told == 2)


async def test_where_only_the_beginning_is_gone_the_end_says_so_too(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        assert here.job.token is not None
        for number in range(3):
            await here.say(number, str(number))
        await here.complete(3)
        await store.chunks.delete_one({"_id.job": here.job.id, "_id.last": 0})
        with here.feed.watch(here.job.id) as following:
            told = await to_the_end(following, here.load, None)
            rest = await to_the_end(following, here.load, Place(here.job.token, 1))
    assert [type(one) for one in told] == [Over]
    assert isinstance(told[0], Over)
    assert not told[0].whole
    assert events_of(rest) == ["1", "2"]


async def test_silence_is_told_after_each_pause(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job, poll=0.05, notices=False) as here:
        with here.feed.watch(here.job.id) as following:
            async with aclosing(following.news(here.load, None, 0.1)) as news:
                loop = asyncio.get_running_loop()
                start = loop.time()
                assert await take(news, 3) == [Quiet()] * 3
                assert loop.time() - start >= 0.3


async def test_a_process_that_stops_sends_its_followers_home(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        with here.feed.watch(here.job.id) as following:
            asyncio.get_running_loop().call_soon(here.feed.feed.close)
            assert await to_the_end(following, here.load, None) == []


async def test_who_follows_what_he_has_just_stored_asks_the_database_for_nothing(
    store: Database, new_job: MakeJob
) -> None:
    """From the first piece to the end of the attempt that began with the submit, notices tell all."""
    async with scene(store, new_job) as here:
        here.feed.stored(here.job)
        with here.feed.watch(here.job.id) as following:
            async with aclosing(following.news(never, None, NEVER)) as news:
                await here.say(0, "one")
                assert events_of(await take(news, 1)) == ["one"]
                await here.say(1, "two")
                assert events_of(await take(news, 1)) == ["two"]
                await here.complete(2)
                (over,) = await take(news, 1)
    assert isinstance(over, Over)
    assert over.whole
    assert over.job.chunks == 2
    assert over.job.result == {"choices": []}


async def test_a_new_job_is_looked_for_where_no_notice_comes(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job, notices=False, jobs=False) as here:
        await here.say(0, "one")
        await here.complete(1)
        here.feed.stored(here.job)
        with here.feed.watch(here.job.id) as following:
            told = await to_the_end(following, here.load, None)
    assert events_of(told) == ["one"]
    assert isinstance(told[-1], Over)


async def test_a_new_job_that_was_tried_again_is_told_from_its_second_attempt(
    store: Database, new_job: MakeJob
) -> None:
    async with scene(store, new_job) as here:
        here.feed.stored(here.job)
        with here.feed.watch(here.job.id) as following:
            async with aclosing(following.news(here.load, None, NEVER)) as news:
                again = await here.retried()
                await here.say(0, "anew", job=again)
                assert events_of(await take(news, 1)) == ["anew"]
                await here.complete(1, again)
                (over,) = await take(news, 1)
    assert isinstance(over, Over)
    assert over.whole


async def test_what_nobody_follows_is_not_kept(store: Database, new_job: MakeJob) -> None:
    async with scene(store, new_job) as here:
        with here.feed.watch(here.job.id), here.feed.watch(here.job.id):
            await here.say(0, "one")
        assert not here.feed._recent
        here.feed.stored(here.job)

        async def forgotten() -> bool:
            return not here.feed._fresh

        await eventually(forgotten)


@pytest.fixture
async def own_mongod(tmp_path: Path) -> AsyncIterator[EmbeddedMongod]:
    mongod = EmbeddedMongod(tmp_path, cache=0.25)
    yield mongod
    await mongod.stop(timeout=5)


async def test_a_database_that_was_killed_is_waited_for_and_nothing_is_lost(
    own_mongod: EmbeddedMongod, new_job: MakeJob
) -> None:
    store = connect(await own_mongod.ensure(), "streams")
    await ensure_schema(store, retention=3600.0)
    async with scene(store, new_job, poll=0.1) as here:
        with here.feed.watch(here.job.id) as following:
            async with aclosing(following.news(here.load, None, NEVER)) as news:
                await here.say(0, "one")
                assert events_of(await take(news, 1)) == ["one"]
                pid = own_mongod.status().pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                waiting = asyncio.create_task(anext(news))
                await eventually(own_mongod.revive)
                await here.say(1, "two")
                async with asyncio.timeout(PATIENCE):
                    assert events_of([await waiting]) == ["two"]
                await here.complete(2)
                (over,) = await take(news, 1)
                assert isinstance(over, Over)
                assert over.whole
    await store.close()

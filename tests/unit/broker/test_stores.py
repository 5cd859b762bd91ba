"""Files, results, workers, the clockwork's leadership and the feed, each on the real database."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from bson import ObjectId

from broker.clockwork import Leadership, Reaper
from broker.crashes import CrashLog
from broker.database import Database, ensure_schema
from broker.errors import FileMissing
from broker.feed import JobFeed
from broker.files import CHUNK_SIZE, FileStore
from broker.job import NewJob, Status
from broker.queue import JobQueue
from broker.reader import JobReader
from broker.registry import ModelState, Registry
from broker.results import INLINE_LIMIT, pack, unpack
from tests.conditions import eventually
from tests.unit.broker.conftest import SETTINGS

Make = Callable[..., NewJob]
WORKER = "worker-1"


async def test_a_file_comes_back_as_it_was_and_is_gone_when_deleted(store: Database) -> None:
    files = FileStore(store)
    data = bytes(range(256)) * (CHUNK_SIZE // 256 * 2 + 1)
    stored = await files.put(ObjectId(), data, "application/pdf", "letter.pdf")
    assert (stored.size, stored.media_type, stored.name) == (len(data), "application/pdf", "letter.pdf")
    assert await files.get(stored.id) == data
    await files.delete(stored.id)
    await files.delete(stored.id)
    with pytest.raises(FileMissing):
        await files.get(stored.id)


async def test_only_old_files_that_no_job_refers_to_are_swept(store: Database, queue: JobQueue, new_job: Make) -> None:
    from dataclasses import replace

    files = FileStore(store)
    new = new_job()
    orphan, kept, result = [await files.put(new.id, b"x", "image/png") for _ in range(3)]
    nobodys = await files.put(ObjectId(), b"x", "image/png")
    await queue.submit(replace(new, file=kept))
    (job,) = (await queue.claim("alpha", WORKER)).jobs
    await queue.complete(job, {"result_file": result.id})
    assert await files.sweep() == 0, "all are younger than an hour"
    assert await files.sweep(grace=timedelta(seconds=-2)) == 2
    assert await files.get(kept.id) == await files.get(result.id) == b"x"
    for gone in (orphan, nobodys):
        with pytest.raises(FileMissing):
            await files.get(gone.id)


@pytest.mark.parametrize(("size", "inline"), [(10, True), (INLINE_LIMIT + 1, False)])
async def test_a_result_comes_back_whether_it_is_small_or_large(
    store: Database, queue: JobQueue, reader: JobReader, new_job: Make, size: int, inline: bool
) -> None:
    files = FileStore(store)
    await queue.submit(new_job())
    (job,) = (await queue.claim("alpha", WORKER)).jobs
    result = {"text": "ж$" * size}
    packed = await pack(files, job, result)
    assert ("result" in packed) == inline
    await queue.complete(job, packed)
    assert await unpack(files, await reader.get(str(job.id), None)) == result


async def test_a_worker_lives_as_long_as_it_is_heard_of(store: Database) -> None:
    registry = Registry(store)
    states = {"a.b": ModelState(True, "ready"), "c": ModelState(False, "no $GPU")}
    await registry.heartbeat("w1", "host", 7, states, draining=False)
    await registry.heartbeat("w2", "host", 8, states, draining=True)
    workers = {worker.id: worker for worker in await registry.live_workers()}
    assert workers["w1"].serves("a.b")
    assert not workers["w1"].serves("c")
    assert workers["w1"].models == states
    assert not workers["w2"].serves("a.b")
    await store.workers.update_one({"_id": "w1"}, [{"$set": {"last_seen": {"$subtract": ["$$NOW", 60_000]}}}])
    await registry.remove("w2")
    assert await registry.live_workers() == []


async def test_one_process_leads_and_the_next_takes_over_at_once_or_when_the_lease_ends(store: Database) -> None:
    first, second = Leadership(store), Leadership(store)
    await first.seek()
    assert await first.seek()
    assert not await second.seek()
    assert await first.seek()
    await first.resign()
    assert await second.seek()
    assert not await first.seek()
    await store.locks.update_one({}, [{"$set": {"expires_at": {"$subtract": ["$$NOW", 1]}}}])
    assert await first.seek()
    assert not await second.seek()
    lock = await store.locks.find_one({})
    assert lock is not None
    assert lock["epoch"] == 3


async def test_a_reaper_waits_for_one_whole_lease_before_it_acts(
    store: Database, queue: JobQueue, reader: JobReader, new_job: Make
) -> None:
    await queue.submit(new_job())
    (job,) = (await queue.claim("alpha", WORKER)).jobs

    async def lapsed() -> bool:
        return bool(await queue.expired())

    await eventually(lapsed)
    reaper = Reaper(queue, CrashLog(store), SETTINGS.lease)
    assert await reaper.tick() == 0, "it has only just begun to see the database answer"

    async def reaped() -> bool:
        return await reaper.tick() == 1

    await eventually(reaped)
    assert (await reader.get(str(job.id), None)).status is Status.QUEUED
    crashes = await CrashLog(store).newest()
    assert [(crash["code"], crash["outcome"]) for crash in crashes] == [("lease_expired", "queued")]


async def test_a_waiter_is_told_at_once_by_the_stream(
    store: Database, queue: JobQueue, reader: JobReader, new_job: Make
) -> None:
    feed = JobFeed(store, poll_interval=3600.0)
    running = asyncio.create_task(feed.run())
    submitted = await queue.submit(new_job())
    waiting = asyncio.create_task(feed.when_ended(submitted.id, lambda: reader.get(str(submitted.id), None), 30.0))
    await _stream_is_open(store, feed)
    (job,) = (await queue.claim("alpha", WORKER)).jobs
    await queue.complete(job, {"result": {}})
    assert (await waiting).status is Status.COMPLETED
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def _stream_is_open(store: Database, feed: JobFeed) -> None:
    """Sends jobs that end until one is noticed."""
    job_id = ObjectId()
    with feed.watch(job_id) as ending:

        async def noticed() -> bool:
            await store.jobs.update_one({"_id": job_id}, {"$set": {"status": "queued", "model": "none"}}, upsert=True)
            await store.jobs.update_one({"_id": job_id}, {"$set": {"status": "cancelled"}})
            return ending.event.is_set()

        await eventually(noticed)


async def test_a_job_that_ended_before_anybody_waited_is_not_waited_for(
    store: Database, queue: JobQueue, reader: JobReader, new_job: Make
) -> None:
    submitted = await queue.submit(new_job())
    await queue.cancel(submitted.id, None)
    feed = JobFeed(store, poll_interval=3600.0)
    job = await asyncio.wait_for(
        feed.when_ended(submitted.id, lambda: reader.get(str(submitted.id), None), 3600.0), timeout=10
    )
    assert job.status is Status.CANCELLED


async def test_a_closing_feed_sends_its_waiters_home(
    store: Database, queue: JobQueue, reader: JobReader, new_job: Make
) -> None:
    submitted = await queue.submit(new_job())
    feed = JobFeed(store, poll_interval=3600.0)

    async def load():  # type: ignore[no-untyped-def]
        asyncio.get_running_loop().call_soon(feed.close)
        return await reader.get(str(submitted.id), None)

    assert (await asyncio.wait_for(feed.when_ended(submitted.id, load, 3600.0), 10)).status is Status.QUEUED


async def test_the_schema_is_made_twice_and_takes_a_new_retention(store: Database) -> None:
    await ensure_schema(store, retention=7200.0)
    indexes = await store.jobs.index_information()
    assert indexes["ttl_finished_at"]["expireAfterSeconds"] == 7200 + 86_400

"""What the clockwork does: cleaning, rolling up, burying, and telling how it went."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker.cleanup import BATCH, Cleaner
from broker.clockwork import Clockwork, Leadership, Reaper, Task, bury_workers
from broker.crashes import CrashLog
from broker.database import Database
from broker.errors import FileMissing
from broker.files import FileStore
from broker.job import Failure, NewJob
from broker.pages import Pages
from broker.queue import JobQueue
from broker.registry import ModelState, Registry
from broker.usage import Usage
from tests.conditions import eventually

Make = Callable[..., NewJob]
WORKER = "worker-1"
DAY = 86_400.0


def cleaner(store: Database) -> Cleaner:
    files = FileStore(store)
    return Cleaner(store, files, Pages(store, files), 15 * DAY)


async def age(store: Database, field: str, seconds: float, **query: Any) -> None:
    """Makes documents older than they are, as a stand-in for waiting."""
    collection = store.crashes if field == "at" else store.jobs
    await collection.update_many(query, [{"$set": {field: {"$subtract": ["$$NOW", round(seconds * 1000)]}}}])


async def test_ended_jobs_go_with_their_files_when_their_time_has_passed_and_no_others(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    from dataclasses import replace

    files = FileStore(store)
    new = new_job("beta")
    file = await files.put(new.id, b"document", "application/pdf")
    old = await queue.submit(replace(new, file=file))
    young, waiting = await queue.submit(new_job("beta")), await queue.submit(new_job("beta"))
    for job in (await queue.claim("beta", WORKER, 2)).jobs:
        await queue.complete(job, {"result": {}})
    await age(store, "finished_at", 15 * DAY + 1, _id=old.id)
    assert await Cleaner(store, files, Pages(store, files), 15 * DAY).clean() == 1
    left = {job["_id"] async for job in store.handle.jobs.find()}
    assert left == {young.id, waiting.id}
    with pytest.raises(FileMissing):
        await files.get(file.id)


async def test_more_than_one_batch_is_cleaned_in_one_run(store: Database) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=30)
    await store.jobs.insert_many({"task": "chat", "finished_at": long_ago} for _ in range(2 * BATCH + 1))
    assert await cleaner(store).clean() == 2 * BATCH + 1


async def test_old_crashes_go_too(store: Database, queue: JobQueue, new_job: Make) -> None:
    crashes = CrashLog(store)
    await queue.submit(new_job())
    (job,) = (await queue.claim("alpha", WORKER)).jobs
    for _ in range(2):
        await crashes.add(job, Failure("x", "y"), "queued")
    first = await store.crashes.find_one({})
    assert first is not None
    await age(store, "at", 16 * DAY, _id=first["_id"])
    assert await cleaner(store).clean() == 1
    assert await store.handle.crashes.count_documents({}) == 1


async def test_usage_counts_each_hour_once_however_often_it_is_rolled_up(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    for _ in range(3):
        await queue.submit(new_job("beta"))
    jobs = (await queue.claim("beta", WORKER, 3)).jobs
    await queue.complete(jobs[0], {"result": {}})
    await queue.complete(jobs[1], {"result": {}})
    await queue.fail(jobs[2], Failure("x", "y", permanent=True))
    usage = Usage(store)
    await usage.roll_up()
    await usage.roll_up()
    rows = await usage.of("beta", datetime.now(UTC) - timedelta(hours=2))
    assert sum(row["completed"] for row in rows) == 2
    assert sum(row["failed"] for row in rows) == 1
    assert all(row["seconds"] >= 0 for row in rows)
    assert await usage.of("alpha", datetime.now(UTC) - timedelta(hours=2)) == []


async def test_a_worker_that_fell_silent_is_buried_once_and_logged(
    store: Database, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.clockwork.BURIAL", timedelta(seconds=0.2))
    registry, crashes = Registry(store), CrashLog(store)
    reaper = Reaper(queue, crashes, 3600.0)
    for worker in ("alive", "dead"):
        await registry.heartbeat(worker, "host", 7, {"m": ModelState(True, "ready")}, draining=False)
    await store.workers.update_one({"_id": "dead"}, [{"$set": {"last_seen": {"$subtract": ["$$NOW", 60_000]}}}])
    assert await bury_workers(registry, crashes, reaper) == 0, "while the database was away, everybody was silent"
    await reaper.tick()

    async def buried() -> bool:
        return await bury_workers(registry, crashes, reaper) == 1

    await eventually(buried)
    assert await bury_workers(registry, crashes, reaper) == 0
    (entry,) = await crashes.newest()
    assert (entry["code"], entry["worker"]) == ("worker_died", "dead")
    assert [worker.id for worker in await registry.live_workers()] == ["alive"]


async def test_the_leader_tells_how_its_tasks_went_and_followers_do_nothing(store: Database) -> None:
    counts = {"first": 0, "second": 0}

    def clockwork(name: str) -> tuple[Clockwork, Leadership]:
        async def count() -> int:
            counts[name] += 1
            return counts[name]

        leadership = Leadership(store)
        return Clockwork(leadership, [Task("count", 0.05, count)], lambda: None), leadership

    first, leads = clockwork("first")
    second, _ = clockwork("second")
    first.start()

    async def told() -> bool:
        lease = await leads.look()
        return lease is not None and bool(lease.get("runs"))

    await eventually(told)
    second.start()
    lease = await leads.look()
    assert lease is not None
    (run,) = lease["runs"]
    assert (run["name"], run["ok"]) == ("count", True)
    assert counts["second"] == 0
    await first.stop()

    async def taken_over() -> bool:
        return counts["second"] > 0

    await eventually(taken_over)
    await second.stop()
    await asyncio.sleep(0)

"""Which jobs owe somebody the news of their end, and for how long that is kept."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bson import ObjectId

from broker.cleanup import Cleaner
from broker.database import Database
from broker.deliveries import Attempt, Deliveries, Lane, NewDelivery, State
from broker.feed import JobFeed
from broker.files import FileStore
from broker.job import Failure, Job, NewJob
from broker.pages import Pages
from broker.queue import JobQueue
from tests.conditions import eventually

Make = Callable[..., NewJob]
DAY = 86_400.0
WEBHOOK = {"url": "https://example.com/", "events": ["job.completed"]}


async def complete(queue: JobQueue) -> Job:
    [job] = (await queue.claim("beta", "worker-1")).jobs
    assert await queue.complete(job, {"result": {}})
    return job


def told(job: Job) -> NewDelivery:
    return NewDelivery(job, "job.completed", "https://example.com/", "example.com", "{}")


async def age(store: Database, **query: Any) -> None:
    older = {"$subtract": ["$$NOW", round(16 * DAY * 1000)]}
    await store.jobs.update_many(query, [{"$set": {"finished_at": older}}])


def cleaner(store: Database) -> Cleaner:
    files = FileStore(store)
    return Cleaner(store, files, Pages(store, files), 15 * DAY)


async def test_a_job_owes_from_its_end_until_its_delivery_is_stored(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    deliveries = Deliveries(store)
    await queue.submit(replace(new_job("beta"), webhook=WEBHOOK))
    assert await deliveries.owing(10) == []
    await complete(queue)
    [job] = await deliveries.owing(10)
    assert job.webhook == WEBHOOK
    await deliveries.take_over([job], [told(job)])
    assert await deliveries.owing(10) == []
    assert await deliveries.subjects() == [job.subject]
    [lane] = await deliveries.lanes(job.subject)
    assert lane == (job.subject, "example.com")
    [delivery] = await deliveries.due(lane, 10, without=[])
    assert (delivery.id, delivery.job, delivery.tries) == (f"msg_{job.id}_completed", job.id, 0)
    assert job.finished_at is not None
    assert (delivery.until - job.finished_at).total_seconds() == DAY
    assert await deliveries.due(lane, 10, without=[delivery.id]) == []
    assert await deliveries.due(Lane(job.subject, "example.org"), 10, without=[]) == []


async def test_jobs_without_a_webhook_owe_nothing(store: Database, queue: JobQueue, new_job: Make) -> None:
    await queue.submit(new_job("beta"))
    await complete(queue)
    assert await Deliveries(store).owing(10) == []


async def test_the_feed_tells_at_once_of_each_end_that_somebody_may_wait_for(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    feed, heard = JobFeed(store, poll_interval=60.0), list[ObjectId]()
    feed.on_webhook = heard.append
    running = asyncio.create_task(feed.run())

    async def listens() -> bool:
        await queue.submit(replace(new_job("beta"), webhook=WEBHOOK))
        await complete(queue)
        return bool(heard)

    await eventually(listens)
    try:
        plain = await queue.submit(new_job("beta"))
        await complete(queue)
        completed = await queue.submit(replace(new_job("beta"), webhook=WEBHOOK))
        await complete(queue)
        failed = await queue.submit(replace(new_job("beta"), webhook=WEBHOOK))
        [job] = (await queue.claim("beta", "worker-1")).jobs
        await queue.fail(job, Failure("broken", "It is broken.", permanent=True))
        cancelled = await queue.submit(replace(new_job("beta"), webhook=WEBHOOK))
        await queue.cancel(cancelled.id, None)

        async def all_heard() -> bool:
            return cancelled.id in heard

        await eventually(all_heard)
        assert heard[-3:] == [completed.id, failed.id, cancelled.id]
        assert plain.id not in heard
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_job_is_kept_while_it_owes_and_goes_with_its_deliveries(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    deliveries = Deliveries(store)
    await queue.submit(replace(new_job("beta"), webhook=WEBHOOK))
    job = await complete(queue)
    await age(store, _id=job.id)
    assert await cleaner(store).clean() == 0
    [owing] = await deliveries.owing(10)
    await deliveries.take_over([owing], [told(owing)])
    [delivery] = await deliveries.of_job(job.id)
    await deliveries.end(delivery, State.DELIVERED, Attempt(200, None, 0.1))
    assert await cleaner(store).clean() == 1
    assert await deliveries.of_job(job.id) == []


async def test_what_is_still_to_be_told_outlives_its_job(store: Database, queue: JobQueue, new_job: Make) -> None:
    deliveries = Deliveries(store)
    await queue.submit(replace(new_job("beta"), webhook=WEBHOOK))
    job = await complete(queue)
    [owing] = await deliveries.owing(10)
    await deliveries.take_over([owing], [told(owing)])
    await age(store, _id=job.id)
    assert await cleaner(store).clean() == 1
    [lane] = await deliveries.lanes(job.subject)
    assert len(await deliveries.due(lane, 10, without=[])) == 1


async def test_whom_something_is_to_be_told_is_found_however_much_waits_for_one_of_them(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    """By what MongoDB looks at: some entries of its index for each lane."""
    deliveries = Deliveries(store)
    await queue.submit(replace(new_job("beta"), webhook=WEBHOOK))
    job = await complete(queue)
    crowd = [NewDelivery(replace(job, id=ObjectId()), "job.completed", "u", "slow", "{}") for _ in range(500)]
    others = [NewDelivery(replace(job, id=ObjectId(), subject=name), "job.failed", "u", "h", "{}") for name in "xyz"]
    await deliveries.take_over([], [*crowd, *others, told(job)])
    await store.handle.command("profile", 2)
    try:
        assert sorted(await deliveries.subjects()) == [job.subject, "x", "y", "z"]
        assert {lane.host for lane in await deliveries.lanes(job.subject)} == {"slow", "example.com"}
        asked = {"ns": f"{store.handle.name}.deliveries", "command.aggregate": "deliveries"}
        seen = await store.handle["system.profile"].find(asked).to_list()
    finally:
        await store.handle.command("profile", 0)
    assert len(seen) == 2
    assert max(step["keysExamined"] for step in seen) < 20
    # An end takes it out of its lane.
    [delivery] = await deliveries.of_job(job.id)
    await deliveries.end(delivery, State.DELIVERED, Attempt(200, None, 0.1))
    assert {lane.host for lane in await deliveries.lanes(job.subject)} == {"slow"}

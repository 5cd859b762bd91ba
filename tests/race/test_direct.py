"""Direct leases: who may be given one, and what becomes of those that their worker never hears of."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from bson import ObjectId, Timestamp

from broker.database import Database
from broker.feed import JobFeed
from broker.job import LEASE_EXPIRED, Failure, Job, Status, StoredFile
from broker.job_updates import after_end
from broker.queue import JobQueue
from broker.reader import JobReader
from broker.registry import ModelState, Worker
from tests.conditions import eventually
from tests.race.conftest import MODELS, SETTINGS, Make, PutBack, Stored

RESULT = {"result": {"text": "done"}}
FATAL = Failure("bad_input", "it can never work", permanent=True)


def live(name: str = "worker", *, ready: bool = True, draining: bool = False, silent: float = 0.0) -> Worker:
    """A worker that was heard of ``silent`` seconds ago."""
    seen = datetime.now(UTC) - timedelta(seconds=silent)
    return Worker(name, "here", 1, seen, seen, draining, {"alpha": ModelState(ready, "ready")})


def gateway(store: Database, *workers: Worker) -> JobQueue:
    """The queue of a process that knows these workers."""

    async def known() -> Sequence[Worker]:
        return workers

    return JobQueue(store, MODELS, SETTINGS, workers=known)


async def begun(queue: JobQueue, worker: str = "worker") -> Job:
    (job,) = await queue.direct_leases(worker, ["alpha"])
    return job


async def let_lapse(store: Database, job: Job) -> None:
    """It was stored so long ago that its worker should have confirmed the lease."""
    await store.jobs.update_one({"_id": job.id}, {"$set": {"seq": Timestamp(1, 1)}})


# ── Who gets one ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_job_that_finds_nobody_waiting_is_leased_to_an_idle_worker(
    store: Database, queue: JobQueue, new_job: Make, stored: Stored
) -> None:
    job = await gateway(store, live()).submit(new_job())
    assert (job.status, job.worker, job.attempts) == (Status.PROCESSING, "worker", 0)
    attempt = await begun(queue)
    assert (attempt.id, attempt.token, attempt.slot, attempt.attempts) == (job.id, job.token, job.slot, 1)
    assert await queue.complete(attempt, RESULT)
    after = await stored(job)
    assert (after["status"], after["attempts"], after["result"]) == ("completed", 1, RESULT["result"])
    assert not {"lane", "slot", "place"} & set(after)


async def test_nobody_who_waits_is_overtaken(store: Database, queue: JobQueue, new_job: Make) -> None:
    first = await queue.submit(new_job("bob", "low"))
    second = await gateway(store, live()).submit(new_job("ann", "high"))
    assert (first.status, second.status) == (Status.QUEUED, Status.QUEUED)


async def test_a_job_in_backoff_does_not_wait(store: Database, queue: JobQueue, new_job: Make) -> None:
    await queue.submit(new_job())
    (job,) = (await queue.claim("alpha", "worker")).jobs
    assert await queue.fail(job, Failure("oops", "it broke")) is Status.QUEUED
    assert (await gateway(store, live()).submit(new_job())).status is Status.PROCESSING


async def test_no_more_jobs_are_leased_than_there_are_slots(store: Database, queue: JobQueue, new_job: Make) -> None:
    gate = gateway(store, live())
    jobs = [await gate.submit(new_job()) for _ in range(5)]
    assert [job.status.value for job in jobs] == ["processing"] * 3 + ["queued"] * 2
    assert sorted(job.slot for job in jobs if job.slot is not None) == [0, 1, 2]
    assert (await queue.claim("alpha", "worker", 3)).jobs == []


async def test_of_two_gateways_that_mean_the_same_slot_one_queues(
    store: Database, new_job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.numbers.random.randrange", lambda _: 0)
    one, other = gateway(store, live()), gateway(store, live())
    await other.submit(new_job())  # it gets the last slot, and both believe that the one before is the next
    first, second = await one.submit(new_job()), await other.submit(new_job())
    assert (first.status, first.slot, second.status) == (Status.PROCESSING, 1, Status.QUEUED)
    for attempt in await one.direct_leases("worker", ["alpha"]):
        await one.complete(attempt, RESULT)
    # That slot is not taken for used for ever by the one who did not get it.
    jobs = [second, *[await JobQueue(store, MODELS, SETTINGS).submit(new_job()) for _ in range(2)]]
    assert [job.id for job in (await other.claim("alpha", "worker", 1)).jobs] == [second.id]
    assert len((await other.claim("alpha", "worker", 3)).jobs) == len(jobs) - 1


@pytest.mark.parametrize(
    "workers",
    [(), (live(ready=False),), (live(draining=True),)],
    ids=["nobody lives", "the model is not ready", "it drains"],
)
async def test_without_a_worker_that_takes_jobs_a_job_queues(
    store: Database, new_job: Make, workers: tuple[Worker, ...]
) -> None:
    assert (await gateway(store, *workers).submit(new_job())).status is Status.QUEUED


async def test_workers_take_turns_but_for_one_that_has_fallen_silent(store: Database, new_job: Make) -> None:
    gate = gateway(store, live("one"), live("dead", silent=4.0), live("two"))
    assert {(await gate.submit(new_job())).worker for _ in range(3)} == {"one", "two"}


async def test_the_end_of_a_job_frees_its_slot_for_the_next_lease(store: Database, new_job: Make) -> None:
    gate = gateway(store, live())
    jobs = [await gate.submit(new_job()) for _ in range(3)]
    for job in await gate.direct_leases("worker", ["alpha"]):
        await gate.complete(job, RESULT)
        gate.ended(job.id)
        gate.ended(job.id)  # told twice
    again = [await gate.submit(new_job()) for _ in range(3)]
    assert {job.slot for job in again} == {job.slot for job in jobs}
    assert {job.status for job in again} == {Status.PROCESSING}


# ── What the worker says of it ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_lease_that_was_never_confirmed_lapses_and_costs_no_attempt(
    store: Database, queue: JobQueue, new_job: Make, stored: Stored
) -> None:
    job = await gateway(store, live()).submit(new_job())
    late = await begun(queue)
    assert await queue.expired() == []
    await let_lapse(store, job)
    (found,) = await queue.expired()
    assert await queue.reap(found) is None
    after = await stored(job)
    assert (after["status"], after["attempts"], "errors" in after) == ("queued", 0, False)
    assert not await queue.complete(late, RESULT)
    (again,) = (await queue.claim("alpha", "another")).jobs
    assert (again.id, again.attempts) == (job.id, 1)


async def test_the_attempt_of_a_confirmed_lease_counts_when_its_worker_dies(
    store: Database, queue: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    job = await gateway(store, live()).submit(new_job())
    attempt = await begun(queue)
    assert await queue.renew({attempt.id: str(attempt.token)}) == set()
    assert await queue.direct_leases("worker", ["alpha"]) == []
    await put_back(job, "lease_expires_at")
    (found,) = await queue.expired()
    assert await queue.reap(found) is Status.QUEUED
    after = await stored(job)
    assert (after["attempts"], [error["code"] for error in after["errors"]]) == (1, [LEASE_EXPIRED.code])


async def test_a_confirmation_that_comes_before_the_reaper_writes_keeps_the_job(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    job = await gateway(store, live()).submit(new_job())
    attempt = await begun(queue)
    await let_lapse(store, job)
    (found,) = await queue.expired()
    await queue.renew({attempt.id: str(attempt.token)})
    assert await queue.reap(found) is None
    assert await queue.complete(attempt, RESULT)


async def test_progress_before_the_reaper_writes_does_not_make_the_attempt_uncounted(
    store: Database, queue: JobQueue, new_job: Make, stored: Stored
) -> None:
    job = await gateway(store, live()).submit(new_job())
    attempt = await begun(queue)
    await let_lapse(store, job)
    (found,) = await queue.expired()
    await queue.progress(attempt, 1, 2, "pages")
    assert await queue.reap(found) is None
    assert (await stored(job))["attempts"] == 1
    (found,) = await queue.expired()
    assert await queue.reap(found) is Status.QUEUED


async def test_a_worker_that_drains_hands_it_back_untouched(
    store: Database, queue: JobQueue, new_job: Make, stored: Stored
) -> None:
    job = await gateway(store, live()).submit(new_job())
    assert await queue.release(await begun(queue))
    after = await stored(job)
    assert (after["status"], after["attempts"], "slot" in after) == ("queued", 0, False)


async def test_one_that_was_cancelled_and_never_heard_of_frees_its_slot(
    store: Database, queue: JobQueue, new_job: Make, stored: Stored
) -> None:
    job = await gateway(store, live()).submit(new_job())
    await queue.cancel(job.id, "ann")
    assert (await stored(job))["slot"] == job.slot
    await let_lapse(store, job)
    (found,) = await queue.expired()
    assert await queue.reap(found) is None
    assert "slot" not in await stored(job)


# ── What is heard of it ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_only_its_worker_is_given_the_document(store: Database, new_job: Make) -> None:
    heard: dict[str, list[Job]] = {"worker": [], "another": []}
    feeds = {name: JobFeed(store, poll_interval=3600.0, worker=name) for name in heard}
    for name, feed in feeds.items():
        feed.on_leased = lambda document, name=name: heard[name].append(Job.from_document(document))  # type: ignore[misc]
    running = [asyncio.create_task(feed.run()) for feed in feeds.values()]
    gate, waiting = gateway(store, live()), JobQueue(store, MODELS, SETTINGS)

    async def all_told() -> bool:
        """Jobs that queue are news to everybody, so the streams have come so far."""
        for feed in feeds.values():
            feed.claimable.clear()
        await waiting.cancel((await waiting.submit(new_job())).id, None)
        await asyncio.wait([asyncio.create_task(feed.claimable.wait()) for feed in feeds.values()], timeout=1.0)
        return all(feed.claimable.is_set() for feed in feeds.values())

    await eventually(all_told)
    job = await gate.submit(new_job())
    await eventually(all_told)
    assert [told.id for told in heard["worker"]] == [job.id]
    assert heard["another"] == []
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize("outcome", ["completed", "failed", "after a renewal", "after a claim", "of a document"])
async def test_the_news_of_its_end_tells_what_a_read_would(
    store: Database, queue: JobQueue, new_job: Make, outcome: str
) -> None:
    """Where there is more to tell than the news has, there is nothing to go by, and the job is read."""
    feed = JobFeed(store, poll_interval=3600.0)
    running = asyncio.create_task(feed.run())
    gate = gateway(store, live())

    async def ended() -> bool:
        new = new_job()
        if outcome == "of a document":
            new = replace(new, file=StoredFile(ObjectId(), None, "image/png", 1))
        with feed.watch(new.id) as ending:
            job = await gate.submit(new)
            attempt = await begun(queue)
            if outcome == "after a renewal":
                await queue.renew({attempt.id: str(attempt.token)})
            elif outcome == "after a claim":
                await queue.release(attempt)
                (attempt,) = (await queue.claim(attempt.model, "another")).jobs
            elif outcome == "of a document":
                await queue.progress(attempt, 1, 2, "pages")
            if outcome == "failed":
                await queue.fail(attempt, FATAL)
            else:
                await queue.complete(attempt, RESULT)
            gate.ended(job.id)
            if not await ending.happens(1.0) or not ending.changes:
                return False  # the stream was not open yet, and a poll has no changes to tell
        read = await JobReader(store).get(str(job.id), None)
        more_to_tell = outcome in ("after a claim", "of a document")
        assert after_end(job, ending.changes) == (None if more_to_tell else read)
        return True

    await eventually(ended)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

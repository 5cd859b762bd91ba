import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from broker.database import Database
from broker.errors import JobFinished, JobNotFound, ModelNotFound, QueueFull
from broker.job import Failure, Job, NewJob, Status
from broker.lanes import Lanes
from broker.positions import Positions
from broker.queue import JobQueue
from broker.reader import Counts, JobReader
from tests.conditions import eventually
from tests.unit.broker.conftest import MODELS, SETTINGS

Make = Callable[..., NewJob]
WORKER = "worker-1"


@pytest.fixture
def queue(store: Database) -> JobQueue:
    """Whose leases end by hand, and not because a test is kept waiting."""
    return JobQueue(store, MODELS, SETTINGS.model_copy(update={"lease": 60.0}))


async def claimed(queue: JobQueue, model: str = "alpha") -> Job:
    (job,) = (await queue.claim(model, WORKER)).jobs
    return job


async def document(store: Database, job: Job) -> dict[str, Any]:
    # Not through a majority read, which is a moment behind the weaker writes.
    found = await store.handle.jobs.find_one({"_id": job.id})
    assert found is not None
    return found


async def expire(store: Database, job: Job) -> None:
    """Ends the job's lease by hand."""
    past = {"$dateSubtract": {"startDate": "$$NOW", "unit": "second", "amount": 1}}
    written = await store.jobs.update_one({"_id": job.id, "token": job.token}, [{"$set": {"lease_expires_at": past}}])
    assert written.modified_count == 1


async def test_a_job_goes_from_submit_to_result(queue: JobQueue, reader: JobReader, new_job: Make) -> None:
    submitted = await queue.submit(new_job(message="hello"))
    job = await claimed(queue)
    assert (job.id, job.status, job.attempts, job.worker) == (submitted.id, Status.PROCESSING, 1, WORKER)
    assert await queue.complete(job, {"result": {"text": "$NOW and {$set: 1}"}})
    ended = await reader.get(str(job.id), "ann")
    assert ended.status is Status.COMPLETED
    assert ended.result == {"text": "$NOW and {$set: 1}"}
    assert ended.finished_at is not None


async def test_higher_priority_first_then_the_oldest(queue: JobQueue, new_job: Make) -> None:
    order = [await queue.submit(new_job("beta", priority=p)) for p in ("low", "normal", "high", "normal", "high")]
    claims = [(await claimed(queue, "beta")).id for _ in order]
    assert claims == [order[i].id for i in (2, 4, 1, 3, 0)]


async def test_no_more_than_max_concurrent_are_processed_over_all_replicas(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    for _ in range(4):
        await queue.submit(new_job())
    other = JobQueue(store, MODELS, SETTINGS)
    claims = await asyncio.gather(*(q.claim("alpha", WORKER) for q in (queue, other) * 4))
    assert sum(len(claim.jobs) for claim in claims) == 2


async def test_a_place_frees_with_the_end_of_its_job(queue: JobQueue, new_job: Make) -> None:
    for _ in range(4):
        await queue.submit(new_job())
    with pytest.raises(QueueFull) as full:
        await queue.submit(new_job())
    assert full.value.retry_after > 0
    assert not await queue.has_room("alpha")
    await queue.complete(await claimed(queue), {"result": {}})
    assert await queue.has_room("alpha")
    await queue.submit(new_job())


async def test_a_full_queue_writes_nothing(store: Database, queue: JobQueue, new_job: Make) -> None:
    for _ in range(4):
        await queue.submit(new_job())
    with pytest.raises(QueueFull):
        await queue.submit(new_job())
    assert await store.jobs.count_documents({}) == 4


async def test_an_unknown_model_is_refused(queue: JobQueue, new_job: Make) -> None:
    with pytest.raises(ModelNotFound):
        await queue.submit(new_job("gamma"))


@pytest.mark.parametrize(("code", "waits"), [("backends_held_back", True), ("upstream_error", False)])
async def test_only_who_would_be_sent_away_again_waits_for_longer_than_the_longest_backoff(
    store: Database, queue: JobQueue, new_job: Make, code: str, waits: bool
) -> None:
    await queue.submit(new_job())
    job = await claimed(queue)
    assert await queue.fail(job, Failure(code, "later", retry_after=600.0)) is Status.QUEUED
    left = {"$dateDiff": {"startDate": "$$NOW", "endDate": "$not_before", "unit": "second"}}
    [seen] = await (await store.handle.jobs.aggregate([{"$project": {"left": left}}])).to_list()
    assert seen["left"] in (range(580, 601) if waits else range(-20, 2))


async def test_a_failed_attempt_comes_back_after_its_backoff_with_its_place_kept(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    await queue.submit(new_job())
    job = await claimed(queue)
    place = (await document(store, job))["place"]
    assert await queue.fail(job, Failure("oops", "it broke")) is Status.QUEUED
    assert (await queue.claim("alpha", WORKER)).jobs == [], "a job in backoff is out of the claim index"

    async def due() -> bool:
        return await queue.promote() == 1

    await eventually(due)
    again = await claimed(queue)
    assert (again.id, again.attempts, again.token != job.token) == (job.id, 2, True)
    assert (await document(store, job))["place"] == place
    assert [(e["attempt"], e["code"], e["worker"]) for e in again.errors] == [(1, "oops", WORKER)]


@pytest.mark.parametrize(("timeout", "status"), [(False, Status.FAILED), (True, Status.TIMEOUT)])
async def test_after_all_retries_a_job_ends_with_the_history_of_its_errors(
    queue: JobQueue, reader: JobReader, new_job: Make, timeout: bool, status: Status
) -> None:
    job = await queue.submit(new_job())
    for attempt in (1, 2, 3):
        outcome = await queue.fail(await claimed(queue), Failure("oops", f"attempt {attempt}", timeout=timeout))
        if attempt < 3:

            async def due() -> bool:
                return await queue.promote() == 1

            await eventually(due)
    assert outcome is status
    ended = await reader.get(str(job.id), None)
    assert ended.status is status
    assert [error["message"] for error in ended.errors] == ["attempt 1", "attempt 2", "attempt 3"]
    assert ended.error == {"code": "oops", "message": "attempt 3"}


async def test_a_permanent_failure_is_not_retried(queue: JobQueue, new_job: Make) -> None:
    await queue.submit(new_job())
    assert await queue.fail(await claimed(queue), Failure("bad", "no", permanent=True)) is Status.FAILED


async def test_a_released_job_has_consumed_no_attempt(queue: JobQueue, new_job: Make) -> None:
    await queue.submit(new_job())
    assert await queue.release(await claimed(queue))
    assert (await claimed(queue)).attempts == 1


async def test_an_expired_lease_is_reaped_with_its_attempt_counted(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    await queue.submit(new_job())
    job = await claimed(queue)
    assert await queue.expired() == []
    assert await queue.reap(job) is None, "the lease has not ended"
    await expire(store, job)
    assert [found.id for found in await queue.expired()] == [job.id]
    assert await queue.reap(job) is Status.QUEUED
    assert await queue.renew({job.id: str(job.token)}) == {job.id}


async def test_no_write_of_a_lost_attempt_lands(store: Database, queue: JobQueue, new_job: Make) -> None:
    await queue.submit(new_job())
    old = await claimed(queue)
    await expire(store, old)
    await queue.reap(old)

    async def due() -> bool:
        return await queue.promote() == 1

    await eventually(due)
    new = await claimed(queue)
    before = await document(store, new)
    assert not await queue.complete(old, {"result": {"text": "stale"}})
    assert await queue.fail(old, Failure("x", "stale")) is None
    assert not await queue.release(old)
    await queue.progress(old, 1, 2, "pages")
    await queue.free_slot(old)
    assert await queue.reap(old) is None
    assert await document(store, new) == before
    assert await queue.complete(new, {"result": {"text": "fresh"}})


async def test_a_late_renewal_counts_as_long_as_nobody_has_reaped_the_job(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    await queue.submit(new_job())
    job = await claimed(queue)
    await expire(store, job)
    assert await queue.renew({job.id: str(job.token)}) == set()
    assert await queue.reap(job) is None


async def test_a_write_repeated_after_an_unclear_outcome_knows_that_it_had_succeeded(
    queue: JobQueue, new_job: Make
) -> None:
    await queue.submit(new_job())
    job = await claimed(queue)
    assert await queue.complete(job, {"result": {"text": "once"}})
    assert await queue.complete(job, {"result": {"text": "twice"}})
    assert await queue.fail(job, Failure("x", "no", permanent=True)) is None


async def test_cancelling_a_queued_job_frees_its_place_at_once(queue: JobQueue, new_job: Make) -> None:
    jobs = [await queue.submit(new_job()) for _ in range(4)]
    await queue.cancel(jobs[0].id, "ann")
    await queue.cancel(jobs[0].id, "ann")
    await queue.submit(new_job())
    assert (await claimed(queue)).id == jobs[1].id


async def test_a_job_cancelled_while_processing_keeps_its_slot_until_its_worker_has_stopped(
    store: Database, queue: JobQueue, reader: JobReader, new_job: Make
) -> None:
    for _ in range(4):
        await queue.submit(new_job())
    first, _second = await claimed(queue), await claimed(queue)
    await queue.cancel(first.id, None)
    assert (await reader.get(str(first.id), None)).status is Status.CANCELLED
    assert not await queue.complete(first, {"result": {}})
    assert (await queue.claim("alpha", WORKER)).jobs == []
    await queue.free_slot(first)
    await claimed(queue)


async def test_the_slot_of_a_cancelled_job_whose_worker_died_frees_with_its_lease(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    await queue.submit(new_job())
    job = await claimed(queue)
    await queue.cancel(job.id, "ann")
    await expire(store, job)
    for found in await queue.expired():
        await queue.reap(found)
    after = await document(store, job)
    assert after["status"] == "cancelled"
    assert "slot" not in after


async def test_only_ones_own_jobs_can_be_cancelled_and_no_finished_ones(queue: JobQueue, new_job: Make) -> None:
    await queue.submit(new_job())
    job = await claimed(queue)
    with pytest.raises(JobNotFound):
        await queue.cancel(job.id, "bob")
    await queue.complete(job, {"result": {}})
    with pytest.raises(JobFinished):
        await queue.cancel(job.id, "ann")


async def test_an_ended_job_holds_neither_place_nor_slot_nor_lease(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    await queue.submit(new_job())
    job = await claimed(queue)
    await queue.complete(job, {"result": {}})
    ended = await document(store, job)
    assert not {"place", "slot", "lease_expires_at", "lane", "not_before"} & set(ended)
    assert ended["token"] == job.token


async def test_the_claim_reads_no_more_than_it_takes_however_deep_the_queue_is(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    for subject in ("ann", "bob"):
        for _ in range(9):
            await queue.submit(new_job("beta", subject=subject))
    commands = await profiled(store, lambda: queue.claim("beta", WORKER, 3))
    heads = next(c for c in commands if c["command"].get("aggregate") == "jobs")
    assert "DISTINCT_SCAN" in heads["planSummary"]
    assert heads["docsExamined"] == 2
    assert heads["keysExamined"] <= 4
    lanes = [c for c in commands if "lane" in c["command"].get("filter", {})]
    assert {c["planSummary"].split()[0] for c in lanes} == {"IXSCAN"}
    assert sum(c["docsExamined"] for c in lanes) <= 3 + 2 * 2


async def test_what_one_client_alone_has_waiting_is_claimed_by_one_look(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    for _ in range(9):
        await queue.submit(new_job("beta"))
    commands = await profiled(store, lambda: queue.claim("beta", WORKER, 3))
    assert not [c for c in commands if "aggregate" in c["command"]]
    assert sum(c.get("docsExamined", 0) for c in commands if "lane" in c["command"].get("filter", {})) == 3


async def profiled(store: Database, action: Callable[[], Awaitable[object]]) -> list[dict[str, Any]]:
    """What MongoDB's profiler saw of ``action``."""
    await store.handle.command("profile", 2)
    await action()
    await store.handle.command("profile", 0)
    return await store.handle["system.profile"].find({"ns": f"{store.handle.name}.jobs"}).to_list()


async def test_positions_are_the_order_of_claims(store: Database, queue: JobQueue, new_job: Make) -> None:
    positions = Positions(store, Lanes(store, {}, SETTINGS.aging))
    jobs = [await queue.submit(new_job("beta", priority=p)) for p in ("normal", "low", "high", "normal")]
    assert [(await positions.of(job)).number for job in jobs] == [2, 4, 1, 3]
    assert (await positions.of(await claimed(queue, "beta"))).number is None


async def test_lists_show_ones_own_jobs_newest_first_by_pages(
    queue: JobQueue, reader: JobReader, new_job: Make
) -> None:
    mine = [await queue.submit(new_job("beta")) for _ in range(5)]
    await queue.submit(new_job("beta", subject="bob"))
    first = await reader.newest("ann", limit=3)
    assert [job.id for job in first.jobs] == [job.id for job in reversed(mine[2:])]
    from bson import ObjectId

    rest = await reader.newest("ann", limit=3, before=ObjectId(first.cursor))
    assert [job.id for job in rest.jobs] == [mine[1].id, mine[0].id]
    assert rest.cursor is None
    assert len((await reader.newest(None)).jobs) == 6


async def test_counts_tell_how_jobs_ended(queue: JobQueue, reader: JobReader, new_job: Make) -> None:
    for _ in range(4):
        await queue.submit(new_job())
    await queue.complete(await claimed(queue), {"result": {}})
    await queue.fail(await claimed(queue), Failure("x", "y", permanent=True))
    await claimed(queue)

    async def seen_by_a_majority() -> bool:
        return (await reader.counts("alpha")).processing == 1

    await eventually(seen_by_a_majority)
    assert await reader.counts("alpha") == Counts(1, 1, 1, 1, timeout=0, cancelled=0)
    assert await reader.open_counts("alpha") == (1, 1)
    assert await reader.open_counts("beta") == (0, 0)


async def test_another_subjects_job_does_not_exist(queue: JobQueue, reader: JobReader, new_job: Make) -> None:
    job = await queue.submit(new_job())
    with pytest.raises(JobNotFound):
        await reader.get(str(job.id), "bob")
    with pytest.raises(JobNotFound):
        await reader.get("nonsense", "ann")

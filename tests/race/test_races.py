"""Two that meet on one job, each meeting arranged: who has read what, and who writes first, is never left to chance."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, tzinfo
from typing import Self

import pytest
from pymongo.errors import AutoReconnect

from broker.database import Database
from broker.errors import IdempotencyConflict, JobFinished, QueueFull
from broker.job import LEASE_EXPIRED, Failure, Idempotency, Job, Status
from broker.queue import JobQueue
from tests.race.conftest import HOUR, MODELS, SETTINGS, Make, PutBack, Stored
from tests.race.doubles import PausedLanes, UnreliableDatabase

OOPS = Failure("oops", "it broke")
FATAL = Failure("bad_input", "it can never work", permanent=True)
RESULT = {"result": {"text": "done"}}
LATE = {"result": {"text": "late"}}


async def claimed(queue: JobQueue, most: int = 1) -> list[Job]:
    return (await queue.claim("alpha", "worker", most)).jobs


async def lapsed(queue: JobQueue, new_job: Make, put_back: PutBack) -> tuple[Job, Job]:
    """A job whose lease has ended, as its worker knows it, and as the reaper has just read it."""
    await queue.submit(new_job())
    (job,) = await claimed(queue)
    await put_back(job, "lease_expires_at")
    (found,) = await queue.expired()
    return job, found


def paused(store: Database) -> tuple[JobQueue, PausedLanes]:
    lanes = PausedLanes(store, SETTINGS.aging)
    return JobQueue(store, MODELS, SETTINGS, lanes), lanes


# ── A worker and the reaper ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_result_that_comes_before_the_reaper_writes_stands(
    queue: JobQueue, rival: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    job, found = await lapsed(queue, new_job, put_back)
    assert await queue.complete(job, RESULT)
    assert await rival.reap(found) is None
    after = await stored(job)
    assert (after["status"], after["attempts"], after["result"]) == ("completed", 1, RESULT["result"])
    assert "errors" not in after


async def test_a_result_that_comes_after_the_reaper_counts_for_nothing(
    queue: JobQueue, rival: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    job, found = await lapsed(queue, new_job, put_back)
    assert await rival.reap(found) is Status.QUEUED
    before = await stored(job)
    assert not await queue.complete(job, LATE)
    assert await stored(job) == before
    assert (before["status"], before["attempts"]) == ("queued", 1)
    assert [error["code"] for error in before["errors"]] == [LEASE_EXPIRED.code]


async def test_a_late_result_does_not_replace_that_of_the_next_attempt(
    queue: JobQueue, rival: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    job, found = await lapsed(queue, new_job, put_back)
    await rival.reap(found)
    await put_back(job, "not_before")
    await rival.promote()
    (again,) = await claimed(rival)
    assert not await queue.complete(job, LATE)
    assert await rival.complete(again, RESULT)
    assert not await queue.complete(job, LATE)
    assert (await stored(job))["result"] == RESULT["result"]


async def test_a_late_failure_does_not_pass_for_that_of_the_next_attempt(
    queue: JobQueue, rival: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    job, found = await lapsed(queue, new_job, put_back)
    await rival.reap(found)
    await put_back(job, "not_before")
    await rival.promote()
    (again,) = await claimed(rival)
    assert await rival.fail(again, FATAL) is Status.FAILED
    before = await stored(job)
    assert await queue.fail(job, FATAL) is None
    assert await stored(job) == before


async def test_of_a_result_and_a_reaper_at_once_one_wins_and_the_other_is_told(
    queue: JobQueue, rival: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    job, found = await lapsed(queue, new_job, put_back)
    completed, reaped = await asyncio.gather(queue.complete(job, RESULT), rival.reap(found))
    after = await stored(job)
    assert (after["status"] == "completed", after["status"] == "queued") == (completed, reaped is Status.QUEUED)
    assert completed != (reaped is not None)


async def test_a_renewal_that_comes_before_the_reaper_writes_keeps_the_job(
    queue: JobQueue, rival: JobQueue, new_job: Make, put_back: PutBack
) -> None:
    job, found = await lapsed(queue, new_job, put_back)
    assert await queue.renew({job.id: str(job.token)}) == set()
    assert await rival.reap(found) is None
    assert await queue.complete(job, RESULT)


async def test_a_renewal_that_comes_after_the_reaper_is_told_that_the_job_is_lost(
    queue: JobQueue, rival: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    job, found = await lapsed(queue, new_job, put_back)
    await rival.reap(found)
    before = await stored(job)
    assert await queue.renew({job.id: str(job.token)}) == {job.id}
    assert await stored(job) == before


async def test_a_renewal_of_an_old_attempt_does_not_prolong_the_lease_of_the_next(
    queue: JobQueue, rival: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    await queue.submit(new_job())
    (old,) = await claimed(queue)
    await queue.release(old)
    (new,) = await claimed(rival)
    await put_back(new, "lease_expires_at")
    before = await stored(new)
    assert await queue.renew({old.id: str(old.token)}) == {old.id}
    assert await stored(new) == before


async def test_a_renewal_does_not_give_up_a_job_that_was_claimed_this_moment(queue: JobQueue, new_job: Make) -> None:
    """The claim is ``w:1``: for up to a tenth of a second no majority read sees it."""
    lost, kept = await queue.submit(new_job()), await queue.submit(new_job())
    (first,) = await claimed(queue)
    await queue.cancel(lost.id, None)
    (second,) = await claimed(queue)
    held = {job.id: str(job.token) for job in (first, second)}
    assert second.id == kept.id
    assert await queue.renew(held) == {lost.id}


async def test_two_reapers_that_have_read_the_same_job_count_one_attempt(
    queue: JobQueue, rival: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    job, found = await lapsed(queue, new_job, put_back)
    (seen_too,) = await rival.expired()
    outcomes = await asyncio.gather(queue.reap(found), rival.reap(seen_too))
    assert sorted(outcomes, key=str) == [None, Status.QUEUED]
    assert len((await stored(job))["errors"]) == 1


@pytest.mark.parametrize("hours", [-2, 2])
async def test_a_worker_whose_clock_is_wrong_has_a_lease_as_long_as_any(
    queue: JobQueue, rival: JobQueue, new_job: Make, stored: Stored, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(hours=hours)

    monkeypatch.setattr("broker.job_updates.datetime", Wrong)
    right = time.time()
    monkeypatch.setattr("time.time", lambda: right + hours * HOUR)
    await queue.submit(new_job())
    (job,) = await claimed(queue)
    for _ in range(2):
        assert await rival.expired() == []
        assert await rival.reap(job) is None
        assert 0 < (await stored(job))["lease_expires_at"].timestamp() - right - HOUR < 60
        assert await queue.renew({job.id: str(job.token)}) == set()
    await queue.fail(job, OOPS)
    assert 0 < (await stored(job))["not_before"].timestamp() - right < HOUR + 60
    assert await rival.promote() == 0


# ── A client and a worker ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_cancel_before_the_result_is_final_and_the_slot_waits_for_the_worker(
    queue: JobQueue, rival: JobQueue, new_job: Make, stored: Stored
) -> None:
    await queue.submit(new_job())
    (job,) = await claimed(queue)
    await rival.cancel(job.id, "ann")
    assert not await queue.complete(job, LATE)
    assert await queue.fail(job, OOPS) is None
    assert not await queue.release(job)
    after = await stored(job)
    assert (after["status"], after["slot"]) == ("cancelled", job.slot)
    assert not {"result", "place"} & set(after)
    await queue.free_slot(job)
    assert "slot" not in await stored(job)


async def test_an_old_attempt_does_not_free_the_slot_of_the_one_that_was_cancelled(
    queue: JobQueue, rival: JobQueue, new_job: Make, stored: Stored
) -> None:
    await queue.submit(new_job())
    (old,) = await claimed(queue)
    await queue.release(old)
    (new,) = await claimed(rival)
    await rival.cancel(new.id, None)
    await queue.free_slot(old)
    assert (await stored(new))["slot"] == new.slot


async def test_the_slot_of_a_job_that_is_still_processed_is_not_freed(
    queue: JobQueue, new_job: Make, stored: Stored
) -> None:
    """The reaper goes by the slots: without its own the job would be found by nobody."""
    await queue.submit(new_job())
    (job,) = await claimed(queue)
    before = await stored(job)
    await queue.free_slot(job)
    assert await stored(job) == before


async def test_a_result_before_the_cancel_is_final(
    queue: JobQueue, rival: JobQueue, new_job: Make, stored: Stored
) -> None:
    await queue.submit(new_job())
    (job,) = await claimed(queue)
    assert await queue.complete(job, RESULT)
    before = await stored(job)
    with pytest.raises(JobFinished):
        await rival.cancel(job.id, "ann")
    assert await stored(job) == before


async def test_of_a_cancel_and_a_result_at_once_one_wins_and_the_other_is_told(
    queue: JobQueue, rival: JobQueue, new_job: Make, stored: Stored
) -> None:
    await queue.submit(new_job())
    (job,) = await claimed(queue)
    completed, cancelled = await asyncio.gather(
        queue.complete(job, RESULT), rival.cancel(job.id, "ann"), return_exceptions=True
    )
    assert (await stored(job))["status"] == ("completed" if completed else "cancelled")
    assert isinstance(cancelled, JobFinished) if completed else cancelled is None


async def test_a_job_cancelled_between_a_claimers_read_and_its_write_is_not_claimed(
    store: Database, queue: JobQueue, new_job: Make, stored: Stored
) -> None:
    submitted = await queue.submit(new_job())
    late, lanes = paused(store)
    claim = asyncio.create_task(claimed(late))
    await lanes.has_read()
    await queue.cancel(submitted.id, "ann")
    lanes.may_write.set()
    assert await claim == []
    after = await stored(submitted)
    assert (after["status"], after["attempts"], "slot" in after) == ("cancelled", 0, False)


# ── Two claimers ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_two_claimers_that_have_read_the_same_job_one_gets_it(
    store: Database, queue: JobQueue, new_job: Make, stored: Stored
) -> None:
    submitted = await queue.submit(new_job())
    claimers = [paused(store) for _ in range(2)]
    claims = [asyncio.create_task(claimed(late)) for late, _ in claimers]
    for _, lanes in claimers:
        await lanes.has_read()
    for _, lanes in claimers:
        lanes.may_write.set()
    (job,) = [job for jobs in await asyncio.gather(*claims) for job in jobs]
    after = await stored(submitted)
    assert (after["token"], after["slot"], after["attempts"]) == (job.token, job.slot, 1)


async def test_a_claimer_that_was_beaten_to_one_job_of_its_round_gets_the_others(
    store: Database, queue: JobQueue, new_job: Make, stored: Stored
) -> None:
    jobs = [await queue.submit(new_job()) for _ in range(3)]
    late, lanes = paused(store)
    claim = asyncio.create_task(claimed(late, 2))
    await lanes.has_read()
    (first,) = await claimed(queue)
    lanes.may_write.set()
    got = await claim
    assert first.id == jobs[0].id
    assert {job.id for job in got} <= {job.id for job in jobs[1:]}
    assert got
    for job in (first, *got):
        after = await stored(job)
        assert (after["token"], after["slot"], after["status"]) == (job.token, job.slot, "processing")


async def test_a_claimer_paused_while_the_job_went_through_other_hands_knows_which_attempt_is_its_own(
    store: Database, queue: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    """The bound on attempts is counted by what the worker was told: a number of before would allow one too many."""
    await queue.submit(new_job())
    late, lanes = paused(store)
    claim = asyncio.create_task(claimed(late))
    await lanes.has_read()
    (job,) = await claimed(queue)
    assert await queue.fail(job, OOPS) is Status.QUEUED
    await put_back(job, "not_before")
    await queue.promote()
    lanes.may_write.set()
    got = await claim or await claimed(queue)
    assert [again.attempts for again in got] == [2]
    assert [error["code"] for error in got[0].errors] == ["oops"]
    assert await queue.fail(got[0], OOPS) is Status.FAILED, "the last of 1 + 1 attempts"
    assert len((await stored(job))["errors"]) == 2


async def test_a_slot_taken_between_a_claimers_choice_and_its_write_costs_only_the_job_that_was_to_have_it(
    store: Database, queue: JobQueue, new_job: Make, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [await queue.submit(new_job()) for _ in range(3)]
    late, lanes = paused(store)
    monkeypatch.setattr("broker.numbers.random.randrange", lambda _: 0)
    claim = asyncio.create_task(claimed(late, 3))
    await lanes.has_read()  # it means to give its three jobs the slots 2, 1 and 0
    monkeypatch.setattr("broker.numbers.random.randrange", lambda _: 1)
    (first,) = await claimed(queue)
    assert (first.id, first.slot) == (jobs[0].id, 0)
    lanes.may_write.set()
    got = await claim
    assert [(job.id, job.slot) for job in got] == [(jobs[1].id, 1)], "the claim before the taken slot is found"
    assert (await stored(got[0]))["token"] == got[0].token
    assert (await stored(jobs[2]))["status"] == "queued"
    (last,) = await claimed(late)
    assert (last.id, last.slot) == (jobs[2].id, 2)


async def test_a_claimer_that_believes_in_slots_that_are_all_taken_gets_nothing(
    queue: JobQueue, rival: JobQueue, new_job: Make, stored: Stored
) -> None:
    assert await claimed(rival, 3) == [], "it has seen that all slots are free"
    jobs = [await queue.submit(new_job()) for _ in range(4)]
    assert len(await claimed(queue, 3)) == 3
    assert await claimed(rival, 3) == []
    assert (await stored(jobs[3]))["status"] == "queued"


# ── Two gateways ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_two_gateways_that_believe_in_the_same_last_place_one_gets_it(
    store: Database, queue: JobQueue, rival: JobQueue, new_job: Make
) -> None:
    third = JobQueue(store, MODELS, SETTINGS)
    for _ in range(5):
        await third.submit(new_job())
    assert await queue.has_room("alpha")
    assert await rival.has_room("alpha")
    outcomes = await asyncio.gather(*(each.submit(new_job()) for each in (queue, rival)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)] == [QueueFull]
    assert sorted([document["place"] async for document in store.jobs.find()]) == list(range(6))


async def test_a_gateway_whose_places_were_all_taken_by_another_finds_the_one_that_is_free(
    store: Database, queue: JobQueue, rival: JobQueue, new_job: Make
) -> None:
    assert await queue.has_room("alpha")
    jobs = [await rival.submit(new_job()) for _ in range(6)]
    await rival.cancel(jobs[3].id, "ann")
    await queue.submit(new_job())
    assert sorted([d["place"] async for d in store.jobs.find({"status": "queued"})]) == list(range(6))


async def test_the_same_idempotency_key_at_two_gateways_at_once_is_one_job(
    store: Database, queue: JobQueue, rival: JobQueue, new_job: Make
) -> None:
    key = Idempotency("k", "digest")
    jobs = await asyncio.gather(*(each.submit(new_job(idempotency=key)) for each in (queue, rival)))
    assert jobs[0].id == jobs[1].id
    assert await store.jobs.count_documents({}) == 1
    with pytest.raises(IdempotencyConflict):
        await rival.submit(new_job(idempotency=Idempotency("k", "another")))
    for _ in range(5):
        await rival.submit(new_job())


# ── A drain and a retry ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_drain_during_a_retry_gives_no_attempt_back(
    queue: JobQueue, new_job: Make, put_back: PutBack, stored: Stored
) -> None:
    await queue.submit(new_job())
    (job,) = await claimed(queue)
    assert await queue.fail(job, OOPS) is Status.QUEUED
    before = await stored(job)
    assert not await queue.release(job)
    assert await stored(job) == before
    await put_back(job, "not_before")
    await queue.promote()
    (again,) = await claimed(queue)
    assert not await queue.release(job), "nor from the next attempt"
    assert (await stored(job))["token"] == again.token
    assert again.attempts == 2


async def test_a_failure_that_comes_after_the_drain_counts_for_nothing(
    queue: JobQueue, rival: JobQueue, new_job: Make, stored: Stored
) -> None:
    await queue.submit(new_job())
    (job,) = await claimed(queue)
    assert await queue.release(job)
    assert await queue.fail(job, OOPS) is None
    (again,) = await claimed(rival)
    assert await queue.fail(job, OOPS) is None
    assert (again.attempts, again.errors) == (1, ())
    assert (await stored(job))["status"] == "processing"


# ── An answer that is lost ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_submit_that_is_repeated_after_a_lost_answer_is_one_job(store: Database, new_job: Make) -> None:
    queue = JobQueue(UnreliableDatabase(store.client, store.handle, ["insert_many"]), MODELS, SETTINGS)
    new = new_job()
    with pytest.raises(AutoReconnect):
        await queue.submit(new)
    async with asyncio.timeout(10):
        job = await queue.submit(new)
    assert (job.id, job.status) == (new.id, Status.QUEUED)
    assert await store.jobs.count_documents({}) == 1
    for _ in range(5):
        await queue.submit(new_job())
    with pytest.raises(QueueFull):
        await queue.submit(new_job())


async def test_the_jobs_of_a_claim_whose_answer_was_lost_are_found_by_their_token(
    store: Database, new_job: Make, stored: Stored
) -> None:
    queue = JobQueue(UnreliableDatabase(store.client, store.handle, ["update_many"]), MODELS, SETTINGS)
    jobs = [await queue.submit(new_job()) for _ in range(2)]
    got = await claimed(queue, 3)
    assert {job.id for job in got} == {job.id for job in jobs}
    for job in got:
        after = await stored(job)
        assert (after["token"], after["slot"], after["attempts"]) == (job.token, job.slot, job.attempts)
        assert await queue.complete(job, RESULT)


Write = Callable[[JobQueue, Job], Awaitable[object]]


@pytest.mark.parametrize(
    ("method", "write", "answer", "status"),
    [
        ("bulk_write", lambda queue, job: queue.complete(job, RESULT), True, "completed"),
        ("update_one", lambda queue, job: queue.fail(job, FATAL), Status.FAILED, "failed"),
        ("update_one", lambda queue, job: queue.cancel(job.id, "ann"), None, "cancelled"),
    ],
)
async def test_a_final_write_repeated_after_a_lost_answer_knows_that_it_had_succeeded(
    store: Database, new_job: Make, stored: Stored, method: str, write: Write, answer: object, status: str
) -> None:
    queue = JobQueue(UnreliableDatabase(store.client, store.handle, [method]), MODELS, SETTINGS)
    await queue.submit(new_job())
    (job,) = await claimed(queue)
    with pytest.raises(AutoReconnect):
        await write(queue, job)
    before = await stored(job)
    assert before["status"] == status
    assert await write(queue, job) == answer
    assert await stored(job) == before


async def test_a_retry_repeated_after_a_lost_answer_consumes_no_second_attempt(
    store: Database, new_job: Make, stored: Stored
) -> None:
    queue = JobQueue(UnreliableDatabase(store.client, store.handle, ["update_one"]), MODELS, SETTINGS)
    await queue.submit(new_job())
    (job,) = await claimed(queue)
    with pytest.raises(AutoReconnect):
        await queue.fail(job, OOPS)
    before = await stored(job)
    assert await queue.fail(job, OOPS) is None
    assert await stored(job) == before
    assert (before["status"], before["attempts"], len(before["errors"])) == ("queued", 1, 1)


async def test_results_written_together_are_each_told_of_their_own_fate(
    queue: JobQueue, rival: JobQueue, new_job: Make, stored: Stored
) -> None:
    for _ in range(3):
        await queue.submit(new_job())
    jobs = await claimed(queue, 3)
    await rival.cancel(jobs[1].id, None)
    assert await asyncio.gather(*(queue.complete(job, RESULT) for job in jobs)) == [True, False, True]
    assert [(await stored(job))["status"] for job in jobs] == ["completed", "cancelled", "completed"]

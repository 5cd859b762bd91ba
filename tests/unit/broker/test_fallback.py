"""Jobs that another model takes over, on a real mongod."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from bson import ObjectId

from broker.database import Database
from broker.errors import QueueFull
from broker.fallback import another_may
from broker.job import BatchLine, Failure, Idempotency, Job, NewJob, Status
from broker.queue import JobQueue
from broker.reader import JobReader
from config import ModelSettings, QueueSettings, SimulatorSettings
from tests.conditions import eventually

SETTINGS = QueueSettings(lease=0.3, poll_interval=0.05, retry_backoff=0.02, retry_backoff_max=0.04)
AWAY = Failure("upstream_unreachable", "The upstream of first is away.")


def model(**entry: Any) -> SimulatorSettings:
    return SimulatorSettings.model_validate(
        {"task": "chat", "engine": "simulator", "max_concurrent": 1, "max_waiting": 0, "max_retries": 0, **entry}
    )


MODELS: dict[str, ModelSettings] = {
    "first": model(fallbacks=["second", "third"], timeout=30),
    "second": model(fallbacks=["last"], timeout=20, max_retries=2),
    "third": model(timeout=40),
    "last": model(),
    "lone": model(),
}


@pytest.fixture
def queue(store: Database) -> JobQueue:
    return JobQueue(store, MODELS, SETTINGS)


def new(model: str = "first", **more: Any) -> NewJob:
    return NewJob("chat", model, "ann", {"messages": []}, **more)


async def claimed(queue: JobQueue, model: str) -> Job:
    [job] = (await queue.claim(model, "worker")).jobs
    return job


async def full(queue: JobQueue, *models: str) -> None:
    for name in models:
        await queue.submit(new(name))


async def test_each_fallback_is_followed_by_its_own(queue: JobQueue) -> None:
    assert queue.fallbacks.of("first") == ("second", "last", "third")
    assert queue.fallbacks.of("lone") == ()


async def test_a_job_that_its_model_cannot_do_goes_on_with_the_next(queue: JobQueue, reader: JobReader) -> None:
    job = await queue.submit(new())
    assert await queue.fail(await claimed(queue, "first"), AWAY) is Status.QUEUED
    moved = await reader.get(str(job.id), None)
    assert (moved.model, moved.status, moved.attempts, moved.max_retries) == ("second", Status.QUEUED, 0, 2)
    assert (moved.timeout, moved.fallbacks) == (20, ("last", "third"))
    [hop] = moved.hops
    assert (hop["model"], hop["code"], hop["message"]) == ("first", AWAY.code, AWAY.message)
    assert [(error["code"], error["attempt"]) for error in moved.errors] == [(AWAY.code, 1)]
    assert (moved.token, moved.slot, moved.worker) == (None, None, None)
    again = await claimed(queue, "second")
    assert (again.id, again.attempts) == (job.id, 1)
    assert await queue.complete(again, {"result": {}})
    assert [hop["to"] for hop in await queue.fallbacks.counts()] == ["second"]


async def test_it_leaves_its_place_and_takes_one_there(queue: JobQueue) -> None:
    await queue.submit(new())
    await queue.fail(await claimed(queue, "first"), AWAY)
    assert (await queue.submit(new("first"))).model == "first"
    await full(queue, "last")
    with pytest.raises(QueueFull, match="of second"):
        await queue.submit(new("second"))


async def test_it_is_tried_as_often_as_its_own_model_says_first(
    queue: JobQueue, reader: JobReader, store: Database
) -> None:
    await queue.submit(new("second"))
    for attempt in (1, 2, 3):
        job = await claimed(queue, "second")
        assert job.attempts == attempt
        assert await queue.fail(job, AWAY) is Status.QUEUED
        stored = await reader.get(str(job.id), None)
        assert stored.model == ("second" if attempt < 3 else "last")
        await _promoted(queue, store)


async def _promoted(queue: JobQueue, store: Database) -> None:
    async def done() -> bool:
        await queue.promote()
        return await store.jobs.count_documents({"lane": {"$exists": True}}) > 0

    await eventually(done)


async def test_one_that_is_known_to_be_away_is_not_tried_again(queue: JobQueue, reader: JobReader) -> None:
    job = await queue.submit(new("second"))
    held_back = Failure("backends_held_back", "left alone")
    assert await queue.fail(await claimed(queue, "second"), held_back) is Status.QUEUED
    assert (await reader.get(str(job.id), None)).model == "last"


async def test_a_full_fallback_is_left_out(queue: JobQueue, reader: JobReader) -> None:
    await full(queue, "second", "last")
    job = await queue.submit(new())
    await queue.fail(await claimed(queue, "first"), AWAY)
    moved = await reader.get(str(job.id), None)
    assert (moved.model, moved.fallbacks, moved.timeout) == ("third", (), 40)


async def test_lines_of_batches_take_no_more_than_their_share_of_another_model(store: Database) -> None:
    """Half of the four places that it has."""
    models = {"first": model(fallbacks=["second"], max_concurrent=4), "second": model(max_concurrent=4)}
    queue, batch = JobQueue(store, models, SETTINGS), ObjectId()
    lines = [await queue.submit(new(batch=BatchLine(batch, number))) for number in range(3)]
    plain = await queue.submit(new())
    for job in (await queue.claim("first", "worker", 4)).jobs:
        await queue.fail(job, AWAY)
    reader = JobReader(store)
    went = [(await reader.get(str(line.id), None)).model for line in lines]
    assert sorted(went) == ["first", "second", "second"]
    assert (await reader.get(str(plain.id), None)).model == "second"


async def test_where_no_fallback_has_a_place_it_fails_as_it_would_have(queue: JobQueue, reader: JobReader) -> None:
    await full(queue, "second", "last", "third")
    job = await queue.submit(new())
    assert await queue.fail(await claimed(queue, "first"), AWAY) is Status.FAILED
    failed = await reader.get(str(job.id), None)
    assert (failed.model, failed.hops, failed.error) == ("first", (), {"code": AWAY.code, "message": AWAY.message})


@pytest.mark.parametrize(
    ("failure", "may"),
    [
        (AWAY, True),
        (Failure("attempt_timeout", "long", timeout=True), True),
        (Failure("lease_expired", "gone"), True),
        (Failure("upstream_refused_key", "key", permanent=True), True),
        (Failure("engine_rejected_input", "no", permanent=True, details={"details": {"status": 404}}), True),
        (Failure("engine_rejected_input", "no", permanent=True, details={"details": {"status": 400}}), False),
        (Failure("engine_rejected_input", "no", permanent=True), False),
        (Failure("file_missing", "gone", permanent=True), False),
    ],
)
async def test_what_is_wrong_with_the_input_is_wrong_for_every_model(
    queue: JobQueue, reader: JobReader, failure: Failure, may: bool
) -> None:
    assert another_may(failure) == may
    job = await queue.submit(new())
    status = await queue.fail(await claimed(queue, "first"), failure)
    assert status is (Status.QUEUED if may else Status.FAILED)
    assert (await reader.get(str(job.id), None)).model == ("second" if may else "first")


async def test_a_time_that_the_client_has_set_holds_for_the_next_model_too(queue: JobQueue, reader: JobReader) -> None:
    job = await queue.submit(new(timeout=5.0))
    await queue.fail(await claimed(queue, "first"), AWAY)
    assert (await reader.get(str(job.id), None)).timeout == 5


async def test_what_only_the_first_model_understands_does_not_go_along(queue: JobQueue, reader: JobReader) -> None:
    payload = {"messages": [], "seed": 1, "adapter": "a", "upstream_model": "u", "modelKey": "k"}
    job = await queue.submit(replace(new(), payload=payload, fingerprint="of first"))
    await queue.fail(await claimed(queue, "first"), AWAY)
    moved = await reader.get(str(job.id), None)
    assert (moved.payload, moved.fingerprint) == ({"messages": [], "seed": 1}, None)
    await full(queue, "first")
    spilled = await queue.submit(replace(new(), payload=payload, fingerprint="of first"))
    assert (spilled.model, spilled.payload, spilled.fingerprint) == ("last", {"messages": [], "seed": 1}, None)


async def test_a_lease_that_ends_for_the_last_time_moves_the_job_too(queue: JobQueue, reader: JobReader) -> None:
    job = await queue.submit(new())
    await claimed(queue, "first")

    async def reaped() -> bool:
        return [await queue.reap(job) for job in await queue.expired()] == [Status.QUEUED]

    await eventually(reaped)
    moved = await reader.get(str(job.id), None)
    assert (moved.model, [hop["code"] for hop in moved.hops]) == ("second", ["lease_expired"])


async def test_whose_lease_was_lost_moves_nothing(queue: JobQueue, store: Database) -> None:
    await queue.submit(new())
    attempt = await claimed(queue, "first")
    assert await queue.fail(attempt, AWAY) is Status.QUEUED
    before = await store.jobs.find_one({"_id": attempt.id})
    assert await queue.fail(attempt, AWAY) is None
    assert await queue.fail(attempt, Failure("bad", "bad", permanent=True)) is None
    assert await store.jobs.find_one({"_id": attempt.id}) == before


# ── At the submit ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_job_without_a_place_is_submitted_to_the_next_model(queue: JobQueue, reader: JobReader) -> None:
    await full(queue, "first", "second")
    assert await queue.has_room("first")
    job = await queue.submit(new())
    stored = await reader.get(str(job.id), None)
    assert (stored.model, stored.fallbacks, stored.attempts) == ("last", ("third",), 0)
    assert [(hop["model"], hop["code"]) for hop in stored.hops] == [("first", "queue_full"), ("second", "queue_full")]
    assert stored == job
    await queue.submit(new())
    assert not await queue.has_room("first")
    with pytest.raises(QueueFull, match="of first"):
        await queue.submit(new())


async def test_each_hop_on_the_way_to_a_place_is_counted(queue: JobQueue) -> None:
    await full(queue, "first", "second")
    await queue.submit(new())
    counts = {(hop["from"], hop["to"], hop["code"]): hop["count"] for hop in await queue.fallbacks.counts()}
    assert counts == {("first", "second", "queue_full"): 1, ("second", "last", "queue_full"): 1}


async def test_the_same_key_finds_the_job_where_it_went(queue: JobQueue) -> None:
    await full(queue, "first")
    key = Idempotency("k", "digest")
    job = await queue.submit(new(idempotency=key))
    assert job.model == "second"
    assert (await queue.submit(new(idempotency=key))).id == job.id


async def test_retries_wait_for_as_long_as_the_upstream_asks(store: Database, new_job: Callable[..., NewJob]) -> None:
    models = {"alpha": model(max_retries=1)}
    queue = JobQueue(store, models, QueueSettings(lease=1, retry_backoff=0.01, retry_backoff_max=30))
    await queue.submit(new_job())
    attempt = await claimed(queue, "alpha")
    assert await queue.fail(attempt, Failure("upstream_error", "429", retry_after=20.0)) is Status.QUEUED
    [left] = await (
        await store.jobs.aggregate(
            [{"$project": {"left": {"$dateDiff": {"startDate": "$$NOW", "endDate": "$not_before", "unit": "second"}}}}]
        )
    ).to_list()
    assert 18 <= left["left"] <= 20

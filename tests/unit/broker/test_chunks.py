"""Pieces of answers as they are stored."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect, PyMongoError
from pymongo.write_concern import WriteConcern

from broker.chunks import KEPT, Chunk, Chunks
from broker.database import Database
from broker.job import Job, NewJob
from broker.queue import JobQueue

MakeJob = Callable[..., NewJob]
TOKEN = "a" * 32


def piece(job: Job, first: int, *events: str, token: str = TOKEN) -> tuple[Job, Chunk]:
    return job, Chunk(job.id, token, first, events)


async def told(chunks: Chunks, job: Job, first: int, token: str = TOKEN) -> list[tuple[int, list[str]]]:
    return [(chunk.first, list(chunk.events)) for chunk in await chunks.read(job.id, token, first)]


@pytest.fixture
async def job(queue: JobQueue, new_job: MakeJob) -> Job:
    return await queue.submit(replace(new_job("beta"), stream=True, timeout=30.0))


async def test_what_was_stored_is_read_in_order_from_any_event_on(store: Database, job: Job) -> None:
    chunks = Chunks(store)
    await chunks.add([piece(job, 3, "d", "e"), piece(job, 0, "a", "b", "c")])
    for first in range(6):
        events = [event for _, some in await told(chunks, job, first) for event in some]
        assert events == list("abcde"[first:])
    assert await told(chunks, job, 1) == [(1, ["b", "c"]), (3, ["d", "e"])]


async def test_a_write_may_be_repeated_alone_or_with_new_ones(store: Database, job: Job) -> None:
    chunks = Chunks(store)
    await chunks.add([piece(job, 0, "a")])
    await chunks.add([piece(job, 0, "a"), piece(job, 1, "b")])
    assert await told(chunks, job, 0) == [(0, ["a"]), (1, ["b"])]


async def test_attempts_and_jobs_do_not_mix(store: Database, queue: JobQueue, new_job: MakeJob, job: Job) -> None:
    chunks, other = Chunks(store), await queue.submit(replace(new_job("beta"), stream=True))
    await chunks.add([piece(job, 0, "mine"), piece(job, 0, "anew", token="b" * 32), piece(other, 0, "another's")])
    assert await told(chunks, job, 0) == [(0, ["mine"])]
    assert await told(chunks, job, 0, "b" * 32) == [(0, ["anew"])]
    assert await told(chunks, other, 0) == [(0, ["another's"])]


async def test_of_much_text_only_some_is_read_at_a_time(store: Database, job: Job) -> None:
    chunks = Chunks(store)
    await chunks.add([piece(job, number, "x" * 100_000) for number in range(10)])
    found = await chunks.read(job.id, TOKEN, 0)
    assert [chunk.first for chunk in found] == [0, 1, 2]
    assert [chunk.first for chunk in await chunks.read(job.id, TOKEN, 3)] == [3, 4, 5]


async def test_of_many_chunks_only_some_are_read_at_a_time(store: Database, job: Job) -> None:
    chunks = Chunks(store)
    await chunks.add([piece(job, number, "x") for number in range(250)])
    assert len(await chunks.read(job.id, TOKEN, 0)) == 100
    assert len(await chunks.read(job.id, TOKEN, 200)) == 50


async def test_what_is_left_after_a_gap_is_not_told(store: Database, job: Job) -> None:
    """The early pieces of an answer are gone sooner than the late ones."""
    chunks = Chunks(store)
    await chunks.add([piece(job, 2 * number, "a", "b") for number in range(5)])
    await store.chunks.delete_many({"_id.last": {"$in": [1, 5]}})
    assert await told(chunks, job, 0) == []
    assert await told(chunks, job, 1) == []
    assert await told(chunks, job, 2) == [(2, ["a", "b"])]
    assert await told(chunks, job, 7) == [(7, ["b"]), (8, ["a", "b"])]


async def test_they_go_an_hour_after_the_latest_end_of_their_attempt(store: Database, job: Job) -> None:
    before = datetime.now(UTC)
    await Chunks(store).add([piece(job, 0, "a")])
    document = await store.chunks.find_one({})
    assert document is not None
    left = document["expires_at"] - before
    assert abs(left - timedelta(seconds=KEPT + 30.0)) < timedelta(seconds=20)
    index = (await store.chunks.index_information())["ttl_expires_at"]
    assert index["expireAfterSeconds"] == 0


async def test_what_is_no_repetition_is_not_hidden(store: Database, job: Job) -> None:
    """A document that is too large is refused, and whoever wrote it hears so."""
    with pytest.raises(PyMongoError):
        await Chunks(store).add([piece(job, 0, "x" * 17_000_000)])


async def test_what_has_no_majority_yet_does_not_count_as_stored(store: Database, job: Job) -> None:
    chunks = Chunks(store)
    # There is no second member to have it.
    chunks._chunks = store.chunks.with_options(write_concern=WriteConcern(2, wtimeout=50))
    with pytest.raises(AutoReconnect):
        await chunks.add([piece(job, 0, "a")])
    # Nor where it is there already.
    with pytest.raises(AutoReconnect):
        await chunks.add([piece(job, 0, "a"), piece(job, 1, "b")])


def test_a_chunk_without_what_is_known_of_it_begins_there() -> None:
    chunk = Chunk(ObjectId(), TOKEN, 4, ["e", "f", "g"])
    assert (chunk.end, chunk.after(2), chunk.after(4)) == (7, chunk, chunk)
    assert (chunk.after(5).first, chunk.after(5).events, chunk.after(5).end) == (5, ["f", "g"], 7)

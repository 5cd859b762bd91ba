"""Batches and uploaded files as they are stored, and how long they are kept."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId

from broker.batch import Batch, BatchStatus, Counts, Fault, NewBatch, Output, line_job_id
from broker.batches import Batches
from broker.cleanup import Cleaner
from broker.database import Database
from broker.errors import (
    BatchFinished,
    BatchNotFound,
    FileInUse,
    FileMissing,
    FileNotFound,
    FileTooSlow,
    IdempotencyConflict,
    TooManyBatches,
)
from broker.files import FileStore
from broker.job import BatchLine, Idempotency, NewJob, Priority, Status
from broker.pages import Pages
from broker.queue import JobQueue
from broker.uploads import Uploads

DAY = 86_400.0
RETENTION = 15 * DAY
WORKER = "worker-1"


@pytest.fixture
def files(store: Database) -> FileStore:
    return FileStore(store)


@pytest.fixture
def uploads(store: Database, files: FileStore) -> Uploads:
    return Uploads(store, files)


@pytest.fixture
def batches(store: Database) -> Batches:
    return Batches(store)


def cleaner(store: Database, files: FileStore) -> Cleaner:
    return Cleaner(store, files, Pages(store, files), RETENTION)


async def put(files: FileStore, owner: ObjectId, data: bytes = b"{}\n") -> ObjectId:
    async with files.writer(owner, "in.jsonl") as stream:
        await stream.write(data)
    return stream.id


async def made(
    batches: Batches, uploads: Uploads, files: FileStore, *, total: int | None = None, subject: str = "ann"
) -> Batch:
    """A batch, in progress where it has a ``total``."""
    upload_id = ObjectId()
    upload = await uploads.add(upload_id, subject, "in.jsonl", "batch", 3, await put(files, upload_id))
    batch = await batches.create(NewBatch(subject, "user", "/v1/chat/completions", upload.id, upload.content, DAY))
    if total is not None:
        assert await batches.begin(batch, "beta", total)
    return await batches.get(batch.public_id, None)


async def let_in(queue: JobQueue, batch: Batch, *lines: int) -> None:
    for line in lines:
        new = NewJob("chat", "beta", batch.subject, {}, priority=Priority.LOW, batch=BatchLine(batch.id, line))
        await queue.submit(replace(new, id=line_job_id(batch.id, line)))


async def finish(queue: JobQueue, most: int = 1) -> None:
    for job in (await queue.claim("beta", WORKER, most)).jobs:
        await queue.complete(job, {"result": {"choices": []}})


async def end(batches: Batches, batch: Batch, outputs: dict[str, Output]) -> None:
    assert await batches.cancel(batch.public_id, None)
    assembled = await batches.assembled(replace(batch, ending=BatchStatus.CANCELLED), outputs)
    assert assembled is not None
    assert await batches.end(assembled)


async def older(store: Database, collection: str, field: str, seconds: float = RETENTION + 60) -> None:
    update: list[Any] = [{"$set": {field: {"$subtract": ["$$NOW", round(seconds * 1000)]}}}]
    await store.handle[collection].update_many({field: {"$exists": True}}, update)


async def test_a_line_that_is_let_in_twice_is_one_job(
    store: Database, queue: JobQueue, batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files, total=5)
    await let_in(queue, batch, 0, 1)
    await let_in(queue, batch, 0, 1, 2)
    assert await store.jobs.count_documents({}) == 3
    assert sorted(await batches.inside("beta")) == [(batch.id, 0), (batch.id, 1), (batch.id, 2)]


async def test_counts_are_what_the_jobs_say_however_far_they_are_settled(
    queue: JobQueue, batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files, total=5)
    assert await batches.counts(batch) == Counts(5, 0, 0)
    await let_in(queue, batch, 0, 1, 2, 3)
    await finish(queue, 2)
    await queue.cancel(line_job_id(batch.id, 3), None)
    assert await batches.counts(batch) == Counts(5, 2, 1)
    now_settled = await batches.settle(batch)
    assert (now_settled.settled, now_settled.completed, now_settled.failed) == (2, 2, 0)
    for seen in (batch, now_settled, await batches.get(batch.public_id, None)):
        assert await batches.counts(seen) == Counts(5, 2, 1)


async def test_who_is_late_advances_nothing(
    queue: JobQueue, batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files, total=5)
    assert await batches.advance(batch, 3, 300)
    assert not await batches.advance(batch, 1, 100)
    found = await batches.get(batch.public_id, None)
    assert (found.fed, found.offset) == (3, 300)
    await let_in(queue, batch, 0, 1)
    await finish(queue, 2)
    await batches.settle(found)
    late = await batches.settle(replace(found, settled=0))
    assert late.settled == 0
    assert (await batches.get(batch.public_id, None)).settled == 2


async def test_a_batch_is_closed_when_all_its_lines_have_ended_and_not_before(
    queue: JobQueue, batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files, total=2)
    await let_in(queue, batch, 0, 1)
    await finish(queue)
    assert not await batches.close(await batches.settle(batch))
    await finish(queue)
    settled = await batches.settle(await batches.get(batch.public_id, None))
    assert await batches.close(settled)
    assert not await batches.close(settled)
    assert (await batches.get(batch.public_id, None)).status is BatchStatus.FINALIZING


async def test_only_the_first_who_has_put_the_answers_together_is_heard(
    batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files, total=2)
    await batches.cancel(batch.public_id, None)
    first, second = (Output(ObjectId(), ObjectId(), 1, lines) for lines in (2, 1))
    assert await batches.assembled(batch, {"output": first})
    assert await batches.assembled(batch, {"output": second}) is None
    found = await batches.get(batch.public_id, None)
    assert found.outputs == {"output": first}
    assert await batches.end(found)
    assert not await batches.end(found)
    ended = await batches.get(batch.public_id, None)
    assert (ended.status, ended.completed, ended.failed) == (BatchStatus.CANCELLED, 2, 0)
    assert await batches.open() == []


async def test_a_cancelled_batch_does_not_begin_nor_fail_nor_expire_any_more(
    store: Database, batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files)
    await batches.cancel(batch.public_id, None)
    await older(store, "batches", "expires_at")
    await batches.expire()
    assert not await batches.begin(batch, "beta", 3)
    assert not await batches.reject(batch, [Fault("empty_file", "It holds nothing.")])
    assert (await batches.get(batch.public_id, None)).status is BatchStatus.CANCELLING


async def test_a_batch_that_has_ended_cannot_be_cancelled(batches: Batches, uploads: Uploads, files: FileStore) -> None:
    batch = await made(batches, uploads, files)
    assert await batches.reject(batch, [Fault("empty_file", "It holds nothing.", 3, "body")])
    with pytest.raises(BatchFinished):
        await batches.cancel(batch.public_id, None)
    found = await batches.get(batch.public_id, None)
    assert found.faults == (Fault("empty_file", "It holds nothing.", 3, "body"),)


async def test_another_subjects_batch_is_not_there(batches: Batches, uploads: Uploads, files: FileStore) -> None:
    batch = await made(batches, uploads, files)
    for asked in (batches.get, batches.cancel):
        with pytest.raises(BatchNotFound):
            await asked(batch.public_id, "eve")
    assert (await batches.get(batch.public_id, "ann")).id == batch.id


async def test_jobs_of_a_batch_are_cancelled_with_what_the_batch_says(
    store: Database, queue: JobQueue, batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch, other = await made(batches, uploads, files, total=3), await made(batches, uploads, files, total=3)
    await let_in(queue, batch, 0, 1, 2)
    await let_in(queue, other, 0)
    await finish(queue)
    assert await queue.cancel_batch(batch.id, "batch_expired", "Its time is over.") == 2
    jobs = await batches.jobs(batch, 0, 10)
    assert [job.status for _, job in sorted(jobs.items())] == [Status.COMPLETED, Status.CANCELLED, Status.CANCELLED]
    assert jobs[1].error == {"code": "batch_expired", "message": "Its time is over."}
    assert await batches.inside("beta") == [(other.id, 0)]


async def test_a_refused_line_has_failed_once_however_often_it_is_refused(
    queue: JobQueue, batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files, total=1)
    new = NewJob("chat", "a model of old", "ann", {}, batch=BatchLine(batch.id, 0), id=line_job_id(batch.id, 0))
    for _ in range(2):
        await queue.submit_refused(new, "model_not_found", "There is no such model.")
    assert await batches.counts(batch) == Counts(1, 0, 1)
    assert await batches.inside("a model of old") == []


async def test_files_of_open_batches_cannot_be_deleted(batches: Batches, uploads: Uploads, files: FileStore) -> None:
    batch = await made(batches, uploads, files, total=1)
    name = f"file-{batch.input}"
    with pytest.raises(FileInUse):
        await uploads.delete(name, "ann")
    await end(batches, batch, {})
    with pytest.raises(FileNotFound):
        await uploads.delete(name, "eve")
    await uploads.delete(name, "ann")
    with pytest.raises(FileMissing):
        await files.get(batch.content)


async def test_a_file_that_was_not_finished_is_not_there(store: Database, files: FileStore) -> None:
    async def broken_off() -> None:
        async with files.writer(ObjectId(), "in.jsonl") as stream:
            await stream.write(b"x" * 2**20)
            assert await store.handle["files.chunks"].count_documents({}) > 0
            raise EOFError

    with pytest.raises(EOFError):
        await broken_off()
    for collection in ("files.files", "files.chunks"):
        assert await store.handle[collection].count_documents({}) == 0


async def test_a_file_that_was_swept_while_it_came_says_so(files: FileStore) -> None:
    """And is not taken for one that was lost."""

    async def slow() -> None:
        async with files.writer(ObjectId(), "in.jsonl") as stream:
            await stream.write(b"x" * 2**20)
            await files.sweep(timedelta(seconds=-5))

    with pytest.raises(FileTooSlow):
        await slow()


async def test_a_damaged_file_counts_as_lost(store: Database, files: FileStore) -> None:
    content = await put(files, ObjectId(), b"x" * 2**20)
    await store.handle["files.chunks"].delete_one({"files_id": content, "n": 1})
    with pytest.raises(FileMissing):
        await files.get(content)
    with pytest.raises(FileMissing):
        [chunk async for chunk in files.chunks(content)]


async def test_the_same_key_finds_the_batch_of_before(batches: Batches, uploads: Uploads, files: FileStore) -> None:
    first = await made(batches, uploads, files)
    new = NewBatch("ann", "user", first.endpoint, first.input, first.content, DAY, idempotency=Idempotency("k", "a"))
    created = await batches.create(new)
    assert created.id == new.id
    again = replace(new, id=ObjectId())
    assert (await batches.create(again)).id == new.id
    with pytest.raises(IdempotencyConflict):
        await batches.create(replace(again, idempotency=Idempotency("k", "b")))
    other = replace(again, subject="eve")
    assert (await batches.create(other)).id == other.id
    for _ in range(2):
        unkeyed = replace(new, id=ObjectId(), idempotency=None)
        assert (await batches.create(unkeyed)).id == unkeyed.id


async def test_a_subject_has_only_so_many_batches_that_have_not_ended(
    batches: Batches, uploads: Uploads, files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.batches.MOST_OPEN", 2)
    first = await made(batches, uploads, files)
    new = NewBatch("ann", "user", first.endpoint, first.input, first.content, DAY, idempotency=Idempotency("k", "a"))
    await batches.create(new)
    assert (await batches.create(replace(new, id=ObjectId()))).id == new.id, "it was there before"
    one_more = replace(new, id=ObjectId(), idempotency=Idempotency("other", "a"))
    for more in (one_more, replace(one_more, idempotency=None)):
        with pytest.raises(TooManyBatches):
            await batches.create(more)
    with pytest.raises(IdempotencyConflict):
        await batches.create(replace(one_more, idempotency=Idempotency("k", "b")))
    assert (await made(batches, uploads, files, subject="eve")).subject == "eve"
    await end(batches, first, {})
    assert (await batches.create(one_more)).id == one_more.id


async def test_batches_that_have_ended_and_still_hold_places_are_known(
    batches: Batches, uploads: Uploads, files: FileStore, queue: JobQueue
) -> None:
    batch, other = await made(batches, uploads, files, total=1), await made(batches, uploads, files, total=1)
    for one in (batch, other):
        line = BatchLine(one.id, 0)
        await queue.submit(NewJob("chat", "beta", "ann", {}, batch=line, id=line_job_id(one.id, 0)))
    assert await batches.haunting() == []
    await end(batches, batch, {})
    assert await batches.haunting() == [batch.id]
    await queue.cancel_batch(batch.id, "cancelled", "It is over.")
    assert await batches.haunting() == []


async def test_a_file_is_read_from_anywhere(files: FileStore) -> None:
    data = bytes(range(256)) * 6000
    content = await put(files, ObjectId(), data)
    for start in (0, 1, 524_287, 524_288, 524_289, len(data) - 1, len(data)):
        assert b"".join([chunk async for chunk in files.chunks(content, start)]) == data[start:]


async def test_answers_are_not_swept_before_they_are_known(
    batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files, total=1)
    await batches.cancel(batch.public_id, None)
    content, loser = await put(files, batch.id), await put(files, batch.id)
    await batches.assembled(batch, {"output": Output(ObjectId(), content, 3, 1)})
    assert await files.sweep(timedelta(seconds=-5)) == 1
    assert await files.get(content) == b"{}\n"
    with pytest.raises(FileMissing):
        await files.get(loser)


async def test_files_that_no_batch_needs_go_after_the_retention(
    store: Database, batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files, total=1)
    lone, young = ObjectId(), ObjectId()
    content = await put(files, lone)
    await uploads.add(lone, "ann", "lone.jsonl", "batch", 3, content)
    await older(store, "uploads", "created_at")
    await uploads.add(young, "ann", "young.jsonl", "batch", 3, await put(files, young))
    await cleaner(store, files).clean()
    assert {upload.id for upload in (await uploads.listed("ann"))[0]} == {batch.input, young}
    with pytest.raises(FileMissing):
        await files.get(content)


async def test_a_batch_goes_with_its_files_after_the_retention_of_its_end(
    store: Database, batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files, total=1)
    answers = Output(ObjectId(), await put(files, batch.id), 3, 1)
    await end(batches, batch, {"output": answers})
    await uploads.add(answers.id, "ann", "out.jsonl", "batch_output", 3, answers.content)
    await older(store, "uploads", "created_at")
    await cleaner(store, files).clean()
    assert len((await uploads.listed("ann"))[0]) == 2
    await older(store, "batches", "ended_at")
    await cleaner(store, files).clean()
    assert await batches.listed(None, None, 10) == ([], False)
    assert await uploads.listed("ann") == ([], False)
    for content in (batch.content, answers.content):
        with pytest.raises(FileMissing):
            await files.get(content)


async def test_jobs_of_a_batch_stay_until_it_has_ended(
    store: Database, queue: JobQueue, batches: Batches, uploads: Uploads, files: FileStore
) -> None:
    batch = await made(batches, uploads, files, total=2)
    await let_in(queue, batch, 0)
    await queue.submit(NewJob("chat", "beta", "ann", {}))
    await finish(queue, 2)
    await older(store, "jobs", "finished_at")
    await older(store, "batches", "created_at")
    await cleaner(store, files).clean()
    assert (await batches.jobs(batch, 0, 2)).keys() == {0}
    assert await store.jobs.count_documents({}) == 1
    await end(batches, batch, {})
    await cleaner(store, files).clean()
    assert await store.jobs.count_documents({}) == 0

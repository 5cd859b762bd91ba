"""Checkpoints of documents, and results that are used again."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId

from broker.cleanup import Cleaner
from broker.database import Database
from broker.errors import FileMissing
from broker.files import FileStore
from broker.job import Failure, Job, NewJob, Status
from broker.lanes import Lanes
from broker.pages import Pages, PageState
from broker.queue import JobQueue
from broker.results import unpack
from broker.reuse import Reuse, fingerprint
from tests.conditions import eventually
from tests.unit.broker.test_upkeep import DAY, age

Make = Callable[..., NewJob]
WORKER = "worker-1"


@pytest.fixture
def files(store: Database) -> FileStore:
    return FileStore(store)


@pytest.fixture
def pages(store: Database, files: FileStore) -> Pages:
    return Pages(store, files)


def record(number: int, text: str = "text", status: str = "completed") -> dict[str, Any]:
    return {"number": number, "status": status, "text": text, "markdown": text, "blocks": []}


async def until_states(pages: Pages, job: ObjectId, states: list[PageState]) -> None:
    """A majority read is a moment behind the marks."""

    async def are_seen() -> bool:
        return await pages.states(job) == states

    await eventually(are_seen)


async def exists(files: FileStore, file_id: ObjectId) -> bool:
    try:
        await files.get(file_id)
    except FileMissing:
        return False
    return True


async def test_a_page_that_has_ended_stays_as_it_is_whoever_ends_it_again(pages: Pages, files: FileStore) -> None:
    job = ObjectId()
    await pages.begin(job, 1, "first")
    await pages.begin(job, 1, "second")
    await until_states(pages, job, [PageState(1, "processing", 2)])
    first, second = [(await files.put(job, data, "image/png", "a.png")).id for data in (b"first", b"second")]
    assert await pages.end(job, 1, record(1, "first"), {"a.png": first})
    assert await pages.end(job, 1, record(1, "first"), {"a.png": first}), "the same write again is no other end"
    assert not await pages.end(job, 1, record(1, "second"), {"a.png": second})
    await pages.begin(job, 1, "third")
    page = await pages.get(job, 1)
    assert page is not None
    assert (page.state, page.record["text"], page.files) == ("completed", "first", {"a.png": first})
    assert (await exists(files, first), await exists(files, second)) == (True, False)


async def test_of_ends_at_the_same_moment_one_stands_for_all_who_read(pages: Pages) -> None:
    job = ObjectId()
    ends = [pages.end(job, 1, record(1, f"{index}"), {"x": ObjectId()}) for index in range(8)]
    assert sum(await asyncio.gather(*ends)) == 1
    assert len(await pages.states(job)) == 1


async def test_pages_are_read_in_order_whatever_the_order_of_their_ends(pages: Pages) -> None:
    job = ObjectId()
    for number in (3, 1, 12, 2):
        await pages.end(job, number, record(number), {})
    await pages.begin(job, 7, WORKER)
    assert [page.number async for page in pages.each(job)] == [1, 2, 3, 12]
    ended = {number: PageState(number, "completed", 0) for number in (1, 2, 3, 12)}
    await until_states(pages, job, [ended[1], ended[2], ended[3], PageState(7, "processing", 1), ended[12]])
    summaries = await pages.summaries(job)
    assert [(page.number, "markdown" in page.record) for page in summaries] == [(n, False) for n in (1, 2, 3, 12)]
    assert await pages.get(job, 7) is None


async def test_no_cursor_is_kept_open_while_somebody_reads_slowly(store: Database, pages: Pages) -> None:
    """The database drops one that nobody has used for ten minutes."""
    job = ObjectId()
    await asyncio.gather(*(pages.end(job, number, record(number), {}) for number in range(1, 151)))
    idle = [{"$currentOp": {"idleCursors": True}}, {"$match": {"ns": f"{store.handle.name}.pages"}}]
    async with aclosing(pages.each(job)) as found:
        assert (await anext(found)).number == 1
        operations = await (await store.client.admin.aggregate(idle)).to_list()
        assert [operation for operation in operations if operation["type"] == "idleCursor"] == []
        assert [page.number async for page in found] == list(range(2, 151))


async def test_pages_and_files_without_a_job_are_swept_and_no_others(
    store: Database, pages: Pages, files: FileStore, queue: JobQueue, new_job: Make
) -> None:
    kept, gone = (await queue.submit(new_job("beta"))).id, ObjectId()
    stored = {job: (await files.put(job, b"x", "image/png")).id for job in (kept, gone)}
    for job, file_id in stored.items():
        await pages.end(job, 1, record(1), {"a.png": file_id})
    assert await pages.sweep(timedelta(hours=1)) == 0, "they may be of a job that is only just submitted"
    assert await pages.sweep(timedelta(seconds=-2)) == 1
    assert (await exists(files, stored[kept]), await exists(files, stored[gone])) == (True, False)
    assert await files.sweep(timedelta(seconds=-2)) == 0, "what a page refers to is kept"


def test_a_fingerprint_changes_with_all_that_the_result_depends_on() -> None:
    base = (b"document", "tesseract", {"dpi": 300}, {"options": {"pages": "1"}})
    others = [
        (b"documenT", *base[1:]),
        (base[0], "other", *base[2:]),
        (*base[:2], {"dpi": 200}, base[3]),
        (*base[:3], {"options": {}}),
    ]
    assert len({fingerprint(*asked) for asked in (base, *others)}) == 5
    assert fingerprint(*base) == fingerprint(*base)


async def read(queue: JobQueue, files: FileStore, pages: Pages, new: NewJob) -> Job:
    """A document that was read, with a result in a file."""
    await queue.submit(new)
    (job,) = (await queue.claim(new.model, WORKER)).jobs
    await pages.end(job.id, 1, record(1), {"a.png": (await files.put(job.id, b"picture", "image/png")).id})
    await queue.progress(job, 1, 1, "pages")
    result = (await files.put(job.id, b'{"text": "read"}', "application/json")).id
    searchable = (await files.put(job.id, b"%PDF", "application/pdf")).id
    packed = {"result_file": result, "files": {"searchable.pdf": searchable}, "reusable": new.fingerprint}
    assert await queue.complete(job, packed)
    return job


async def test_a_result_is_found_again_by_its_own_subject_alone_and_while_it_is_young(
    store: Database, queue: JobQueue, files: FileStore, pages: Pages, new_job: Make
) -> None:
    job = await read(queue, files, pages, replace(new_job("beta"), task="ocr", fingerprint="f"))
    reuse = Reuse(store, 15 * DAY)
    found = await reuse.find("ann", "f")
    assert found is not None
    assert found.id == job.id
    assert await reuse.find("bob", "f") is None
    assert await reuse.find("ann", "g") is None
    await age(store, "finished_at", 14 * DAY, _id=job.id)
    assert await reuse.find("ann", "f") is None, "it may go while it is shared"


async def test_what_several_jobs_share_goes_with_the_last_of_them(
    store: Database, queue: JobQueue, files: FileStore, pages: Pages, new_job: Make
) -> None:
    first = await read(queue, files, pages, replace(new_job("beta"), task="ocr", fingerprint="f"))
    reuse = Reuse(store, 15 * DAY)
    for _ in range(2):
        origin = await reuse.find("ann", "f")
        assert origin is not None
        answered = await queue.submit_answered(replace(new_job("beta"), task="ocr"), origin)
        assert (answered.status, answered.pages_id) == (Status.COMPLETED, first.id)
        assert answered.progress == {"done": 1, "total": 1, "unit": "pages"}
        assert await unpack(files, answered) == {"text": "read"}
    assert answered.files == origin.files
    cleaner = Cleaner(store, files, pages, 15 * DAY)
    shared = [
        answered.result_file,
        answered.files["searchable.pdf"],
        (await pages.summaries(first.id))[0].files["a.png"],
    ]
    for left in (True, False):
        await age(store, "finished_at", 16 * DAY, **({"_id": {"$ne": answered.id}} if left else {}))
        await cleaner.clean()
        assert await files.sweep(timedelta(seconds=-2)) == 0
        assert await pages.sweep(timedelta(seconds=-2)) == 0
        assert [await exists(files, file_id) for file_id in shared if file_id] == [left] * 3
        assert bool(await pages.states(first.id)) == left


async def test_an_answered_job_takes_no_place_and_honours_its_idempotency_key(
    queue: JobQueue, files: FileStore, pages: Pages, new_job: Make
) -> None:
    from broker.job import Idempotency

    origin = await read(queue, files, pages, replace(new_job("alpha"), task="ocr", fingerprint="f"))
    for _ in range(4):
        await queue.submit(new_job("alpha"))
    assert not await queue.has_room("alpha")
    new = replace(new_job("alpha"), idempotency=Idempotency("key", "digest"))
    answered = await queue.submit_answered(new, origin)
    again = await queue.submit_answered(replace(new, id=ObjectId()), origin)
    assert again.id == answered.id


async def test_an_attempt_that_brought_its_job_further_does_not_count(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    """max_retries is 2: only attempts that bring nothing count against it."""
    submitted = await queue.submit(new_job())

    async def claimed() -> Job:
        await store.jobs.update_many({"not_before": {"$exists": True}}, [{"$set": {"not_before": "$$NOW"}}])
        await queue.promote()
        (job,) = (await queue.claim("alpha", WORKER)).jobs
        return job

    for done in range(5):
        job = await claimed()
        await queue.progress(job, done, 9, "pages", gained=True)
        assert await queue.fail(job, Failure("engine_died", "It died."), gained=True) is Status.QUEUED
    document = await store.handle.jobs.find_one({"_id": submitted.id})
    assert document is not None
    assert (document["attempts"], len(document["errors"]), document["progress"]["done"]) == (0, 5, 4)
    outcomes = [await queue.fail(await claimed(), Failure("engine_died", "It died.")) for _ in range(3)]
    assert outcomes == [Status.QUEUED, Status.QUEUED, Status.FAILED]


async def test_a_job_that_makes_room_goes_behind_those_who_wait(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    lanes = Lanes(store, {}, 120.0)
    big, small = await queue.submit(new_job("beta")), await queue.submit(new_job("beta"))
    (job,) = (await queue.claim("beta", WORKER)).jobs
    assert job.id == big.id
    assert await lanes.anybody("beta")
    assert await queue.release(job, to_the_back=True)
    order = [(await queue.claim("beta", WORKER)).jobs[0] for _ in range(2)]
    assert [(job.id, job.attempts) for job in order] == [(small.id, 1), (big.id, 1)]
    assert not await lanes.anybody("beta")

"""Which files are swept, and which are still being made."""

from datetime import UTC, datetime, timedelta

import pytest
from bson import ObjectId

from broker.database import Database
from broker.files import SMALL_CHUNK, FileStore


@pytest.fixture
def files(store: Database) -> FileStore:
    return FileStore(store)


def ago(hours: float) -> ObjectId:
    """An id that was drawn then."""
    return ObjectId.from_datetime(datetime.now(UTC) - timedelta(hours=hours))


async def add_chunk(store: Database, file: ObjectId, n: int, written: ObjectId) -> None:
    await store.handle["files.chunks"].insert_one({"_id": written, "files_id": file, "n": n, "data": b"x"})


async def test_a_file_that_still_grows_is_not_swept_however_long_ago_it_was_begun(files: FileStore) -> None:
    async with files.writer(ObjectId(), "out.jsonl") as stream:
        stream.id = ago(hours=3)
        await stream.write(b"x" * SMALL_CHUNK)
        assert await files.sweep() == 0
        await stream.write(b"y")
    assert await files.size(stream.id) == SMALL_CHUNK + 1


async def test_a_file_that_was_long_in_the_making_is_there_until_its_owner_refers_to_it(files: FileStore) -> None:
    async with files.writer(ObjectId(), "out.jsonl") as stream:
        stream.id = ago(hours=3)
        await stream.write(b"x")
    assert await files.sweep() == 0
    assert await files.get(stream.id) == b"x"


async def test_a_file_that_nobody_goes_on_with_is_swept_by_its_last_chunk(store: Database, files: FileStore) -> None:
    left, growing = ago(hours=6), ago(hours=5)
    for file, written in ((left, (4, 2)), (growing, (3, 0.5))):
        for n, hours in enumerate(written):
            await add_chunk(store, file, n, ago(hours))
    assert await files.sweep() == 1
    assert await store.handle["files.chunks"].distinct("files_id") == [growing]

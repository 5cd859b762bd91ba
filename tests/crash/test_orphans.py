"""What a gateway leaves in the file store when it is killed while it takes a document in."""

from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from broker.database import Database, ensure_schema
from broker.errors import FileMissing
from broker.files import FileStore


async def test_the_parts_of_a_file_whose_upload_was_cut_short_are_swept(
    database: AsyncDatabase[dict[str, Any]],
) -> None:
    """GridFS writes a file's chunks first, and last of all the document that names it."""
    store = Database(database.client, database)
    await ensure_schema(store, retention=3600.0)
    files = FileStore(store)
    job = ObjectId()
    whole = await files.put(job, b"w" * 10, "image/png")
    half = ObjectId()
    await database["files.chunks"].insert_one({"files_id": half, "n": 0, "data": b"h" * 10})

    await files.sweep()
    assert set(await database["files.chunks"].distinct("files_id")) == {whole.id, half}, "both are young"

    await database.jobs.insert_one({"_id": job, "file": {"id": whole.id}})
    assert await files.sweep(timedelta(seconds=-2)) == 1
    assert await database["files.chunks"].distinct("files_id") == [whole.id]
    assert await files.get(whole.id) == b"w" * 10
    with pytest.raises(FileMissing):
        await files.get(half)

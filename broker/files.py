"""The documents that jobs work on and the results that are too large for a job document, in GridFS."""

import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta

from bson import ObjectId
from gridfs import NoFile
from gridfs.asynchronous import AsyncGridFSBucket, AsyncGridOut
from gridfs.errors import CorruptGridFile
from pymongo.errors import PyMongoError

from broker.database import CODEC, DURABLE, Collection, Database
from broker.errors import FileMissing, FileTooSlow
from broker.job import StoredFile

log = logging.getLogger(__name__)

# Few large chunks: a 10 MB document is three durable writes rather than forty.
CHUNK_SIZE = 4 * 1024 * 1024
# Of files that come or are made bit by bit, or are read from somewhere in their middle.
SMALL_CHUNK = 512 * 1024
# What is younger is not swept: a file is there before its job, and a growing one is as old as the last that came of it.
GRACE = timedelta(hours=1)


class FileWriter:
    """A file in GridFS as it grows; of the driver's own it would hold 48 MB in memory. ``size`` in bytes."""

    def __init__(self, files: Collection, chunks: Collection, owner: ObjectId, name: str) -> None:
        self.id = ObjectId()
        self.size = 0
        self._files = files
        self._chunks = chunks
        self._about = {"filename": name, "metadata": {"job": owner}}
        self._rest = bytearray()
        self._written = 0

    async def write(self, data: bytes) -> None:
        self._rest += data
        self.size += len(data)
        while len(self._rest) >= SMALL_CHUNK:
            await self._put(SMALL_CHUNK)

    async def _put(self, count: int) -> None:
        chunk = {"files_id": self.id, "n": self._written, "data": bytes(self._rest[:count])}
        await self._chunks.insert_one(chunk)
        del self._rest[:count]
        self._written += 1

    async def finish(self) -> None:
        """Makes the file known, as its last write. Raises FileTooSlow where it was swept while nothing of it came."""
        if self._rest:
            await self._put(len(self._rest))
        if await self._chunks.count_documents({"files_id": self.id}) != self._written:
            raise FileTooSlow(f"Too little of the file came for longer than {GRACE}; send it again.")
        sizes = {"length": self.size, "chunkSize": SMALL_CHUNK, "uploadDate": datetime.now(UTC)}
        await self._files.insert_one({"_id": self.id, **sizes, **self._about})

    async def abort(self) -> None:
        await self._files.delete_one({"_id": self.id})
        await self._chunks.delete_many({"files_id": self.id})


@contextmanager
def _damaged(file_id: ObjectId) -> Generator[None, None, None]:
    """A part of a file is gone, which no patience brings back: it is not an outage of the database."""
    try:
        yield
    except CorruptGridFile as error:
        raise FileMissing(f"The file {file_id} is damaged: {error}") from error


class FileStore:
    """Durable: a file is on disk before ``put`` returns. Sizes in bytes."""

    def __init__(self, database: Database) -> None:
        self._jobs = database.jobs
        self._pages = database.pages
        self._uploads = database.uploads
        self._batches = database.batches
        # On the handle: a bucket's own write concern does not reach its uploads.
        handle = database.handle.with_options(codec_options=CODEC, write_concern=DURABLE)
        self._files = handle["files.files"]
        self._chunks = handle["files.chunks"]
        self._bucket = AsyncGridFSBucket(handle, bucket_name="files", chunk_size_bytes=CHUNK_SIZE)

    async def put(self, job: ObjectId, data: bytes, media_type: str, name: str | None = None) -> StoredFile:
        """Stores ``data`` for the job of that id, which need not be there yet: unless it soon is, the file is swept."""
        about = {"media_type": media_type, "job": job}
        file_id = await self._bucket.upload_from_stream(name or "document", data, metadata=about)
        return StoredFile(file_id, name, media_type, len(data))

    @asynccontextmanager
    async def writer(self, owner: ObjectId, name: str) -> AsyncGenerator["FileWriter", None]:
        """A file that is written bit by bit, for the upload or the batch of that id, which need not be there yet. It is
        whole and on disk after the block; where that is left by an exception there is none. Raises FileTooSlow."""
        writer = FileWriter(self._files, self._chunks, owner, name)
        try:
            yield writer
            await writer.finish()
        except BaseException:
            # What the database cannot be told now is swept later.
            with suppress(PyMongoError):
                await writer.abort()
            raise

    async def get(self, file_id: ObjectId) -> bytes:
        """Raises FileMissing."""
        stream = await self._open(file_id)
        with _damaged(file_id):
            data: bytes = await stream.read()
        return data

    async def size(self, file_id: ObjectId) -> int:
        """In bytes. Raises FileMissing."""
        return (await self._open(file_id)).length

    async def chunks(self, file_id: ObjectId, start: int = 0) -> AsyncGenerator[bytes, None]:
        """As ``get``, of CHUNK_SIZE bytes at most each: for files that are only passed on. ``start``: in bytes."""
        stream = await self._open(file_id)
        await stream.seek(start)
        while True:
            with _damaged(file_id):
                chunk = await stream.readchunk()
            if not chunk:
                return
            yield chunk

    async def _open(self, file_id: ObjectId) -> AsyncGridOut:
        try:
            return await self._bucket.open_download_stream(file_id)
        except NoFile:
            raise FileMissing(f"The file {file_id} is not in the store.") from None

    async def delete(self, file_id: ObjectId) -> None:
        """Deleting what is gone already is no error."""
        try:
            await self._bucket.delete(file_id)
        except NoFile:
            log.debug("file %s was deleted before", file_id)

    async def sweep(self, grace: timedelta = GRACE) -> int:
        """Deletes files that their job does not refer to, if they were whole before ``grace``, and those that are not
        whole, if nothing was added to them since; how many."""
        before = ObjectId.from_datetime(datetime.now(UTC) - grace)
        first = ObjectId.from_datetime(datetime.fromtimestamp(0, UTC))
        return await self._sweep_files(first, before) + await self._sweep_halves(first, before)

    async def _sweep_files(self, last: ObjectId, before: ObjectId) -> int:
        swept = 0
        while batch := await self._older(last, before):
            orphans = set(batch) - await self._referred(set(batch.values()))
            for file_id in orphans:
                await self.delete(file_id)
            swept += len(orphans)
            last = max(batch)
        return swept

    async def _sweep_halves(self, last: ObjectId, before: ObjectId) -> int:
        """Whoever was killed between a file's chunks and the document that names it has left the chunks alone."""
        swept = 0
        while batch := await self._chunked(last, before):
            whole = {file["_id"] async for file in self._files.find({"_id": {"$in": list(batch)}}, {"_id": 1})}
            left = [file_id for file_id in batch - whole if await self._is_left(file_id, before)]
            if left:
                await self._chunks.delete_many({"files_id": {"$in": left}})
            swept += len(left)
            last = max(batch)
        return swept

    async def _is_left(self, half: ObjectId, before: ObjectId) -> bool:
        """Whether nothing was added to it since. A file may grow for longer than any grace after it was begun."""
        last = await self._chunks.find_one({"files_id": half}, {"_id": 1}, sort=[("n", -1)])
        return last is not None and last["_id"] < before

    async def _chunked(self, after: ObjectId, before: ObjectId, limit: int = 500) -> set[ObjectId]:
        """The files of the next ``limit`` chunks, from GridFS's own index alone."""
        range_ = {"files_id": {"$gt": after, "$lt": before}}
        old = self._chunks.find(range_, {"_id": 0, "files_id": 1}).sort("files_id", 1).limit(limit)
        return {chunk["files_id"] async for chunk in old}

    async def _older(self, after: ObjectId, before: ObjectId, limit: int = 500) -> dict[ObjectId, ObjectId]:
        """``{file: job}`` of the next ``limit`` files."""
        # An id is drawn when its file is begun, which may be long before that is whole.
        range_ = {"_id": {"$gt": after, "$lt": before}, "uploadDate": {"$lt": before.generation_time}}
        old = self._files.find(range_, {"metadata.job": 1}).sort("_id", 1).limit(limit)
        return {document["_id"]: document["metadata"]["job"] async for document in old}

    async def _referred(self, jobs: set[ObjectId]) -> set[ObjectId]:
        found: set[ObjectId | None] = set()
        named = {"$or": [{"_id": {"$in": list(jobs)}}, {"pages_of": {"$in": list(jobs)}}]}
        async for job in self._jobs.find(named, {"file.id": 1, "payload_file": 1, "result_file": 1, "files": 1}):
            found.update((job.get("file", {}).get("id"), job.get("payload_file"), job.get("result_file")))
            found.update(job.get("files", {}).values())
        async for page in self._pages.find({"job": {"$in": list(jobs)}}, {"files": 1}):
            found.update(page.get("files", {}).values())
        async for upload in self._uploads.find({"_id": {"$in": list(jobs)}}, {"content": 1}):
            found.add(upload["content"])
        async for batch in self._batches.find({"_id": {"$in": list(jobs)}}, {"outputs": 1}):
            found.update(output["content"] for output in batch.get("outputs", {}).values())
        return {file_id for file_id in found if file_id is not None}

"""The pages of documents. Each one that has come to its end is a checkpoint: whoever goes on with the job begins there.

Of the ends of a page the first that is stored stands, whichever attempt wrote it: any of them is what an engine made of
that page, and what clients have seen of it does not change any more. So these writes need no fence.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from broker.barrier import Barrier
from broker.database import Database
from broker.files import FileStore
from broker.job import Document

# The name of a job's file with the document and its text.
SEARCHABLE_PDF = "searchable.pdf"

PROCESSING = "processing"
ENDED = ("completed", "blank", "failed")
# Pages of a job that is not there are swept when they are so old: by then it would have been submitted.
GRACE = timedelta(hours=1)
_BATCH = 500
# Whole pages that are held in memory.
_AT_ONCE = 20
# Seconds.
_MOMENT = 0.05


@dataclass(frozen=True, slots=True)
class PageState:
    """How far a page (from 1) is. ``starts``: how often it was begun, whatever came of it."""

    number: int
    state: str
    starts: int

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class StoredPage:
    """A page that has come to its end: its record, as ``ocr.page.PageRecord`` gives it, and its files by name."""

    number: int
    state: str
    record: Mapping[str, Any]
    files: Mapping[str, ObjectId]


class Pages:
    """All methods raise ``pymongo.errors.PyMongoError`` where the database cannot be reached."""

    def __init__(self, database: Database, files: FileStore) -> None:
        self._pages = database.pages
        self._light = database.pages_light
        self._jobs = database.jobs
        self._files = files
        self._barrier = Barrier(database)

    async def states(self, job: ObjectId) -> list[PageState]:
        """Of the pages that were begun, ascending."""
        fields = {"_id": 0, "number": 1, "state": 1, "starts": 1}
        found = await self._barrier.read(lambda: self._pages.find({"job": job}, fields).sort("number", 1).to_list())
        return [PageState(page["number"], page["state"], page.get("starts", 0)) for page in found]

    async def get(self, job: ObjectId, number: int) -> StoredPage | None:
        """None where the page has not come to its end."""
        ended = {"job": job, "number": number, "state": {"$in": ENDED}}
        page = await self._barrier.read(lambda: self._pages.find_one(ended))
        return None if page is None else _stored(page)

    async def each(self, job: ObjectId) -> AsyncGenerator[StoredPage, None]:
        """The pages that have come to their end, ascending, for whom they may come as slowly as he likes: the database
        drops a cursor that is not used for ten minutes, so none is kept open."""
        last = 0
        while batch := await self._ended_after(job, last):
            for page in batch:
                yield _stored(page)
            last = batch[-1]["number"]

    async def _ended_after(self, job: ObjectId, number: int) -> list[Document]:
        wanted = {"job": job, "number": {"$gt": number}, "state": {"$in": ENDED}}
        return await self._pages.find(wanted).sort("number", 1).limit(_AT_ONCE).to_list()

    async def summaries(self, job: ObjectId) -> list[StoredPage]:
        """The same without what is large and needed for a page alone: blocks and markdown."""
        ended, light = {"job": job, "state": {"$in": ENDED}}, {"record.blocks": 0, "record.markdown": 0}
        found = await self._barrier.read(lambda: self._pages.find(ended, light).sort("number", 1).to_list())
        return [_stored(page) for page in found]

    async def begin(self, job: ObjectId, number: int, worker: str) -> None:
        """``w:1``: a mark that is lost means that the page may be begun once more than it would be."""
        begun = {"$set": {"state": PROCESSING, "worker": worker}, "$inc": {"starts": 1}}
        try:
            await self._light.update_one(_open(job, number), begun, upsert=True)
        except DuplicateKeyError:
            """Another attempt has ended the page meanwhile."""

    async def take_back(self, job: ObjectId, numbers: Iterable[int]) -> None:
        """Begun pages that nobody is to hold against them that they did not end. ``w:1``, as ``begin``."""
        theirs = {"job": job, "number": {"$in": list(numbers)}, "state": PROCESSING, "starts": {"$gt": 0}}
        await self._light.update_many(theirs, {"$inc": {"starts": -1}})

    async def end(self, job: ObjectId, number: int, record: Mapping[str, Any], files: Mapping[str, ObjectId]) -> bool:
        """Stores the end of a page for good; ``record["status"]`` is one of ENDED. False where it had one already: then
        ``files`` are deleted. May be repeated."""
        ended = {"state": record["status"], "record": dict(record), "files": dict(files)}
        update = {"$set": ended, "$currentDate": {"at": True}}
        while True:
            try:
                await self._pages.update_one(_open(job, number), update, upsert=True)
                return True
            except DuplicateKeyError:
                """Another attempt has begun or ended it in this moment."""
            if stands := await self.get(job, number):
                break
            # Its end has no majority yet, or it was only begun: then the next write finds it open.
            await asyncio.sleep(_MOMENT)
        if stands.files == files:
            return True
        for file_id in files.values():
            await self._files.delete(file_id)
        return False

    async def delete(self, jobs: Iterable[ObjectId]) -> None:
        """The pages of those jobs, and their files."""
        theirs = {"job": {"$in": list(jobs)}}
        async for page in self._pages.find(theirs, {"files": 1}):
            for file_id in page.get("files", {}).values():
                await self._files.delete(file_id)
        await self._pages.delete_many(theirs)

    async def sweep(self, grace: timedelta = GRACE) -> int:
        """Deletes pages older than ``grace`` whose job is gone, as those are that an attempt has ended later than its
        job was deleted; returns of how many jobs."""
        before = ObjectId.from_datetime(datetime.now(UTC) - grace)
        last, swept = ObjectId.from_datetime(datetime.fromtimestamp(0, UTC)), 0
        while jobs := await self._jobs_after(last, before):
            known = await self._known(jobs)
            await self.delete(set(jobs) - known)
            swept += len(set(jobs) - known)
            last = jobs[-1]
        return swept

    async def _jobs_after(self, last: ObjectId, before: ObjectId) -> list[ObjectId]:
        """The next jobs that have pages, ascending. Ids of jobs are made when they are submitted."""
        stages: list[Document] = [
            {"$match": {"job": {"$gt": last, "$lt": before}}},
            {"$sort": {"job": 1, "number": 1}},
            {"$group": {"_id": "$job"}},
            {"$sort": {"_id": 1}},
            {"$limit": _BATCH},
        ]
        return [group["_id"] async for group in await self._pages.aggregate(stages)]

    async def _known(self, jobs: Sequence[ObjectId]) -> set[ObjectId]:
        """Those that are there, or whose pages another job shows as its own."""
        named = {"$or": [{"_id": {"$in": list(jobs)}}, {"pages_of": {"$in": list(jobs)}}]}
        found: set[ObjectId | None] = set()
        async for job in self._jobs.find(named, {"pages_of": 1}):
            found.update((job["_id"], job.get("pages_of")))
        return {job for job in jobs if job in found}


def _open(job: ObjectId, number: int) -> Document:
    """Matches the page until it has come to its end; inserted anew then, it would be there twice, which is refused."""
    return {"job": job, "number": number, "state": {"$nin": ENDED}}


def _stored(page: Mapping[str, Any]) -> StoredPage:
    return StoredPage(page["number"], page["state"], page["record"], page["files"])

"""Retention: what is older than it is deleted in small batches, so that deleting a million rows stalls nobody.

TTL indexes are the net beneath: they remove what is a day older still, should no clockwork have run.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from bson import ObjectId
from pymongo.read_concern import ReadConcern

from broker.clock import DatabaseClock
from broker.database import DURABLE, Collection, Database
from broker.files import FileStore
from broker.job import Document
from broker.pages import Pages

BATCH = 200
# A batch is followed by a pause of so many times as long as it took: most of the time is everybody else's.
PAUSE = 3
# Seconds of the 300 after which the clockwork begins the next run.
LONGEST_RUN = 240.0


class Cleaner:
    """``retention`` in seconds."""

    def __init__(self, database: Database, files: FileStore, pages: Pages, retention: float) -> None:
        # A majority read would, for a moment, find again what was just deleted. Each batch waits for the disk, not
        # because its loss would matter, but because a submit would else have to wait for that of many batches.
        self._jobs = database.jobs_local.with_options(write_concern=DURABLE)
        self._crashes = database.crashes.with_options(read_concern=ReadConcern("local"))
        self._clock = DatabaseClock(database)
        self._files = files
        self._pages = pages
        self._retention = retention

    async def clean(self) -> int:
        """Deletes for LONGEST_RUN seconds at the most; returns how many jobs and crashes are gone."""
        until = time.monotonic() + LONGEST_RUN
        gone = 0
        while time.monotonic() < until:
            started = time.monotonic()
            batch = await self._clean_jobs() + await self._clean_crashes()
            if batch == 0:
                break
            gone += batch
            await asyncio.sleep(PAUSE * (time.monotonic() - started))
        return gone

    async def _clean_jobs(self) -> int:
        kept = {"task": 1, "file.id": 1, "result_file": 1, "files": 1, "pages_of": 1}
        old = await self._old(self._jobs, "finished_at", kept)
        # What belongs to a job first: one that is still there leads to it at the next run.
        going = [job["_id"] for job in old]
        for job in old:
            await self._delete_belongings(job, going)
        return await _delete(self._jobs, old)

    async def _delete_belongings(self, job: Document, going: Sequence[ObjectId]) -> None:
        if (document := job.get("file", {}).get("id")) is not None:
            await self._files.delete(document)
        pages_id: ObjectId = job.get("pages_of") or job["_id"]
        if job["task"] == "ocr" and await self._shared(pages_id, going):
            return
        for file_id in (job.get("result_file"), *job.get("files", {}).values()):
            if file_id is not None:
                await self._files.delete(file_id)
        if job["task"] == "ocr":
            await self._pages.delete([pages_id])

    async def _shared(self, pages_id: ObjectId, going: Sequence[ObjectId]) -> bool:
        """Whether a job that stays shows those pages, and the result made of them, as its own."""
        for theirs in ({"_id": pages_id}, {"pages_of": pages_id}):
            if await self._jobs.find_one({"$and": [theirs, {"_id": {"$nin": list(going)}}]}, {"_id": 1}) is not None:
                return True
        return False

    async def _clean_crashes(self) -> int:
        return await _delete(self._crashes, await self._old(self._crashes, "at", {"_id": 1}))

    async def _old(self, collection: Collection, field: str, keep: dict[str, int]) -> list[dict[str, Any]]:
        old = {field: {"$lt": await self._clock.ago(self._retention)}}
        return await collection.find(old, keep).sort(field, 1).limit(BATCH).hint(f"ttl_{field}").to_list()


async def _delete(collection: Collection, documents: list[dict[str, Any]]) -> int:
    if not documents:
        return 0
    deleted = await collection.delete_many({"_id": {"$in": [document["_id"] for document in documents]}})
    return deleted.deleted_count

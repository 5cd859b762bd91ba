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
        self._batches = database.batches.with_options(read_concern=ReadConcern("local"))
        self._uploads = database.uploads.with_options(read_concern=ReadConcern("local"))
        self._deliveries = database.deliveries
        self._clock = DatabaseClock(database)
        self._files = files
        self._pages = pages
        self._retention = retention

    async def clean(self) -> int:
        """Deletes for LONGEST_RUN seconds at the most; returns how many jobs, crashes, batches and
        uploaded files are gone."""
        until = time.monotonic() + LONGEST_RUN
        gone = 0
        while time.monotonic() < until:
            started = time.monotonic()
            batch = await self._clean_jobs() + await self._clean_crashes() + await self._clean_batches()
            if batch == 0:
                break
            gone += batch
            await asyncio.sleep(PAUSE * (time.monotonic() - started))
        return gone

    async def _clean_jobs(self) -> int:
        kept = {"task": 1, "file.id": 1, "payload_file": 1, "result_file": 1, "files": 1, "pages_of": 1, "webhook": 1}
        old = await self._old(self._jobs, "finished_at", kept, await self._still_read())
        # What belongs to a job first: one that is still there leads to it at the next run.
        going = [job["_id"] for job in old]
        for job in old:
            await self._delete_belongings(job, going)
        return await _delete(self._jobs, old)

    async def _delete_belongings(self, job: Document, going: Sequence[ObjectId]) -> None:
        if "file" in job:
            await self._files.delete(job["file"]["id"])
        if "webhook" in job:
            await self._deliveries.delete_many({"job": job["_id"], "next_at": {"$exists": False}})
        pages_id: ObjectId = job.get("pages_of") or job["_id"]
        sharable = job["task"] == "ocr" or "result_file" in job or "payload_file" in job
        if sharable and await self._shared(pages_id, going):
            return
        for file_id in (job.get("payload_file"), job.get("result_file"), *job.get("files", {}).values()):
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

    async def _still_read(self) -> Document:
        """Matches all jobs but those whose batch, older than the retention, has not been put together yet, and those
        of whose end somebody is still to be told."""
        late = {"open": True, "created_at": {"$lt": await self._clock.ago(self._retention)}}
        batches = [batch["_id"] async for batch in self._batches.find(late, {"_id": 1})]
        told: Document = {"webhook_due": {"$exists": False}}
        return told | ({"batch.id": {"$nin": batches}} if batches else {})

    async def _clean_batches(self) -> int:
        """Batches, and the files that no batch needs any longer."""
        before = await self._clock.ago(self._retention)
        ended = await self._batches.find({"ended_at": {"$lt": before}}, {"_id": 1}).limit(BATCH).to_list()
        gone = await _delete(self._batches, ended)
        needed = {
            "$lookup": {
                "from": self._batches.name,
                "localField": "_id",
                "foreignField": "files",
                "pipeline": [{"$project": {"_id": 1}}, {"$limit": 1}],
                "as": "batches",
            }
        }
        old = {"$match": {"created_at": {"$lt": before}}}
        found = await self._uploads.aggregate([old, needed, {"$match": {"batches": []}}, {"$limit": BATCH}])
        uploads = await found.to_list()
        # What names a file first: one that nothing names is swept.
        gone += await _delete(self._uploads, uploads)
        for upload in uploads:
            await self._files.delete(upload["content"])
        return gone

    async def _clean_crashes(self) -> int:
        return await _delete(self._crashes, await self._old(self._crashes, "at", {"_id": 1}))

    async def _old(
        self, collection: Collection, field: str, keep: dict[str, int], besides: Document | None = None
    ) -> list[dict[str, Any]]:
        old = (besides or {}) | {field: {"$lt": await self._clock.ago(self._retention)}}
        return await collection.find(old, keep).sort(field, 1).limit(BATCH).hint(f"ttl_{field}").to_list()


async def _delete(collection: Collection, documents: list[dict[str, Any]]) -> int:
    if not documents:
        return 0
    deleted = await collection.delete_many({"_id": {"$in": [document["_id"] for document in documents]}})
    return deleted.deleted_count

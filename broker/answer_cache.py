"""Answers that are used again: an exact match with what the same subject has asked the same model before.

An entry leads to the job whose answer it is, and takes some hundred bytes: answers are kept with their jobs, as long as
history keeps those. What is written here may be lost without harm, so nobody waits for a majority of it. How requests
are matched is known here alone: who asks gives a job that is to be submitted, and gets the one that has its answer.
"""

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pymongo import UpdateOne
from pymongo.errors import DuplicateKeyError, PyMongoError

from broker.cancellation import cancel_all
from broker.clock import DatabaseClock
from broker.database import Database
from broker.job import Job, NewJob, Status
from broker.job_updates import from_now, literal
from broker.reuse import YOUNG
from broker.storable import unstorable
from config import Settings

log = logging.getLogger(__name__)

# Entries that are deleted in one go where there are too many.
_AT_ONCE = 1000
# Seconds after which what was counted is written, and what is too many is deleted: nobody waits for either.
_SOON = 1.0
# Seconds that a process which stops has for that.
_PARTING = 1.0


@dataclass(frozen=True, slots=True)
class ModelAnswers:
    """What there is of one model's answers, and how often it has helped. ``bytes``: of the answers as JSON text.
    ``saved_tokens``: prompt and answer, of all hits."""

    model: str
    entries: int
    bytes: int
    hits: int
    misses: int
    saved_tokens: int


class AnswerCache:
    """All methods but ``add`` and ``close`` raise PyMongoError where the database cannot be reached."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._jobs = database.jobs
        self._entries = database.answers
        self._counts = database.answer_counts
        self._clock = DatabaseClock(database)
        self._settings = settings
        self._counted: Counter[tuple[str, str]] = Counter()
        self._grown = False
        self._upkeep: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Writes what was counted, where the database takes it."""
        if self._upkeep is not None:
            await cancel_all([self._upkeep])
        try:
            async with asyncio.timeout(_PARTING):
                await self._write_counts()
        except (PyMongoError, TimeoutError) as error:
            log.warning("the last hits and misses are not counted: %s", error or "it takes too long")

    async def find(self, new: NewJob) -> Job | None:
        """The job whose answer is also that to ``new``. Counted as a hit or as a miss."""
        origin, tokens = await self._look_up(new)
        counted = {"misses": 1} if origin is None else {"hits": 1, "saved_tokens": tokens}
        self._counted.update({(new.model, name): number for name, number in counted.items()})
        self._tidy_soon()
        return origin

    async def _look_up(self, new: NewJob) -> tuple[Job | None, int]:
        if new.fingerprint is None:
            return None, 0
        fresh = {"_id": _key(new.subject, new.fingerprint), "$expr": {"$gt": ["$expires_at", "$$NOW"]}}
        entry = await self._entries.find_one_and_update(fresh, [{"$set": {"used_at": "$$NOW"}}])
        if entry is None:
            return None, 0
        # A job near the end of its retention may go while somebody begins to share its answer.
        since = await self._clock.ago(self._settings.history.retention * YOUNG)
        kept = {"_id": entry["job"], "status": Status.COMPLETED.value, "finished_at": {"$gte": since}}
        # One that has moved to another model after all has lost it, and has that one's answer.
        kept |= {"fingerprint": new.fingerprint}
        found = await self._jobs.find_one(kept)
        return (None, 0) if found is None else (Job.from_document(found), entry["tokens"])

    async def add(self, job: Job, result: Mapping[str, Any]) -> None:
        """To be called before the job is completed, so that whoever has seen its answer finds it here.

        An entry whose job does not come to that end leads nowhere. A database that is away is not waited for.
        """
        assert job.fingerprint is not None
        entry = {
            "model": literal(job.model),
            "job": job.id,
            "bytes": len(json.dumps(result, ensure_ascii=False).encode()),
            "tokens": _tokens(result),
            "used_at": "$$NOW",
            "expires_at": from_now(self._ttl(job.model)),
        }
        try:
            await self._entries.update_one({"_id": _key(job.subject, job.fingerprint)}, [{"$set": entry}], upsert=True)
            self._grown = True
            self._tidy_soon()
        except DuplicateKeyError:
            log.debug("job %s: the same was answered at the same time", job.id)
        except PyMongoError as error:
            log.warning("job %s: its answer cannot be used again: %s", job.id, error)

    def _ttl(self, model: str) -> float:
        entry = self._settings.models.get(model)
        own = None if entry is None or entry.cache is None else entry.cache.ttl
        return self._settings.cache.ttl if own is None else own

    def _tidy_soon(self) -> None:
        if self._upkeep is None or self._upkeep.done():
            self._upkeep = asyncio.create_task(self._tidy())

    async def _tidy(self) -> None:
        while self._counted or self._grown:
            await asyncio.sleep(_SOON)
            try:
                await self._write_counts()
                await self._trim()
            except PyMongoError as error:
                log.warning("the cache of answers is not tidied up: %s", error)

    async def _write_counts(self) -> None:
        """All counts of a model are one document, on which many processes would else wait for each other."""
        counted, self._counted = self._counted, Counter()
        by_model: dict[str, dict[str, int]] = {}
        for (model, name), number in counted.items():
            by_model.setdefault(model, {})[name] = number
        if by_model:
            await self._counts.bulk_write(
                [UpdateOne({"_id": model}, {"$inc": counts}, upsert=True) for model, counts in by_model.items()],
                ordered=False,
            )

    async def _trim(self) -> None:
        grown, self._grown = self._grown, False
        surplus = await self._surplus() if grown else 0
        while surplus > 0:
            unused = self._entries.find({}, {"_id": 1}).sort("used_at", 1).limit(min(surplus, _AT_ONCE))
            await self._entries.delete_many({"_id": {"$in": [entry["_id"] async for entry in unused]}})
            surplus -= _AT_ONCE

    async def _surplus(self) -> int:
        """Entries beyond the most that there may be; one in a hundred of these is let be.

        The number that the database keeps costs nothing, but a crash may leave it wrong. To count takes longer the
        more there are, and is done once for all that have come since the last time.
        """
        most = self._settings.cache.max_entries
        if await self._entries.estimated_document_count() <= most + most // 100:
            return 0
        return await self._entries.count_documents({}) - most

    async def clear(self, model: str | None = None) -> int:
        """Forgets all entries, or those of a model; how many. The jobs stay."""
        cleared = await self._entries.delete_many({} if model is None else {"model": model})
        return cleared.deleted_count

    async def standing(self) -> list[ModelAnswers]:
        """By model, ascending. What has expired is not counted. Other processes' hits may be a second late."""
        await self._write_counts()
        live = {"$match": {"$expr": {"$gt": ["$expires_at", "$$NOW"]}}}
        sums = {"$group": {"_id": "$model", "entries": {"$sum": 1}, "bytes": {"$sum": "$bytes"}}}
        found = {group["_id"]: group async for group in await self._entries.aggregate([live, sums])}
        counts = {document["_id"]: document async for document in self._counts.find()}
        return [
            ModelAnswers(
                model,
                found.get(model, {}).get("entries", 0),
                found.get(model, {}).get("bytes", 0),
                **{name: counts.get(model, {}).get(name, 0) for name in ("hits", "misses", "saved_tokens")},
            )
            for model in sorted(found.keys() | counts.keys())
        ]


def _tokens(result: Mapping[str, Any]) -> int:
    """As its upstream counted them, who may count in any way."""
    told = (result.get("usage") or {}).get("total_tokens")
    return told if isinstance(told, int) and not unstorable(told) else 0


def _key(subject: str, fingerprint: str) -> str:
    """Others' answers are not used: how long one takes would tell who has asked what."""
    return hashlib.sha256(json.dumps([subject, fingerprint]).encode()).hexdigest()

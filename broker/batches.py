"""Batches: files of requests that run as ordinary jobs, let in a few at a time (see ``gateway.v1.batches.feeder``).

Every write matches the state that it goes out from: whoever is late changes nothing, and sees it by what is returned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from broker.barrier import Barrier
from broker.batch import (
    CLOSING,
    ERRORS,
    OUTPUT,
    PREFIX,
    WANTED,
    Batch,
    BatchStatus,
    Counts,
    Fault,
    NewBatch,
    Output,
    settle,
)
from broker.clock import DatabaseClock, to_the_millisecond
from broker.database import BATCH_INDEX, BATCH_PLACE_INDEX, Database
from broker.errors import BatchFinished, BatchNotFound, IdempotencyConflict, TooManyBatches
from broker.job import Document, Idempotency, Job, Status, parse_job_id
from broker.job_updates import unique_keys
from broker.uploads import listed

MOST_OPEN = 100
"""Batches of one subject that have not ended: the feeder looks at each one in every step, and nobody is to wait for all
of somebody else's."""
# Requests that are looked at at once.
_PORTION = 5_000
_WANTED = [status.value for status in WANTED]
_CLOSING = [status.value for status in CLOSING]


def parse_batch_id(text: str) -> ObjectId | None:
    """The id that a client sent, or None where it cannot be one."""
    return parse_job_id(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else None


class Batches:
    """``subject`` None, wherever it is asked for, means an admin, who may have everybody's batches.

    All methods raise ``pymongo.errors.PyMongoError`` where the database cannot be reached.
    """

    def __init__(self, database: Database) -> None:
        self._batches = database.batches
        self._jobs = database.jobs
        self._local = database.jobs_local
        self._barrier = Barrier(database)
        self._clock = DatabaseClock(database)

    # ── The client's side ────────────────────────────────────────────────────────────────────────────────────────

    async def create(self, new: NewBatch) -> Batch:
        """The batch or, where its Idempotency-Key came before, the one of then, which has another id. Raises
        IdempotencyConflict, TooManyBatches."""
        if await self._has_most(new.subject):
            if earlier := await self.earlier(new.subject, new.idempotency):
                return earlier
            raise TooManyBatches(MOST_OPEN)
        created = to_the_millisecond(await self._clock.ago(0))
        document: Document = {
            **asdict(new),
            "priority": new.priority.value,
            "status": BatchStatus.VALIDATING.value,
            "open": True,
            "files": [new.input],
            "model": "",
            **dict.fromkeys(("total", "fed", "offset", "settled", "completed", "failed"), 0),
            "faults": [],
            "created_at": created,
            "expires_at": created + timedelta(seconds=new.window),
            "times": {},
        }
        document["_id"] = document.pop("id")
        if new.idempotency is None:
            del document["idempotency"]
        while True:
            try:
                await self._batches.insert_one(document)
            except DuplicateKeyError as error:
                if "_id" not in unique_keys(error):
                    if earlier := await self.earlier(new.subject, new.idempotency):
                        return earlier
                    continue  # the earlier one has gone meanwhile
            return Batch.from_document(document)

    async def _has_most(self, subject: str) -> bool:
        """Whether the subject may have no further batch. Some that come at once may all see that it may."""
        mine = {"open": True, "subject": subject}
        return await self._barrier.read(lambda: self._batches.count_documents(mine, limit=MOST_OPEN)) == MOST_OPEN

    async def earlier(self, subject: str, idempotency: Idempotency | None) -> Batch | None:
        """The batch that came with this key and content before. Raises IdempotencyConflict."""
        if idempotency is None:
            return None
        mine = {"subject": subject, "idempotency.key": idempotency.key}
        document = await self._barrier.read(lambda: self._batches.find_one(mine))
        if document is not None and document["idempotency"]["digest"] != idempotency.digest:
            raise IdempotencyConflict(idempotency.key)
        return None if document is None else Batch.from_document(document)

    async def get(self, batch_id: str, subject: str | None) -> Batch:
        """Raises BatchNotFound, for another subject's batch too."""
        parsed = parse_batch_id(batch_id)
        query = {"_id": parsed} if subject is None else {"_id": parsed, "subject": subject}
        document = None if parsed is None else await self._barrier.read(lambda: self._batches.find_one(query))
        if document is None:
            raise BatchNotFound(batch_id)
        return Batch.from_document(document)

    async def listed(self, subject: str | None, after: ObjectId | None, limit: int) -> tuple[list[Batch], bool]:
        """The newest first, and whether there are more."""
        query = {} if subject is None else {"subject": subject}
        found, more = await self._barrier.read(lambda: listed(self._batches, query, after, limit))
        return [Batch.from_document(document) for document in found], more

    async def counts(self, batch: Batch) -> Counts:
        """As they are now: what is settled, and what the jobs after that say."""
        done = Counts(batch.total, batch.completed, batch.failed)
        if batch.status in (BatchStatus.VALIDATING, BatchStatus.FAILED) or batch.status is batch.ending:
            return done
        rest: list[Document] = [
            {"$match": _from(batch, batch.settled)},
            {"$group": {"_id": "$status", "jobs": {"$sum": 1}}},
        ]

        async def by_status() -> list[Document]:
            return await (await self._jobs.aggregate(rest, hint=BATCH_INDEX)).to_list()

        found = {Status(group["_id"]): group["jobs"] for group in await self._barrier.read(by_status)}
        completed = found.pop(Status.COMPLETED, 0)
        failed = sum(jobs for status, jobs in found.items() if status.terminal)
        return replace(done, completed=done.completed + completed, failed=done.failed + failed)

    async def cancel(self, batch_id: str, subject: str | None) -> Batch:
        """Nothing more of it is let in. Twice is no error. Raises BatchNotFound, BatchFinished."""
        batch = await self.get(batch_id, subject)
        wanted = {"_id": batch.id, "status": {"$in": _WANTED}}
        await self._step(wanted, BatchStatus.CANCELLING, ending=BatchStatus.CANCELLED)
        batch = await self.get(batch_id, subject)
        if batch.ending is not BatchStatus.CANCELLED:
            raise BatchFinished(batch_id, batch.status)
        return batch

    # ── The feeder's side ────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> list[Batch]:
        """All that have not ended, the oldest first."""
        found = self._batches.find({"open": True}).sort("_id", 1)
        return [Batch.from_document(document) async for document in found]

    async def _step(self, wanted: Document, status: BatchStatus, **changes: Any) -> bool:
        """Whether it was taken: not where ``wanted`` matches nothing."""
        plain = {key: {"$literal": value} for key, value in changes.items()}
        update: list[Document] = [{"$set": {**plain, "status": status.value, f"times.{status}": "$$NOW"}}]
        if status not in WANTED | CLOSING:
            update += [{"$set": {"ended_at": "$$NOW"}}, {"$unset": ["open"]}]
        return (await self._batches.update_one(wanted, update)).matched_count == 1

    async def begin(self, batch: Batch, model: str, total: int) -> bool:
        """The file is as it should be."""
        wanted = {"_id": batch.id, "status": BatchStatus.VALIDATING.value}
        return await self._step(wanted, BatchStatus.IN_PROGRESS, model=model, total=total)

    async def reject(self, batch: Batch, faults: Sequence[Fault]) -> bool:
        """Nothing can be made of the file."""
        wanted = {"_id": batch.id, "status": {"$in": _WANTED}}
        return await self._step(wanted, BatchStatus.FAILED, faults=[asdict(fault) for fault in faults])

    async def inside(self, model: str) -> list[tuple[ObjectId, int]]:
        """(batch, request) of each job of a batch that holds a place of the model's."""
        held = {"model": model, "place": {"$gte": 0}, "batch.id": {"$exists": True}}
        found = self._local.find(held, {"_id": 0, "batch.id": 1, "batch.line": 1}).hint(BATCH_PLACE_INDEX)
        return [(job["batch"]["id"], job["batch"]["line"]) async for job in found]

    async def haunting(self) -> list[ObjectId]:
        """The batches that have ended, and still hold places."""
        held: list[Document] = [
            {"$match": {"place": {"$gte": 0}, "batch.id": {"$exists": True}}},
            {"$group": {"_id": "$batch.id"}},
        ]
        found = await (await self._local.aggregate(held, hint=BATCH_PLACE_INDEX)).to_list()
        query = {"_id": {"$in": [batch["_id"] for batch in found]}, "ended_at": {"$exists": True}}
        return [batch["_id"] async for batch in self._batches.find(query, {"_id": 1})] if found else []

    async def advance(self, batch: Batch, fed: int, offset: int) -> bool:
        """All requests before ``fed``, which begins at ``offset``, have their jobs."""
        wanted = {"_id": batch.id, "status": BatchStatus.IN_PROGRESS.value, "fed": batch.fed}
        changes = {"$set": {"fed": fed, "offset": offset}}
        return (await self._batches.update_one(wanted, changes)).matched_count == 1

    async def settle(self, batch: Batch) -> Batch:
        """Counts what has ended in the file's order, as far as it goes; the batch with that."""
        while True:
            found = self._jobs.find(_from(batch, batch.settled), {"_id": 0, "batch.line": 1, "status": 1})
            jobs = await found.sort("batch.line", 1).limit(_PORTION).hint(BATCH_INDEX).to_list()
            told = [(job["batch"]["line"], Status(job["status"])) for job in jobs]
            settled, completed, failed = settle(batch, told)
            if settled == batch.settled:
                return batch
            wanted = {"_id": batch.id, "status": BatchStatus.IN_PROGRESS.value, "settled": batch.settled}
            changes = {"$set": {"settled": settled, "completed": completed, "failed": failed}}
            if not (await self._batches.update_one(wanted, changes)).matched_count:
                return batch
            batch = replace(batch, settled=settled, completed=completed, failed=failed)

    async def close(self, batch: Batch) -> bool:
        """Whether all requests have ended, and the answers can be put together."""
        wanted = {"_id": batch.id, "status": BatchStatus.IN_PROGRESS.value, "settled": batch.total}
        return await self._step(wanted, BatchStatus.FINALIZING, ending=BatchStatus.COMPLETED)

    async def expire(self) -> None:
        """Nothing more is let in of what is in progress after its time."""
        over = {"status": BatchStatus.IN_PROGRESS.value, "$expr": {"$lte": ["$expires_at", "$$NOW"]}, "open": True}
        async for batch in self._batches.find(over, {"_id": 1}):
            wanted = {"_id": batch["_id"], "status": BatchStatus.IN_PROGRESS.value}
            await self._step(wanted, BatchStatus.FINALIZING, ending=BatchStatus.EXPIRED)

    async def jobs(self, batch: Batch, first: int, count: int) -> dict[int, Job]:
        """The jobs for ``count`` requests from ``first`` on, as far as there are any; without their payloads."""
        query = {"batch.id": batch.id, "batch.line": {"$gte": first, "$lt": first + count}}
        found = await self._barrier.read(lambda: self._jobs.find(query, {"payload": 0}).hint(BATCH_INDEX).to_list())
        return {document["batch"]["line"]: Job.from_document({"payload": {}, **document}) for document in found}

    async def assembled(self, batch: Batch, outputs: Mapping[str, Output]) -> Batch | None:
        """The files with all answers are there; None where others were quicker, or the batch has ended."""
        wanted = {"_id": batch.id, "status": {"$in": _CLOSING}, "outputs": {"$exists": False}}
        stored = {kind: asdict(output) for kind, output in outputs.items()}
        files = [batch.input, *(output.id for output in outputs.values())]
        written = await self._batches.update_one(wanted, {"$set": {"outputs": stored, "files": files}})
        return replace(batch, outputs=outputs) if written.matched_count else None

    async def end(self, batch: Batch) -> bool:
        """The last step of a batch whose files are there, and known."""
        assert batch.ending is not None
        assert batch.outputs is not None
        lines = {kind: output.lines for kind, output in batch.outputs.items()}
        counts = {"completed": lines.get(OUTPUT, 0), "failed": lines.get(ERRORS, 0), "settled": sum(lines.values())}
        wanted = {"_id": batch.id, "status": {"$in": _CLOSING}, "outputs": {"$exists": True}}
        return await self._step(wanted, batch.ending, **counts)


def _from(batch: Batch, line: int) -> Document:
    """Matches the batch's jobs from that request on."""
    return {"batch.id": batch.id, "batch.line": {"$gte": line}}

"""Reading jobs: single ones, lists, positions and counts. Majority reads: what a client saw once is never unseen."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bson import ObjectId

from broker.barrier import Barrier
from broker.database import BACKOFF_INDEX, CLAIM_INDEX, ENDED_INDEX, SLOT_INDEX, Database
from broker.errors import JobNotFound
from broker.group_commit import GroupCommit
from broker.job import TERMINAL, Document, Job, Status, parse_job_id

# What a job was submitted with, as a projection.
_SLIM = {"payload": 0, "asked.echo": 0}


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a list of jobs, newest first. ``cursor`` asks for the next ones; None at the end."""

    jobs: list[Job]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Counts:
    """A model's jobs by status, as far back as history is kept."""

    queued: int
    processing: int
    completed: int
    failed: int
    timeout: int
    cancelled: int


class JobReader:
    """``subject`` None, wherever it is asked for, means an admin, who sees everybody's jobs."""

    def __init__(self, database: Database) -> None:
        self._jobs = database.jobs
        self._barrier = Barrier(database)
        self._gets: GroupCommit[ObjectId, Document | None] = GroupCommit(self._find, lanes=2)
        self._standings: GroupCommit[ObjectId, Document | None] = GroupCommit(partial(self._find, slim=_SLIM), lanes=2)

    async def get(self, job_id: str, subject: str | None) -> Job:
        """Raises JobNotFound, for another subject's job too: its existence is nobody else's business."""
        parsed = parse_job_id(job_id)
        document = None if parsed is None else await self._gets.put(parsed)
        if document is None or subject not in (None, document["subject"]):
            raise JobNotFound(job_id)
        return Job.from_document(document)

    async def standing(self, job_id: ObjectId) -> Job:
        """The job as it is now, for who has it already: without what it was submitted with, which is never another
        but may be long, so ``payload`` is empty and ``asked`` has no ``echo``. Raises JobNotFound."""
        if (document := await self._standings.put(job_id)) is None:
            raise JobNotFound(str(job_id))
        return Job.from_document({"payload": {}, **document})

    async def _find(self, ids: Sequence[ObjectId], slim: Mapping[str, int] | None = None) -> list[Document | None]:
        """Those who ask at the same time are served by one query."""
        documents = await self._barrier.read(lambda: self._jobs.find({"_id": {"$in": list(ids)}}, slim).to_list())
        found = {document["_id"]: document for document in documents}
        return [found.get(job_id) for job_id in ids]

    async def newest(
        self,
        subject: str | None,
        *,
        status: Status | None = None,
        model: str | None = None,
        client: str | None = None,
        before: ObjectId | None = None,
        limit: int = 50,
    ) -> Page:
        """Newest first, without payload and result, which may be large. ``before``: the last page's cursor."""
        wanted = {"subject": subject, "status": status, "model": model, "client": client}
        query: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
        if before is not None:
            query["_id"] = {"$lt": before}
        slim = {**_SLIM, "result": 0, "errors": 0}
        documents = await self._barrier.read(
            lambda: self._jobs.find(query, slim).sort("_id", -1).limit(limit + 1).to_list()
        )
        jobs = [Job.from_document({"payload": {}, **document}) for document in documents]
        more = len(jobs) > limit
        return Page(jobs[:limit], str(jobs[limit - 1].id) if more else None)

    async def counts(self, model: str) -> Counts:
        """How many jobs of the model there are in each status."""
        queued, processing = await self.open_counts(model)
        ended = await asyncio.gather(
            *(
                self._count({"model": model, "status": status.value, "finished_at": {"$exists": True}}, ENDED_INDEX)
                for status in TERMINAL
            )
        )
        return Counts(queued, processing, *ended)

    async def open_counts(self, model: str) -> tuple[int, int]:
        """(queued, processing)."""
        claimable, backing_off, processing = await asyncio.gather(
            self._count({"model": model, "lane": {"$gte": ""}}, CLAIM_INDEX),
            self._count({"not_before": {"$exists": True}, "model": model}, BACKOFF_INDEX),
            self._count({"model": model, "slot": {"$gte": 0}, "status": Status.PROCESSING.value}, SLOT_INDEX),
        )
        return claimable + backing_off, processing

    async def _count(self, query: Mapping[str, Any], index: str) -> int:
        return await self._jobs.count_documents(query, hint=index)

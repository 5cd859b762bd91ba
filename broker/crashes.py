"""The crash log: every failed attempt, for operators to read."""

import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from broker.database import Database
from broker.job import Failure, Job
from broker.registry import Worker

# Characters: a stack is kept for reading, and an error's message may hold whatever an engine said.
STACK_LIMIT = 16_000


def stack_of(error: BaseException) -> str:
    """The traceback of ``error`` and of what caused it; of a long one the end, where it broke."""
    told = "".join(traceback.format_exception(error))[-STACK_LIMIT:]
    return told.encode(errors="backslashreplace").decode()


class CrashLog:
    def __init__(self, database: Database) -> None:
        self._crashes = database.crashes

    async def add(self, job: Job, failure: Failure, outcome: str) -> None:
        """``outcome``: what became of the job, ``queued`` for another attempt or the status it ended in."""
        await self._add(
            job=str(job.id),
            model=job.model,
            attempt=job.attempts,
            worker=job.worker,
            code=failure.code,
            message=failure.message,
            details=dict(failure.details),
            stack=failure.stack,
            outcome=outcome,
        )

    async def add_worker_death(self, worker: Worker) -> None:
        """A worker fell silent: it was killed, or lost the database for good."""
        await self._add(
            worker=worker.id,
            code="worker_died",
            message=f"The worker on {worker.host} (pid {worker.pid}) fell silent without signing off.",
            details={"last_seen": worker.last_seen.isoformat(), "started_at": worker.started_at.isoformat()},
            outcome="removed",
        )

    async def add_engine_death(self, worker: str, model: str, reason: str) -> None:
        """An engine ended by itself. Its jobs have entries of their own where they were charged."""
        await self._add(worker=worker, model=model, code="engine_died", message=reason, outcome="restarted")

    async def add_failed_start(self, worker: str, model: str, reason: str, *, given_up: bool) -> None:
        """An engine could not be started. When it is given up, only an operator can have it tried again."""
        outcome = "failed" if given_up else "retried"
        await self._add(worker=worker, model=model, code="engine_start_failed", message=reason, outcome=outcome)

    async def _add(self, *, code: str, message: str, outcome: str, **about: Any) -> None:
        unknown = dict.fromkeys(("job", "model", "attempt", "worker", "stack"))
        entry = {"code": code, "message": message, "outcome": outcome, "details": {}}
        await self._crashes.insert_one({"at": datetime.now(UTC), **unknown, **entry, **about})

    async def newest(
        self, *, limit: int = 100, since: datetime | None = None, model: str | None = None, code: str | None = None
    ) -> list[Mapping[str, Any]]:
        """Newest first."""
        wanted = {"model": model, "code": code}
        query: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
        if since is not None:
            query["at"] = {"$gte": since}
        cursor = self._crashes.find(query, {"_id": 0}).sort("at", -1).limit(limit)
        return [crash async for crash in cursor]

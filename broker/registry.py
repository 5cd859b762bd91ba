"""Who is there: the live workers and what they serve, and the models that somebody asked for in vain."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from broker.database import Database

# A worker that has not been heard of for this long is not counted as alive. Jobs do not depend on it: leases do.
HEARTBEAT = 2.0
SILENCE = timedelta(seconds=3 * HEARTBEAT)
# After this long a silent worker is counted as dead.
BURIAL = timedelta(seconds=30)
# Seconds for which it is believed who is alive.
KNOWN = 1.0
# Names that clients send are kept short and few, so that nobody can fill the database with them.
NAME_LIMIT = 200
MISSING_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class ModelState:
    """What one worker says of one model. ``state``: ready, or the reason why it cannot be served."""

    ready: bool
    state: str


@dataclass(frozen=True, slots=True)
class Worker:
    id: str
    host: str
    pid: int
    started_at: datetime
    last_seen: datetime
    draining: bool
    models: Mapping[str, ModelState]

    def serves(self, model: str) -> bool:
        state = self.models.get(model)
        return state is not None and state.ready and not self.draining


class Registry:
    def __init__(self, database: Database) -> None:
        self._workers = database.workers
        self._missing = database.missing_models
        self._known: tuple[float, list[Worker]] = (-math.inf, [])

    async def heartbeat(
        self, worker: str, host: str, pid: int, models: Mapping[str, ModelState], *, draining: bool
    ) -> None:
        """Says that the worker lives. ``w:1``: the next beat heals a lost one."""
        about = {
            "host": host,
            "pid": pid,
            "draining": draining,
            # Model names may hold dots, so they are values here and not keys.
            "models": [{"name": name, "ready": m.ready, "state": m.state} for name, m in models.items()],
        }
        update: list[dict[str, Any]] = [
            {"$set": {"last_seen": "$$NOW", "started_at": {"$ifNull": ["$started_at", "$$NOW"]}}},
            {"$set": {key: {"$literal": value} for key, value in about.items()}},
        ]
        await self._workers.update_one({"_id": worker}, update, upsert=True)

    async def remove(self, worker: str) -> None:
        """The worker has stopped in good order."""
        await self._workers.delete_one({"_id": worker})

    async def live_workers(self) -> list[Worker]:
        """The workers heard of within SILENCE, by the database's clock."""
        oldest = {"$subtract": ["$$NOW", int(SILENCE.total_seconds() * 1000)]}
        recent = {"$expr": {"$gte": ["$last_seen", oldest]}}
        return [_worker(document) async for document in self._workers.find(recent).sort("started_at", 1)]

    async def take_dead(self) -> list[Worker]:
        """Removes the workers that have been silent for BURIAL; who removes one is the only one to be told."""
        oldest = {"$subtract": ["$$NOW", int(BURIAL.total_seconds() * 1000)]}
        silent = {"$expr": {"$lt": ["$last_seen", oldest]}}
        dead = []
        while document := await self._workers.find_one_and_delete(silent):
            dead.append(_worker(document))
        return dead

    async def known_workers(self) -> list[Worker]:
        """The live workers as they were a moment ago: good enough to choose a model by, and free."""
        looked, workers = self._known
        if time.monotonic() - looked > KNOWN:
            workers = await self.live_workers()
            self._known = (time.monotonic(), workers)
        return workers

    async def missing(self, name: str, subject: str) -> None:
        """Somebody asked for a model that is not configured."""
        name = name[:NAME_LIMIT]
        known = await self._missing.find_one({"_id": name}, {"_id": 1})
        if known is None and await self._missing.estimated_document_count() >= MISSING_LIMIT:
            return
        now = datetime.now(UTC)
        await self._missing.update_one(
            {"_id": name},
            {
                "$inc": {"count": 1},
                "$set": {"last_seen": now, "last_subject": subject},
                "$setOnInsert": {"first_seen": now},
            },
            upsert=True,
        )

    async def missing_models(self) -> list[dict[str, Any]]:
        """Most wanted first."""
        return [document async for document in self._missing.find().sort("count", -1).limit(MISSING_LIMIT)]


def _worker(document: Mapping[str, Any]) -> Worker:
    return Worker(
        id=document["_id"],
        host=document["host"],
        pid=document["pid"],
        started_at=document["started_at"],
        last_seen=document["last_seen"],
        draining=document["draining"],
        models={m["name"]: ModelState(m["ready"], m["state"]) for m in document["models"]},
    )


def first_available(preferences: Sequence[str], workers: Iterable[Worker]) -> str | None:
    """The model for a request that names none: the first that a live worker serves.

    Where none is served just now it is the last one, which by custom asks the least of a machine.
    """
    workers = list(workers)
    served = (model for model in preferences if any(worker.serves(model) for worker in workers))
    return next(served, preferences[-1] if preferences else None)

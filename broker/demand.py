"""What is asked of the models whose engines take memory: what waits, since when, and how much comes.

Asked each second by whoever plans. It stays flat in the history and in the queues' depth: what waits is told by the
claim index alone and counted up to MOST, and arrivals are told by the ids of the jobs of the last seconds, which hold
the second of their making.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId, Timestamp

from broker.clock import DatabaseClock
from broker.database import CLAIM_INDEX, ENDED_INDEX, Database
from broker.job import TERMINAL
from broker.registry import Registry

# A longer queue than this is as long as this one.
MOST = 1000
# Seconds over which the rate of arrivals is taken.
WINDOW = 300
# Seconds that an id may be older than those that were stored before it: by gateways' clocks, or on its way.
LATE = 5


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one model, in seconds and jobs.

    ``queued``: jobs that could be claimed now, up to MOST. ``oldest_wait``: of these. ``rate``: jobs submitted per
    second over WINDOW. ``idle_for``: since a job last ran, waited or came. ``running``: jobs by worker.
    ``still_waiting``: by worker, jobs that waited when its engine became ready and still do, up to MOST.
    """

    queued: int = 0
    oldest_wait: float = 0.0
    rate: float = 0.0
    idle_for: float = math.inf
    running: Mapping[str, int] = field(default_factory=dict)
    still_waiting: Mapping[str, int] = field(default_factory=dict)


ReadySince = Mapping[str, Mapping[str, datetime]]
"""{model: {worker: since when its engine is ready there}}, with every model that is asked about."""


class Demands:
    """Remembers the arrivals of the last minutes. ``registry``: tells what runs where."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._jobs = database.jobs_local
        self._registry = registry
        self._clock = DatabaseClock(database)
        self._arrivals = Arrivals(database)
        self._active: dict[str, float] = {}

    def forget(self) -> None:
        """Somebody else has planned meanwhile."""
        self._active.clear()
        self._arrivals.forget()

    async def look(self, ready_since: ReadySince) -> Mapping[str, Demand]:
        """Raises PyMongoError."""
        now = await self._clock.now()
        models = list(ready_since)
        waiting, running, _ = await asyncio.gather(
            self._waiting(), self._registry.running_jobs(models), self._arrivals.look(now)
        )
        looks = (self._of(model, now, model in waiting, running, ready_since[model]) for model in models)
        return dict(zip(models, await asyncio.gather(*looks), strict=True))

    async def _of(
        self,
        model: str,
        now: float,
        waits: bool,
        running: Mapping[str, Mapping[str, int]],
        ready_since: Mapping[str, datetime],
    ) -> Demand:
        here = {worker: jobs[model] for worker, jobs in running.items() if model in jobs}
        queued, oldest, still = 0, now, dict.fromkeys(ready_since, 0)
        if waits:
            queued, oldest = await asyncio.gather(self._count(model), self._oldest(model, now))
            for worker, since in ready_since.items():
                still[worker] = await self._count(model, since)
        return Demand(
            queued=queued,
            oldest_wait=max(0.0, now - oldest),
            rate=self._arrivals.rate(model),
            idle_for=await self._idle_for(model, now, busy=bool(here or waits)),
            running=here,
            still_waiting=still,
        )

    async def _waiting(self) -> set[str]:
        """The models for which anything can be claimed."""
        found = await self._jobs.aggregate(waiting_models(), hint=CLAIM_INDEX)
        return {document["_id"] async for document in found}

    async def _count(self, model: str, until: datetime | None = None) -> int:
        query = {"model": model, "lane": {"$gte": ""}} | ({} if until is None else {"seq": {"$lt": after(until)}})
        return await self._jobs.count_documents(query, hint=CLAIM_INDEX, limit=MOST)

    async def _oldest(self, model: str, now: float) -> float:
        async for document in await self._jobs.aggregate(oldest(model), hint=CLAIM_INDEX):
            return float(document["seq"].time)
        return now

    async def _idle_for(self, model: str, now: float, *, busy: bool) -> float:
        if model not in self._active:
            self._active[model] = await self._last_ended(model)
        known = self._active[model], self._arrivals.last(model)
        self._active[model] = now if busy else max(known)
        return max(0.0, now - self._active[model])

    async def _last_ended(self, model: str) -> float:
        """When a job of the model ended last, in seconds since 1970."""
        ended = await asyncio.gather(*(self._ended(model, status.value) for status in TERMINAL))
        return max(ended)

    async def _ended(self, model: str, status: str) -> float:
        query = {"model": model, "status": status, "finished_at": {"$exists": True}}
        newest = self._jobs.find(query, {"_id": 0, "finished_at": 1}).sort("finished_at", -1).limit(1)
        async for document in newest.hint(ENDED_INDEX):
            return float(document["finished_at"].timestamp())
        return -math.inf


class Arrivals:
    """How many jobs of each model came in each of the last seconds, by the clocks of those who submit them."""

    def __init__(self, database: Database) -> None:
        self._jobs = database.jobs_local
        self._seconds: dict[int, Counter[str]] = {}
        self._seen: int | None = None

    def forget(self) -> None:
        self._seconds.clear()
        self._seen = None

    async def look(self, now: float) -> None:
        """Counts anew what may have changed since the last look; the first one goes over the whole window."""
        oldest = math.floor(now) - WINDOW
        since = oldest if self._seen is None else max(oldest, self._seen - LATE)
        counted: dict[int, Counter[str]] = {}
        async for found in await self._jobs.aggregate(arrivals(since), hint="_id_"):
            counted.setdefault(int(found["_id"]["at"].timestamp()), Counter())[found["_id"]["model"]] = found["jobs"]
        kept = {second: counts for second, counts in self._seconds.items() if oldest <= second < since}
        self._seconds = kept | counted
        self._seen = math.floor(now)

    def rate(self, model: str) -> float:
        """Jobs per second over the window."""
        return sum(counts[model] for counts in self._seconds.values()) / WINDOW

    def last(self, model: str) -> float:
        """When the last job came, in seconds since 1970."""
        return max((float(second) for second, counts in self._seconds.items() if counts[model]), default=-math.inf)


def after(moment: datetime) -> Timestamp:
    """No job that was stored at or before ``moment`` has this number or a later one."""
    return Timestamp(math.floor(moment.timestamp()) + 1, 0)


# Each is a look at the ends of an index, or at a part of it that does not grow with the history or the queue.


def waiting_models() -> Sequence[Mapping[str, Any]]:
    return [
        {"$match": {"model": {"$gte": ""}, "lane": {"$gte": ""}}},
        {"$sort": {"model": 1, "lane": 1, "seq": 1}},
        {"$group": {"_id": "$model", "lane": {"$first": "$lane"}}},
    ]


def oldest(model: str) -> Sequence[Mapping[str, Any]]:
    return [
        {"$match": {"model": model, "lane": {"$gte": ""}}},
        {"$sort": {"model": 1, "lane": 1, "seq": 1}},
        {"$group": {"_id": "$lane", "seq": {"$first": "$seq"}}},
        {"$group": {"_id": None, "seq": {"$min": "$seq"}}},
    ]


def arrivals(since: int) -> Sequence[Mapping[str, Any]]:
    first = ObjectId.from_datetime(datetime.fromtimestamp(since, UTC))
    return [
        {"$match": {"_id": {"$gte": first}}},
        {"$group": {"_id": {"model": "$model", "at": {"$toDate": "$_id"}}, "jobs": {"$sum": 1}}},
    ]

"""Where waiting jobs stand in the order of claims, and when they may be expected to end.

The order is worked out for a whole model at once, to DEPTH jobs, by the very function that claims; for a moment the
answer serves everybody who asks.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import mean
from typing import Any

from bson import Timestamp

from broker.database import CLAIM_INDEX, ENDED_INDEX, SLOT_INDEX, Database
from broker.fairness import Lane, in_order
from broker.job import Job, Status
from broker.lanes import Lanes, waiting_entry

# Positions are exact up to here, and estimated beyond.
DEPTH = 1000
# Seconds for which an order is believed, and a measure of the service time.
ORDER_TRUST = 0.25
SERVICE_TRUST = 2.0
# So many of the last completed jobs are averaged.
SAMPLE = 30

Seq = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Position:
    """``number``: 1 is claimed next; None for a job that does not wait. ``exact``: counted, not estimated.

    ``eta``: seconds until the job has probably ended; None while nothing has been measured, and for an ended job.
    """

    number: int | None
    exact: bool
    eta: float | None


@dataclass(frozen=True, slots=True)
class _Order:
    places: Mapping[Seq, int]
    waiting: int
    processing: int
    taken: float


class Positions:
    def __init__(self, database: Database, lanes: Lanes) -> None:
        self._jobs = database.jobs_local
        self._lanes = lanes
        self._orders: dict[str, _Order] = {}
        self._services: dict[str, tuple[float, float | None]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, job: Job) -> Position:
        """The position of a job as it was read."""
        if job.status.terminal:
            return Position(None, True, None)
        service = await self._service(job.model)
        if job.status is Status.PROCESSING:
            return Position(None, True, None if service is None else _remaining(job, service))
        order, seq = await self._order(job)
        if seq is None:  # in backoff, or just claimed
            return Position(None, True, None)
        number = order.places.get(seq)
        place = order.waiting if number is None else number
        eta = None if service is None else service * (place / max(1, order.processing) + 1)
        return Position(place, number is not None, eta)

    async def _order(self, job: Job) -> tuple[_Order, Seq | None]:
        seq = await self._seq(job)
        async with self._locks[job.model]:
            order = self._orders.get(job.model)
            if order is None or time.monotonic() - order.taken > ORDER_TRUST:
                order = self._orders[job.model] = await self._work_out(job.model)
        return order, seq

    async def _seq(self, job: Job) -> Seq | None:
        found = await self._jobs.find_one({"_id": job.id, "lane": {"$gte": ""}}, {"seq": 1})
        return None if found is None else _pair(found["seq"])

    async def _work_out(self, model: str) -> _Order:
        taken = time.monotonic()
        heads = await self._lanes.heads(model)
        clock = await self._lanes.clock(model)
        now = await self._lanes.time.now()
        lanes = [await self._lane(head, now) for head in heads]
        ranked = in_order(lanes, clock, self._lanes.weights, self._lanes.aging, DEPTH)
        waiting = await self._jobs.count_documents({"model": model, "lane": {"$gte": ""}}, hint=CLAIM_INDEX)
        processing = await self._jobs.count_documents({"model": model, "slot": {"$gte": 0}}, hint=SLOT_INDEX)
        return _Order({seq: n for n, seq in enumerate(ranked, 1)}, waiting, processing, taken)

    async def _lane(self, head: Mapping[str, Any], now: float) -> Lane[Seq]:
        lane = {"model": head["model"], "lane": head["lane"]}
        covered = {"_id": 0, "seq": 1}
        jobs = self._jobs.find(lane, covered).sort("seq", 1).limit(DEPTH + 1).hint(CLAIM_INDEX)
        entries = [waiting_entry(_pair(job["seq"]), job["seq"], now) async for job in jobs]
        return Lane(head["subject"], head["level"], entries, more=len(entries) > DEPTH)

    async def _service(self, model: str) -> float | None:
        """Mean seconds from claim to end of the last completed jobs."""
        measured, service = self._services.get(model, (0.0, None))
        if time.monotonic() - measured < SERVICE_TRUST and service is not None:
            return service
        # Those that were answered with an earlier result have never started.
        ran = {"finished_at": {"$exists": True}, "started_at": {"$exists": True}}
        done = {"model": model, "status": Status.COMPLETED.value} | ran
        last = self._jobs.find(done, {"started_at": 1, "finished_at": 1}).sort("finished_at", -1).limit(SAMPLE)
        spans = [(job["finished_at"] - job["started_at"]).total_seconds() async for job in last.hint(ENDED_INDEX)]
        service = mean(spans) if spans else None
        self._services[model] = (time.monotonic(), service)
        return service


def _remaining(job: Job, service: float) -> float:
    elapsed = 0.0 if job.started_at is None else (datetime.now(UTC) - job.started_at).total_seconds()
    return max(0.0, service - elapsed)


def _pair(seq: Timestamp) -> Seq:
    return seq.time, seq.inc

"""Direct leases: a job that finds nobody waiting and a worker idle is stored with its lease in it.

That saves the claim, which is a look and a write, where there is nothing to choose between. All stays exact:

- The slot is held under the same unique index as a claim's, so the bound on running jobs is the same.
- Nobody is overtaken: the queue is looked at before the insert, and whoever was accepted before then is seen.
- The attempt counts from the moment when its worker confirms it, by ending it or by renewing its lease for the first
  time. A lease that nobody has confirmed after CONFIRM seconds lapses, and the job queues as if it had never had one:
  a worker that died a moment ago burns no attempt.
- The worker hears of the lease by its change stream, and looks for leases in its name besides.
"""

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from bson import ObjectId

from broker.clock import DatabaseClock, to_the_millisecond
from broker.database import CLAIM_INDEX, Database
from broker.group_commit import GroupCommit
from broker.job import Document, Status
from broker.numbers import Numbers
from broker.registry import HEARTBEAT, Worker

# Seconds for which a model where jobs had to wait is not tried again.
PAUSE = 0.02

LiveWorkers = Callable[[], Awaitable[Sequence[Worker]]]


class DirectLeases:
    """``workers``: who lives, as it was known a moment ago. ``slots`` are those of the queue."""

    def __init__(self, database: Database, workers: LiveWorkers, slots: Numbers, clock: DatabaseClock) -> None:
        self._jobs = database.jobs_local
        self._workers = workers
        self._slots = slots
        self._clock = clock
        self._looks: GroupCommit[str, bool] = GroupCommit(self._anybody_waits)
        self._pause_until: dict[str, float] = {}
        self._turn = 0
        self._slot_of: dict[ObjectId, tuple[str, int]] = {}
        self._holder: dict[tuple[str, int], ObjectId] = {}

    async def lease(self, job: ObjectId, model: str, limit: int) -> Document | None:
        """The fields that make the new job a leased one; None where it has to queue.

        ``limit``: the slots of the model. Whoever gets a lease settles its slot when the job is stored, or is not.
        """
        if time.monotonic() < self._pause_until.get(model, 0.0):
            return None
        workers = [worker for worker in await self._workers() if worker.serves(model)]
        if not workers:
            return None
        slots = await self._slots.take(model, limit)
        if not slots:
            self._pause(model)
            return None
        (slot,) = slots
        try:
            waits = await self._looks.put(model)
        except BaseException:
            self._slots.settle(model, slot, unused=True)
            raise
        if waits:
            self._slots.settle(model, slot, unused=True)
            self._pause(model)
            return None
        self._remember(job, model, slot)
        return {
            "status": Status.PROCESSING.value,
            "slot": slot,
            "token": uuid.uuid4().hex,
            "worker": self._choose(workers),
            "started_at": to_the_millisecond(datetime.fromtimestamp(await self._clock.now(), UTC)),
        }

    def ended(self, job: ObjectId) -> None:
        """The job has ended: its slot, if it was given here, is free."""
        if (held := self._slot_of.pop(job, None)) is not None:
            del self._holder[held]
            self._slots.settle(*held, unused=True)

    def _remember(self, job: ObjectId, model: str, slot: int) -> None:
        # One job for each slot: where the end of the one before was not heard of, it is forgotten here.
        if (before := self._holder.get((model, slot))) is not None:
            del self._slot_of[before]
        self._holder[model, slot] = job
        self._slot_of[job] = model, slot

    def _pause(self, model: str) -> None:
        self._pause_until[model] = time.monotonic() + PAUSE

    def _choose(self, workers: Sequence[Worker]) -> str:
        """Each in turn, of those who were heard of last: one that has died is left out before it counts as silent."""
        newest = max(worker.last_seen for worker in workers)
        fresh = [worker for worker in workers if (newest - worker.last_seen).total_seconds() <= 1.25 * HEARTBEAT]
        self._turn += 1
        return fresh[self._turn % len(fresh)].id

    async def _anybody_waits(self, models: Sequence[str]) -> list[bool]:
        """Those who ask at the same time are served by one look at each model."""
        waits = {model: await self._waits(model) for model in dict.fromkeys(models)}
        return [waits[model] for model in models]

    async def _waits(self, model: str) -> bool:
        waiting = {"model": model, "lane": {"$gte": ""}}
        return await self._jobs.find_one(waiting, {"_id": 0, "lane": 1}, hint=CLAIM_INDEX) is not None

"""Claims: waiting jobs become a worker's, each by one atomic write."""

import asyncio
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from pymongo.errors import AutoReconnect, DuplicateKeyError

from broker.database import HEALED, SLOT_INDEX, Database
from broker.job import Document, Job, Status
from broker.job_updates import claimed_job, from_now
from broker.lanes import Lanes, Resolutions
from broker.numbers import Numbers
from config import QueueSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claims:
    """Claimed jobs. ``more``: others may wait that could be claimed, or could be if a slot were free."""

    jobs: list[Job]
    more: bool


class Claimer:
    """``slots`` are those of the queue."""

    def __init__(self, database: Database, lanes: Lanes, slots: Numbers, settings: QueueSettings) -> None:
        self._weak = database.jobs.with_options(write_concern=HEALED)
        self._local = database.jobs_local
        self._lanes = lanes
        self._slots = slots
        self._settings = settings

    async def claim(self, model: str, worker: str, most: int, limit: int, resolutions: Resolutions = None) -> Claims:
        """Takes up to ``most`` jobs, in the fair order, by one atomic write for each. ``limit``: slots of the model.
        ``resolutions``: those that the jobs may ask for, see ``broker.lanes``.

        ``w:1``: a claim that a failover rolls back only means that the job is claimed again; the first worker's
        token is then unknown, and its writes match nothing.
        """
        while slots := await self._slots.take(model, limit, most):
            claimed: list[Job] = []
            unused: set[int] = set()
            contested = False
            try:
                waiting, more = await self._lanes.next_jobs(model, len(slots), resolutions)
                if waiting:
                    claimed, contested = await self._claim(model, waiting, slots, worker)
                if not contested:
                    unused.update(set(slots).difference(job.slot for job in claimed))
            finally:
                for slot in slots:
                    self._slots.settle(model, slot, unused=slot in unused)
            if claimed or not waiting:
                return Claims(claimed, more or len(claimed) < len(waiting))
        return Claims([], True)

    async def _claim(
        self, model: str, waiting: Sequence[Document], slots: Sequence[int], worker: str
    ) -> tuple[list[Job], bool]:
        """The n-th job gets the n-th slot. Those that somebody else has taken meanwhile are left out.

        True where it is not known which slots are taken.
        """
        token, ids = uuid.uuid4().hex, [job["_id"] for job in waiting]
        number = {"$indexOfArray": [ids, "$_id"]}
        claim = {
            "status": Status.PROCESSING.value,
            "slot": {"$arrayElemAt": [list(slots), number]},
            "token": token,
            "worker": worker,
            "attempts": {"$add": ["$attempts", 1]},
            "begun": {"$add": [{"$ifNull": ["$begun", 0]}, 1]},
            "started_at": "$$NOW",
            "lease_expires_at": from_now(self._settings.lease),
        }
        free = {
            "_id": {"$in": ids},
            "status": Status.QUEUED.value,
            "lane": {"$gte": ""},
            # As it was read: since then it may have been claimed and have come back, with an attempt more.
            "$expr": {"$eq": ["$attempts", {"$arrayElemAt": [[job["attempts"] for job in waiting], number]}]},
        }
        try:
            written = await self._weak.update_many(free, [{"$set": claim}, {"$unset": ["lane"]}])
        except DuplicateKeyError:  # a slot was taken: the jobs before it are claimed
            return await self._look_for_claims(model, slots, token), True
        except AutoReconnect as error:
            log.warning("an unclear claim is looked for: %s", error)
            return await self._look_for_claims(model, slots, token), True
        if written.modified_count == len(ids):
            return [claimed_job(job, token, slot, worker) for job, slot in zip(waiting, slots, strict=False)], False
        return await self._look_for_claims(model, slots, token), False

    async def _look_for_claims(self, model: str, slots: Sequence[int], token: str) -> list[Job]:
        """What a claim has got. Asked until the database answers, for nothing else can go on."""
        mine = {"model": model, "slot": {"$in": list(slots)}, "token": token}
        while True:
            try:
                return [Job.from_document(document) async for document in self._local.find(mine).hint(SLOT_INDEX)]
            except AutoReconnect as error:
                log.warning("claims cannot be looked for: %s", error)
                await asyncio.sleep(self._settings.poll_interval)

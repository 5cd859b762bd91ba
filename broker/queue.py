"""The queue: the writes to job documents, each one a single conditional write. Elsewhere are those of claims
(``broker.claims``), of moves to another model (``broker.fallback``), the one that notes that a webhook has been taken
over (``broker.deliveries``), and the deletion of old jobs (``broker.cleanup``).

Writes of an attempt match ``{_id, status, token}``; the token is drawn at each claim and stays in the terminal
document, so that a write repeated after an unclear outcome can see that it had succeeded. Times are the
database's (``$$NOW``), but for those of an insert, which knows none: when a job was created, when one ended that ended
as it came, and when models were found full are a host's.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from bson import ObjectId
from pymongo.errors import AutoReconnect, BulkWriteError, DuplicateKeyError

from broker.claims import Claimer, Claims
from broker.database import HEALED, SLOT_INDEX, Database
from broker.direct import DirectLeases, LiveWorkers
from broker.errors import BackendsHeldBack, JobFinished, JobNotFound, ModelNotFound, QueueFull
from broker.fallback import Fallbacks, another_may, at_once
from broker.group_commit import GroupCommit
from broker.idempotency import IdempotencyKeys
from broker.job import LEASE_EXPIRED, Document, Failure, Job, NewJob, Status, after_failure
from broker.job_updates import (
    HELD,
    OPEN,
    answered_document,
    cancellation,
    completion,
    end_of,
    error_entry,
    fence,
    from_now,
    lapsed,
    leased_document,
    literal,
    new_document,
    refused_document,
    taken_over,
    unique_keys,
    write_error,
)
from broker.lanes import Lanes, Resolutions, lane_expression
from broker.logs import in_short
from broker.numbers import Numbers
from broker.retry import backoff
from config import ModelSettings, QueueSettings

log = logging.getLogger(__name__)

# Seconds after which a client that found no place may ask again.
RETRY_AFTER = 5

_IS_OPEN = {"status": {"$in": [Status.QUEUED.value, Status.PROCESSING.value]}}


class JobQueue:
    """Submits, claims and ends jobs of the configured models.

    ``workers``: who lives, for direct leases; without it every job queues.

    All methods raise ``pymongo.errors.PyMongoError`` where the database cannot be reached.
    """

    def __init__(
        self,
        database: Database,
        models: Mapping[str, ModelSettings],
        settings: QueueSettings,
        lanes: Lanes | None = None,
        workers: LiveWorkers | None = None,
    ) -> None:
        self._jobs = database.jobs
        self._weak = database.jobs.with_options(write_concern=HEALED)
        self._local = database.jobs_local
        self.keys = IdempotencyKeys(database)
        self._lanes = lanes or Lanes(database, settings.weights, settings.aging)
        self._submits: GroupCommit[Document, None] = GroupCommit(self._insert)
        self._completions: GroupCommit[tuple[Job, Mapping[str, Any]], bool] = GroupCommit(self._complete)
        self._models = models
        self._settings = settings
        self._lapsed = lapsed(settings.lease)
        self._places = Numbers(database, "place")
        self._slots = Numbers(database, "slot")
        self._claimer = Claimer(database, self._lanes, self._slots, settings)
        self.fallbacks = Fallbacks(database, models, self._places)
        self._direct = workers and DirectLeases(database, workers, self._slots, self._lanes.time)

    # ── Admission ────────────────────────────────────────────────────────────────────────────────────────────────

    async def has_room(self, model: str) -> bool:
        """Whether a submit is worth trying, asked before a body is read. The submit itself decides."""
        return await self.fallbacks.any_room(model)

    async def submit(self, new: NewJob) -> Job:
        """Stores the job durably in a free place, waiting or with a direct lease.

        Where its Idempotency-Key came before, the job of then, of another id, is returned instead; with another
        content, IdempotencyConflict is raised. Raises QueueFull, with nothing written, where no place is free, with
        none of its model's fallbacks either.
        """
        return await self.fallbacks.submit(new, self._submit)

    async def _submit(self, new: NewJob) -> Job:
        limit = self._model(new.model).max_concurrent
        lease = None
        # Which mode an engine is in its worker knows best, who claims what asks for that.
        if self._direct is not None and not self._model(new.model).has_modes:
            lease = await self._direct.lease(new.id, new.model, limit)
        try:
            return await self._store(new, lease)
        finally:
            if lease is not None:
                self._slots.settle(new.model, lease["slot"])

    async def _store(self, new: NewJob, lease: Document | None) -> Job:
        waiting = new_document(new, self._model(new.model))
        while places := await self._places.take(new.model, self._bound(new.model)):
            document = waiting if lease is None else leased_document(waiting, lease)
            try:
                await self._submits.put({**document, "place": places[0]})
                return Job.from_document(document)
            except DuplicateKeyError as error:
                taken = unique_keys(error)
                if "_id" in taken:
                    return Job.from_document(document)  # this very submit, repeated after its answer was lost
                if new.idempotency is not None and "idempotency.key" in taken:
                    if earlier := await self.keys.earlier(new.subject, new.idempotency):
                        return earlier
                elif "slot" in taken:
                    lease = None
                # Another process took a number first, or the earlier job has gone meanwhile.
            finally:
                self._places.settle(new.model, places[0])
        raise self.full(new.model)

    async def submit_answered(self, new: NewJob, origin: Job) -> Job:
        """Stores a job that ends as it comes, completed with the result of ``origin``, which it shares. It needs no
        place. The Idempotency-Key is honoured as in ``submit``."""
        document = answered_document(new, self._model(new.model), origin)
        try:
            await self._jobs.insert_one(document)
        except DuplicateKeyError:
            earlier = new.idempotency and await self.keys.earlier(new.subject, new.idempotency)
            if earlier:
                return earlier
            if await self._jobs.find_one({"_id": new.id}, {"_id": 1}) is None:
                raise
        return Job.from_document(document)

    async def submit_refused(self, new: NewJob, code: str, message: str) -> None:
        """Stores a job that ends as it comes, failed: for a line of a batch that cannot be run any more. Twice is no
        error. It needs no place, and its model need not be there."""
        error = {"code": code, "message": message}
        with suppress(DuplicateKeyError):
            await self._jobs.insert_one(refused_document(new, error))

    def ended(self, job_id: ObjectId) -> None:
        """News that a job has ended, for those who remember its slot."""
        if self._direct is not None:
            self._direct.ended(job_id)

    async def _insert(self, documents: Sequence[Document]) -> list[Exception | None]:
        """One durable command for all; which of them found their place taken."""
        outcomes: list[Exception | None] = [None] * len(documents)
        try:
            await self._jobs.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            if error.details["writeConcernErrors"]:
                # Written, perhaps, but a primary that goes away before a majority has it may take it back.
                raise AutoReconnect(f"The outcome of a submit is unclear: {in_short(error)}") from error
            for fault in error.details["writeErrors"]:
                outcomes[fault["index"]] = write_error(fault)
        return outcomes

    def full(self, model: str) -> QueueFull:
        """The error for a model without a free place."""
        return QueueFull(model, self._bound(model), retry_after=RETRY_AFTER)

    def _bound(self, model: str) -> int:
        settings = self._model(model)
        return settings.max_concurrent + settings.max_waiting

    def _model(self, name: str) -> ModelSettings:
        try:
            return self._models[name]
        except KeyError:
            raise ModelNotFound(name) from None

    # ── The worker's side ────────────────────────────────────────────────────────────────────────────────────────

    async def claim(self, model: str, worker: str, most: int = 1, resolutions: Resolutions = None) -> Claims:
        """Takes up to ``most`` jobs, in the fair order, by one atomic write for each. ``resolutions``: those that the
        jobs may ask for, see ``broker.lanes``."""
        return await self._claimer.claim(model, worker, most, self._model(model).max_concurrent, resolutions)

    def _slot_is_free(self, job: Job) -> None:
        """This process has just ended its hold on the job's slot."""
        if job.slot is not None:
            self._slots.settle(job.model, job.slot, unused=True)

    async def direct_leases(self, worker: str, models: Sequence[str]) -> list[Job]:
        """The jobs with a direct lease of this worker that it has not confirmed, as it begins them."""
        mine = {"model": {"$in": list(models)}, "slot": {"$gte": 0}, "worker": worker, "attempts": 0}
        found = self._local.find(mine | {"status": Status.PROCESSING.value}).hint(SLOT_INDEX)
        return [taken_over(document) async for document in found]

    async def renew(self, held: Mapping[ObjectId, str]) -> set[ObjectId]:
        """Renews the leases of ``{job id: token}`` in one write; returns the ids that this worker has lost.

        ``w:1``: the next renewal heals a lost one. Matches the token, not the expiry: a late renewal counts as long
        as nobody has reaped the job.
        """
        mine = {
            "_id": {"$in": list(held)},
            "status": Status.PROCESSING.value,
            "token": {"$in": list(held.values())},
        }
        # The first renewal confirms a direct lease.
        attempts = {"$max": ["$attempts", 1]}
        lease = [{"$set": {"lease_expires_at": from_now(self._settings.lease), "attempts": attempts}}]
        renewed = await self._weak.update_many(mine, lease)
        if renewed.matched_count == len(held):
            return set()
        # Not by a majority read: it would not see a claim of this moment, and its worker would give the job up.
        kept = {document["_id"] async for document in self._local.find(mine, {"_id": 1})}
        return set(held) - kept

    async def progress(self, job: Job, done: int, total: int | None, unit: str, *, gained: bool = False) -> None:
        """Tells how far the job is. ``w:1``: the next one heals a lost one.

        ``gained``: this attempt has brought it further, by what the next one need not do again.
        """
        told: Document = {"progress": {"done": done, "total": total, "unit": unit}, "attempts": job.attempts}
        await self._weak.update_one(fence(job), {"$set": told | ({"gained": job.token} if gained else {})})

    async def complete(self, job: Job, result: Mapping[str, Any]) -> bool:
        """Records the result. ``result`` is what goes into the document, see ``broker.results``.

        False where the lease was lost, and the result counts for nothing.
        """
        return await self._completions.put((job, result))

    async def _complete(self, completions: Sequence[tuple[Job, Mapping[str, Any]]]) -> list[bool]:
        """One durable command for all; whether each write stands."""
        writes = [completion(job, result) for job, result in completions]
        written = await self._jobs.bulk_write(writes, ordered=False)
        if written.matched_count == len(writes):
            for job, _ in completions:
                self._slot_is_free(job)
            return [True] * len(writes)
        # Some leases were lost, or the same write had succeeded before its answer was lost: the tokens tell.
        ids = [job.id for job, _ in completions]
        ended = {"_id": {"$in": ids}, "status": Status.COMPLETED.value}
        tokens = {document["_id"]: document["token"] async for document in self._jobs.find(ended, {"token": 1})}
        return [tokens.get(job.id) == job.token for job, _ in completions]

    async def fail(self, job: Job, failure: Failure, *, gained: bool = False) -> Status | None:
        """Records a failed attempt: back to the queue after a backoff, or to the end. None where the lease was lost.

        One that has ``gained`` is not counted, unless its failure is permanent.
        """
        return await self._end_attempt(job, failure, fence(job), gained)

    async def _end_attempt(self, job: Job, failure: Failure, fence: Mapping[str, Any], gained: bool) -> Status | None:
        counted = job.attempts - 1 if gained and not failure.permanent else job.attempts
        status = after_failure(counted, job.max_retries, failure)
        hopeless = another_may(failure) if status.terminal else at_once(failure)
        if hopeless and await self.fallbacks.move(job, failure, fence):
            self._slot_is_free(job)
            return Status.QUEUED
        errors = {"errors": {"$concatArrays": [{"$ifNull": ["$errors", []]}, [error_entry(job, failure)]]}}
        if status is not Status.QUEUED:
            error = literal({"code": failure.code, "message": failure.message})
            return status if await self._finish(job, status, {**errors, "error": error}, fence) else None
        delay = backoff(job.attempts, self._settings.retry_backoff, self._settings.retry_backoff_max)
        # Who comes while all servers are left alone is sent away again, and has an attempt less.
        longest = math.inf if failure.code == BackendsHeldBack.code else self._settings.retry_backoff_max
        delay = max(delay, min(failure.retry_after or 0.0, longest))
        again = {"status": status.value, "attempts": counted, "not_before": from_now(delay), **errors}
        written = await self._jobs.update_one(fence, [{"$set": again}, {"$unset": HELD}])
        if not written.matched_count:
            return None
        self._slot_is_free(job)
        return status

    async def _finish(self, job: Job, status: Status, changes: Mapping[str, Any], fence: Mapping[str, Any]) -> bool:
        update: list[dict[str, Any]] = [
            {"$set": {**end_of(job, status), "finished_at": "$$NOW", **changes}},
            {"$unset": OPEN},
        ]
        written = await self._jobs.update_one(fence, update)
        if written.matched_count:
            return True
        # The same write may have succeeded before its answer was lost: the token tells.
        mine = {"_id": job.id, "status": status.value, "token": job.token}
        return await self._jobs.find_one(mine, {"_id": 1}) is not None

    async def release(self, job: Job, *, suspect: bool = False, to_the_back: bool = False) -> bool:
        """Hands a job back, as a draining worker does: no attempt is consumed. ``suspect``: it is to run alone.

        ``to_the_back``: those who wait go first, as if it had only just come. Else it keeps its turn.
        """
        changes: Document = {"suspect": True} if suspect else {}
        if to_the_back:
            changes["seq"] = "$$CLUSTER_TIME"
        return await self._hand_back(job, job.attempts - 1, fence(job), changes)

    async def _hand_back(
        self, job: Job, attempts: int, fence: Mapping[str, Any], changes: Mapping[str, Any] | None = None
    ) -> bool:
        again = {"status": Status.QUEUED.value, "lane": lane_expression(), "attempts": attempts, **(changes or {})}
        written = await self._jobs.update_one(fence, [{"$set": again}, {"$unset": HELD}])
        return written.matched_count == 1

    async def free_slot(self, job: Job) -> None:
        """The worker has stopped a job that was cancelled under it: its slot is free again."""
        await self._jobs.update_one(
            {"_id": job.id, "status": Status.CANCELLED.value, "token": job.token},
            {"$unset": {"slot": "", "lease_expires_at": ""}},
        )

    # ── The client's side ────────────────────────────────────────────────────────────────────────────────────────

    async def cancel(self, job_id: ObjectId, subject: str | None) -> None:
        """Cancels at once and for good. ``subject`` None: an admin, who may cancel anybody's job.

        A processing job keeps its slot until its worker has stopped or the lease ends; its place frees now.
        Cancelling twice is no error. Raises JobNotFound, JobFinished.
        """
        mine = {"_id": job_id} if subject is None else {"_id": job_id, "subject": subject}
        written = await self._jobs.update_one(mine | _IS_OPEN, cancellation("cancelled", "The job was cancelled."))
        if written.matched_count:
            return
        found = await self._jobs.find_one(mine, {"status": 1})
        if found is None:
            raise JobNotFound(str(job_id))
        if found["status"] != Status.CANCELLED.value:
            raise JobFinished(str(job_id), found["status"])

    async def hide(self, job_id: ObjectId, subject: str | None) -> None:
        """Marks the answer of a job as deleted by its client. The job stays as a record of what was done.

        Twice is no error. Raises JobNotFound.
        """
        mine = {"_id": job_id} if subject is None else {"_id": job_id, "subject": subject}
        written = await self._jobs.update_one(mine, {"$set": {"asked.hidden": True}})
        if not written.matched_count:
            raise JobNotFound(str(job_id))

    async def cancel_batch(self, batch: ObjectId, code: str, message: str) -> int:
        """Cancels, as ``cancel`` does, all open jobs of a batch, each with that error; returns how many."""
        written = await self._jobs.update_many({"batch.id": batch} | _IS_OPEN, cancellation(code, message))
        return written.modified_count

    # ── The clockwork's side ─────────────────────────────────────────────────────────────────────────────────────

    async def expired(self, limit: int = 1000) -> list[Job]:
        """Jobs whose lease has ended, processing or cancelled."""
        late = {"slot": {"$gte": 0}, "$expr": self._lapsed}
        found = self._jobs.find(late).hint(SLOT_INDEX).limit(limit)
        return [Job.from_document(document) async for document in found]

    async def reap(self, job: Job) -> Status | None:
        """Takes an expired job from its worker. None where no attempt was counted, or the worker was quicker."""
        if job.status is Status.CANCELLED:
            await self.free_slot(job)
            return None
        late = fence(job) | {"$expr": self._lapsed}
        if job.attempts == 0:  # a direct lease that its worker has not confirmed
            await self._hand_back(job, 0, late | {"attempts": 0})
            return None
        return await self._end_attempt(job, LEASE_EXPIRED, late, job.gained)

    async def promote(self) -> int:
        """Makes the jobs whose backoff is over claimable again; returns how many."""
        due = {"not_before": {"$exists": True}, "$expr": {"$lte": ["$not_before", "$$NOW"]}}
        written = await self._jobs.update_many(
            due | {"status": Status.QUEUED.value}, [{"$set": {"lane": lane_expression()}}, {"$unset": ["not_before"]}]
        )
        return written.modified_count

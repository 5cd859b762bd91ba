"""Other models that take a job over: at its submit, where its own model has no place free, and when its attempts end
without a result for a reason that another model may not share.

A job carries the models that are still to be tried. A move is one conditional write under the fence of the attempt
that failed: the job queues again under the other model, in a free place there, and its attempts count anew.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from pymongo.errors import DuplicateKeyError, PyMongoError

from broker.batch import share_of
from broker.clock import to_the_millisecond
from broker.database import BATCH_PLACE_INDEX, Database
from broker.errors import BackendsHeldBack, ModelNotFound, QueueFull
from broker.job import Failure, Job, NewJob, Status
from broker.job_updates import HELD, error_entry, literal
from broker.lanes import lane_expression
from broker.numbers import Numbers
from config import ModelSettings
from config.fallbacks import chain

log = logging.getLogger(__name__)

# Keys of a payload that mean something to the model alone that the request has named.
OF_ONE_MODEL = ("adapter", "upstream_model", "modelKey")
# Permanent failures that are the model's or its upstream's, and not the input's.
_NOT_THE_INPUT = frozenset({"upstream_refused_key"})
# What an upstream answers that does not know the model.
_NOT_THERE = frozenset({404, 405})


def others_may(code: str, status: object, *, permanent: bool) -> bool:
    """Whether another model or server may do what one has failed to. ``status``: of an upstream's answer."""
    return not permanent or code in _NOT_THE_INPUT or status in _NOT_THERE


def another_may(failure: Failure) -> bool:
    """Whether another model may do what this one has failed to."""
    status = failure.details.get("details", {}).get("status")
    return others_may(failure.code, status, permanent=failure.permanent)


def at_once(failure: Failure) -> bool:
    """Whether another model is to take over before the attempts are used up: this one is known to be away."""
    return failure.code == BackendsHeldBack.code


class Fallbacks:
    """``places`` are those of the queue."""

    def __init__(self, database: Database, models: Mapping[str, ModelSettings], places: Numbers) -> None:
        self._jobs = database.jobs
        self._local = database.jobs_local
        self._hops = database.hops
        self._models = models
        self._places = places

    def of(self, model: str) -> tuple[str, ...]:
        """The configured models to try after ``model``, in order."""
        others = chain(model, self._given)
        return tuple(other for other in others if other in self._models)

    def _given(self, model: str) -> list[str]:
        settings = self._models.get(model)
        return [] if settings is None else settings.fallbacks

    # ── At the submit ────────────────────────────────────────────────────────────────────────────────────────────

    async def room(self, new: NewJob) -> bool:
        """Whether a submit of the job may find a place, as far as is known here."""
        if new.batch is None:
            return await self.any_room(new.model)
        return await self._places.available(new.model, self._bound(new.model))

    async def any_room(self, model: str) -> bool:
        """Whether the model or one of those that may take over has a place free, as far as is known here."""
        for name in (model, *self.of(model)):
            if await self._places.available(name, self._bound(name)):
                return True
        return False

    async def submit(self, new: NewJob, submit: Callable[[NewJob], Awaitable[Job]]) -> Job:
        """Submits under the job's own model or, where that is full, under the next one that is not. Raises QueueFull
        of its own model."""
        others = self.of(new.model)
        try:
            return await submit(replace(new, fallbacks=others) if others else new)
        except QueueFull as full:
            # Lines of a batch wait for places, of which they may take but a part.
            if new.batch is not None or not others:
                raise
            return await self._spilled(new, others, full, submit)

    async def _spilled(
        self, new: NewJob, others: tuple[str, ...], full: QueueFull, submit: Callable[[NewJob], Awaitable[Job]]
    ) -> Job:
        hops: tuple[Mapping[str, Any], ...] = (_hop(new.model, full),)
        for number, other in enumerate(others):
            try:
                job = await submit(self._as(new, other, others[number + 1 :], hops))
            except QueueFull as error:
                hops = (*hops, _hop(other, error))
            else:
                if job.id == new.id:
                    for model, to in pairwise([*(hop["model"] for hop in hops), other]):
                        await self._count(model, to, full.code)
                return job
        raise full

    def _as(self, new: NewJob, model: str, rest: tuple[str, ...], hops: tuple[Mapping[str, Any], ...]) -> NewJob:
        """The job as the other model takes it over."""
        payload = {key: value for key, value in new.payload.items() if key not in OF_ONE_MODEL}
        timeout = None if new.timeout is None else min(new.timeout, self._models[model].timeout)
        # The result will be another model's: it must not answer who asks this one.
        return replace(new, model=model, fallbacks=rest, hops=hops, payload=payload, timeout=timeout, fingerprint=None)

    # ── After a failure ──────────────────────────────────────────────────────────────────────────────────────────

    async def move(self, job: Job, failure: Failure, fence: Mapping[str, Any]) -> bool:
        """Queues the job under the next of its fallbacks that has a place free. ``fence``: matches while the attempt
        holds the job. False, with nothing written, where no model takes it or the fence does not match any more.
        """
        for index, name in enumerate(job.fallbacks):
            rest = list(job.fallbacks[index + 1 :])
            if job.batch is not None and not await self._room_for_batches(name):
                continue
            while (target := self._models.get(name)) and (places := await self._places.take(name, self._bound(name))):
                try:
                    update = self._moved(job, name, target, places[0], rest, failure)
                    written = await self._jobs.update_one(fence, update)
                except DuplicateKeyError:
                    continue  # another process took the place first
                finally:
                    self._places.settle(name, places[0])
                if not written.matched_count:
                    return False
                log.warning("job %s goes from %s to %s: %s", job.id, job.model, name, failure.message)
                await self._count(job.model, name, failure.code)
                return True
        return False

    async def _room_for_batches(self, model: str) -> bool:
        """Whether batches hold less than their share of the model's places. Some that move at once may all see that."""
        if (settings := self._models.get(model)) is None:
            return False
        held = {"model": model, "place": {"$gte": 0}, "batch.id": {"$exists": True}}
        share = share_of(settings)
        return await self._local.count_documents(held, hint=BATCH_PLACE_INDEX, limit=share) < share

    def _moved(
        self, job: Job, name: str, target: ModelSettings, place: int, rest: list[str], failure: Failure
    ) -> list[dict[str, Any]]:
        hop = literal({"model": job.model, "code": failure.code, "message": failure.message})
        changes = {
            "model": literal(name),
            "place": place,
            "status": Status.QUEUED.value,
            "lane": lane_expression(),
            "attempts": 0,
            "max_retries": target.max_retries,
            "timeout": self._timeout(job, target),
            "fallbacks": literal(rest),
            "errors": _appended("errors", error_entry(job, failure)),
            "hops": _appended("hops", {"$mergeObjects": [hop, {"at": "$$NOW"}]}),
        }
        own = ["fingerprint", "suspect", *(f"payload.{key}" for key in OF_ONE_MODEL)]
        return [{"$set": changes}, {"$unset": [*HELD, *own]}]

    def _timeout(self, job: Job, target: ModelSettings) -> float:
        """The client's where it asked for a shorter one than the model's, which no longer counts."""
        own = self._models.get(job.model)
        asked = own is not None and job.timeout < own.timeout
        return min(job.timeout, target.timeout) if asked else target.timeout

    def _bound(self, model: str) -> int:
        if (settings := self._models.get(model)) is None:
            raise ModelNotFound(model)
        return settings.max_concurrent + settings.max_waiting

    # ── For operators ────────────────────────────────────────────────────────────────────────────────────────────

    async def _count(self, model: str, to: str, code: str) -> None:
        """The count is no promise: one that the database does not take is not told of again."""
        hop = {"from": model, "to": to, "code": code}
        try:
            await self._hops.update_one(
                {"_id": hop}, {"$inc": {"count": 1}, "$currentDate": {"last_at": True}}, upsert=True
            )
        except PyMongoError as error:
            log.warning("a hop from %s to %s is not counted: %s", model, to, error)

    async def counts(self) -> list[dict[str, Any]]:
        """``{"from", "to", "code", "count", "last_at"}`` of all hops that were ever made."""
        found = self._hops.find().sort("last_at", -1).limit(1000)
        return [{**document.pop("_id"), **document} async for document in found]


def _hop(model: str, full: QueueFull) -> dict[str, Any]:
    now = to_the_millisecond(datetime.now(UTC))
    return {"model": model, "code": full.code, "message": full.message, "at": now}


def _appended(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"$concatArrays": [{"$ifNull": [f"${name}", []]}, [entry]]}

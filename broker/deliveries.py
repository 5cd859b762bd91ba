"""What is still to be told of jobs that have ended, and what has come of telling it.

A job that is to be told of carries ``webhook`` and, until a delivery stands for it here, ``webhook_due``: no crash
between the end of a job and its delivery loses the news. The delivery has an id made of the job's and its event's, so
that making it twice makes one. It is tried until it succeeds or its time is up; an attempt that nobody has recorded,
as the process died, is made again, under the same id.
"""

from collections.abc import Collection as Many
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from bson import ObjectId
from pymongo.errors import BulkWriteError

from broker.clock import DatabaseClock
from broker.database import DUE_INDEX, WEBHOOK_INDEX, Database
from broker.job import Document, Job
from broker.job_updates import DUPLICATE_KEY, from_now, literal

LASTS = 86_400.0
"""Seconds after the end of a job for which it is tried to tell of it."""
# Attempts that are kept, the newest ones.
_KEPT = 50
# Lanes of a subject that are looked at in one go: many more than can be full.
_LANES = 100
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class State(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Attempt:
    """``status``: of the answer, if there was one, and ``response`` its beginning. ``seconds`` that it took."""

    status: int | None
    error: str | None
    seconds: float
    response: str | None = None


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """``host``: whom it is told, for those who are to share fairly. ``body``: the message, as it is signed and sent."""

    job: Job
    event: str
    url: str
    host: str
    body: str

    @property
    def id(self) -> str:
        # No full stop may be in it: what is signed is joined by them.
        return f"msg_{self.job.id}_{self.event.rpartition('.')[2]}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """As it is stored. ``next_at``: of the next attempt; None: there will be none. ``until``: of the last one."""

    id: str
    job: ObjectId
    subject: str
    event: str
    url: str
    host: str
    body: str
    state: State
    tries: int
    attempts: tuple[Mapping[str, Any], ...]
    created_at: datetime
    until: datetime
    next_at: datetime | None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Delivery":
        plain = ("job", "subject", "event", "url", "host", "body", "tries", "created_at", "until")
        return cls(
            id=document["_id"],
            state=State(document["state"]),
            attempts=tuple(document["attempts"]),
            next_at=document.get("next_at"),
            **{name: document[name] for name in plain},
        )


class Lane(NamedTuple):
    """What goes from one subject to one host: a crowd in one lane is in nobody else's way."""

    subject: str
    host: str


class Deliveries:
    """All methods raise ``pymongo.errors.PyMongoError`` where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._jobs = database.jobs
        self._deliveries = database.deliveries
        self._clock = DatabaseClock(database)

    async def owing(self, most: int) -> list[Job]:
        """Ended jobs for which no delivery stands yet, without what may be large in them."""
        ended = {"webhook_due": {"$exists": True}, "finished_at": {"$gt": _LONG_AGO}}
        light = {"payload": 0, "result": 0}
        found = self._jobs.find(ended, light).sort("finished_at", 1).limit(most).hint(WEBHOOK_INDEX)
        return [Job.from_document({**document, "payload": {}}) async for document in found]

    async def take_over(self, jobs: Sequence[Job], deliveries: Sequence[NewDelivery]) -> None:
        """Stores what is to be told of ``jobs``, which then owe nothing more. May be repeated."""
        if deliveries:
            now = await self._clock.ago(0.0)
            await self._insert([_document(delivery, now) for delivery in deliveries])
        theirs = {"_id": {"$in": [job.id for job in jobs]}}
        await self._jobs.update_many(theirs, {"$unset": {"webhook_due": ""}})

    async def _insert(self, documents: Sequence[Document]) -> None:
        try:
            await self._deliveries.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            faults = error.details["writeErrors"]
            if error.details["writeConcernErrors"] or any(fault["code"] != DUPLICATE_KEY for fault in faults):
                raise

    async def subjects(self) -> list[str]:
        """Those for whom something is to be told now. MongoDB steps from one to the next in its index, however much
        there is for each."""
        return await self._distinct("subject", {"subject": {"$gt": ""}, "host": {"$gt": ""}}, None)

    async def lanes(self, subject: str) -> list[Lane]:
        """Some in which something is to be told now for ``subject``; found likewise."""
        hosts = await self._distinct("host", {"subject": subject, "host": {"$gt": ""}}, _LANES)
        return [Lane(subject, host) for host in hosts]

    async def _distinct(self, field: str, within: Document, most: int | None) -> list[str]:
        # Bounds for each field of the index, or MongoDB would go through all that is due.
        stages: list[Document] = [
            {"$match": {**within, "next_at": {"$lte": await self._clock.ago(0.0)}}},
            {"$sort": {"subject": 1, "host": 1, "next_at": 1}},
            {"$group": {"_id": f"${field}"}},
        ]
        found = await self._deliveries.aggregate([*stages, *([{"$limit": most}] if most else [])], hint=DUE_INDEX)
        return [group["_id"] async for group in found]

    async def due(self, lane: Lane, most: int, *, without: Many[str]) -> list[Delivery]:
        """What is to be tried now in ``lane``, the longest due first, but for the ids ``without``."""
        wanted = {
            **lane._asdict(),
            "next_at": {"$lte": await self._clock.ago(0.0)},
            "_id": {"$nin": list(without)},
        }
        found = self._deliveries.find(wanted).sort("next_at", 1).limit(most).hint(DUE_INDEX)
        return [Delivery.from_document(document) async for document in found]

    async def left(self, delivery: Delivery) -> float:
        """Seconds for which there will be attempts."""
        return delivery.until.timestamp() - await self._clock.now()

    async def end(self, delivery: Delivery, state: State, attempt: Attempt) -> None:
        """There will be no further attempt."""
        await self._record(delivery, attempt, {"state": state.value, "next_at": "$$REMOVE"})

    async def postpone(self, delivery: Delivery, attempt: Attempt, seconds: float) -> None:
        """The attempt has failed, and the next one follows after so many seconds."""
        await self._record(delivery, attempt, {"next_at": {"$min": [from_now(seconds), "$until"]}})

    async def _record(self, delivery: Delivery, attempt: Attempt, changes: Mapping[str, Any]) -> None:
        begun = {"$dateSubtract": {"startDate": "$$NOW", "unit": "millisecond", "amount": int(attempt.seconds * 1000)}}
        entry = {"$mergeObjects": [{"at": begun}, literal(asdict(attempt))]}
        attempts = {"$slice": [{"$concatArrays": ["$attempts", [entry]]}, -_KEPT]}
        # Two processes may act for a moment: the attempt that counts is the one that was recorded first.
        mine = {"_id": delivery.id, "state": State.PENDING.value, "tries": delivery.tries}
        update = {"attempts": attempts, "tries": delivery.tries + 1, **changes}
        await self._deliveries.update_one(mine, [{"$set": update}])

    async def give_up(self, delivery: Delivery) -> None:
        """All that its subject is still to be told at the same address: nobody is there any more."""
        theirs = {"subject": delivery.subject, "host": delivery.host, "next_at": {"$exists": True}, "url": delivery.url}
        await self._deliveries.update_many(theirs, {"$set": {"state": State.FAILED.value}, "$unset": {"next_at": ""}})

    async def of_job(self, job: ObjectId) -> list[Delivery]:
        found = self._deliveries.find({"job": job}).sort("_id", 1)
        return [Delivery.from_document(document) async for document in found]


def _document(new: NewDelivery, now: datetime) -> Document:
    """Of a job that ended long ago, as nobody could tell of it before, it is tried once at least."""
    ended = new.job.finished_at or now
    return {
        "_id": new.id,
        "job": new.job.id,
        "subject": new.job.subject,
        "event": new.event,
        "url": new.url,
        "host": new.host,
        "body": new.body,
        "state": State.PENDING.value,
        "tries": 0,
        "attempts": [],
        "created_at": now,
        "until": ended + timedelta(seconds=LASTS),
        "next_at": ended,
    }

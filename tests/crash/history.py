"""The audit of a run: every write to a job, in its order, as the database's own log tells it afterwards.

A change stream from a time before the first job shows what no look at the end can: that a job was ended once, that
nothing was written to it after that, and that at no moment two jobs held one number.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bson import ObjectId, Timestamp

from broker.database import Collection, Database
from broker.job import LEGAL, Status

Change = Mapping[str, Any]

# What a job loses after its end: its slot, when the worker has stopped it or its lease ends.
_LATE = {"slot", "lease_expires_at"}
_NUMBERS = ("place", "slot")
_END = "crash_suite"


@dataclass(frozen=True, slots=True)
class Breach:
    """A promise that was broken, of which job, and how."""

    promise: str
    job: str | None
    detail: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.detail}" + (f" (job {self.job})" if self.job else "")


@dataclass(slots=True)
class Trace:
    """A job as the changes so far have left it. ``ends``: how often it was given a final status."""

    model: str
    status: Status
    attempts: int
    max_retries: int
    numbers: dict[str, int]
    tokens: list[str] = field(default_factory=list)
    ends: int = 0


class History:
    """Takes the changes one by one; ``breaches`` tells what should not have been."""

    def __init__(self) -> None:
        self.jobs: dict[ObjectId, Trace] = {}
        self.breaches: list[Breach] = []
        self.changes = 0
        self.most: dict[tuple[str, str], int] = {}
        self._holders: dict[tuple[str, str, int], ObjectId] = {}

    def take(self, change: Change) -> None:
        self.changes += 1
        job_id = change["documentKey"]["_id"]
        match change["operationType"]:
            case "insert":
                self._insert(job_id, change["fullDocument"])
            case "update":
                about = change["updateDescription"]
                self._update(job_id, about["updatedFields"], set(about["removedFields"]))
            case other:
                self._breach("A job is only ever inserted and updated", job_id, other)

    def _breach(self, promise: str, job_id: ObjectId, detail: str) -> None:
        self.breaches.append(Breach(promise, str(job_id), detail))

    def _insert(self, job_id: ObjectId, document: Mapping[str, Any]) -> None:
        trace = Trace(document["model"], Status(document["status"]), document["attempts"], document["max_retries"], {})
        self.jobs[job_id] = trace
        self._number(job_id, trace, document, set())

    def _update(self, job_id: ObjectId, fields: Mapping[str, Any], removed: set[str]) -> None:
        trace = self.jobs[job_id]
        if trace.ends and (fields or removed - _LATE):
            self._breach("A job that has ended never changes", job_id, f"{dict(fields)} {sorted(removed)}")
        self._number(job_id, trace, fields, removed)
        if "token" in fields:
            self._claim(job_id, trace, fields)
        if "status" in fields:
            self._turn(job_id, trace, Status(fields["status"]))
        trace.attempts = fields.get("attempts", trace.attempts)
        if trace.attempts > 1 + trace.max_retries:
            self._breach("No job has more than 1 + max_retries attempts", job_id, str(trace.attempts))

    def _claim(self, job_id: ObjectId, trace: Trace, fields: Mapping[str, Any]) -> None:
        if trace.status is not Status.QUEUED or fields.get("status") != Status.PROCESSING.value:
            self._breach("No job has two live leases", job_id, f"claimed while {trace.status}")
        if "slot" not in trace.numbers:
            self._breach("Each claim holds a slot", job_id, f"attempt {fields.get('attempts')}")
        if fields["token"] in trace.tokens:
            self._breach("A token is drawn at each claim", job_id, fields["token"])
        if fields.get("attempts") != trace.attempts + 1:
            self._breach("A claim counts one attempt", job_id, f"{trace.attempts} → {fields.get('attempts')}")
        trace.tokens.append(fields["token"])

    def _turn(self, job_id: ObjectId, trace: Trace, status: Status) -> None:
        if status not in LEGAL[trace.status]:
            self._breach("Every transition is legal", job_id, f"{trace.status} → {status}")
        trace.ends += status.terminal
        if trace.ends > 1:
            self._breach("Each job ends once", job_id, f"ended {trace.ends} times, now {status}")
        trace.status = status

    def _number(self, job_id: ObjectId, trace: Trace, fields: Mapping[str, Any], removed: set[str]) -> None:
        for kind in _NUMBERS:
            if kind in trace.numbers and (kind in removed or kind in fields):
                del self._holders[trace.model, kind, trace.numbers.pop(kind)]
            if kind in fields:
                self._hold(job_id, trace, kind, fields[kind])

    def _hold(self, job_id: ObjectId, trace: Trace, kind: str, number: int) -> None:
        other = self._holders.setdefault((trace.model, kind, number), job_id)
        if other != job_id:
            self._breach(f"No two jobs hold one {kind}", job_id, f"{kind} {number} of {trace.model}, as does {other}")
            return
        trace.numbers[kind] = number
        held = sum(model == trace.model and kept == kind for model, kept, _ in self._holders)
        self.most[trace.model, kind] = max(held, self.most.get((trace.model, kind), 0))

    def check_bounds(self, bounds: Mapping[tuple[str, str], int]) -> None:
        """``bounds``: by model and number (place, slot), the most that may ever be held at once."""
        for (model, kind), most in self.most.items():
            if most > bounds[model, kind]:
                detail = f"{most} {kind}s of {model} at once, {bounds[model, kind]} allowed"
                self.breaches.append(Breach("The bounds are exact", None, detail))


async def now(database: Database) -> Timestamp:
    """The time of the database's log."""
    stamp: Timestamp = (await database.handle.command("ping"))["operationTime"]
    return stamp


async def read_history(database: Database, since: Timestamp) -> History:
    """All that befell the jobs from ``since`` until now."""
    history = History()
    async for change in _changes(database, since):
        history.take(change)
    return history


async def _changes(database: Database, since: Timestamp) -> AsyncIterator[Change]:
    """Ends at a mark that is written for the purpose, as a quiet change stream does not tell that it is at its end."""
    marks: Collection = database.handle[_END]
    mark = (await marks.insert_one({})).inserted_id
    wanted = {"$match": {"ns.coll": {"$in": [database.jobs.name, _END]}, "documentKey": {"$exists": True}}}
    async with await database.handle.watch([wanted], start_at_operation_time=since) as stream:
        async for change in stream:
            if change["ns"]["coll"] != _END:
                yield change
            elif change["documentKey"]["_id"] == mark:
                return

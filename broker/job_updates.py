"""What job documents and the updates to them are made of, as pure code; ``broker.queue`` does the writing."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from bson import Timestamp
from pymongo import UpdateOne
from pymongo.errors import DuplicateKeyError, WriteError

from broker.clock import to_the_millisecond
from broker.job import Document, Failure, Job, NewJob, Status
from broker.lanes import lane_name
from config import ModelSettings

DUPLICATE_KEY = 11000

# A direct lease has to be confirmed within so many seconds, or within a whole lease where that is shorter.
CONFIRM = 5.0


# What a processing job has and no other job may have.
HELD = ["slot", "token", "worker", "lease_expires_at", "gained"]
# What an ended job has no more.
OPEN = ["place", "slot", "lease_expires_at", "gained"]


def lapsed(lease: float) -> dict[str, Any]:
    """The expression that tells whether a job's lease has ended.

    An insert knows no ``$$NOW``: a direct lease runs from the time that the database stamped on the job it stored.
    """
    unconfirmed = {
        "$dateAdd": {"startDate": "$seq", "unit": "millisecond", "amount": round(min(CONFIRM, lease) * 1000)}
    }
    return {"$lte": [{"$ifNull": ["$lease_expires_at", unconfirmed]}, "$$NOW"]}


def from_now(seconds: float) -> dict[str, Any]:
    return {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": round(seconds * 1000)}}


def literal(value: Any) -> dict[str, Any]:
    """Keeps a client's or an engine's text from being read as an aggregation expression."""
    return {"$literal": value}


def fence(job: Job) -> dict[str, Any]:
    """Matches the job as long as this very attempt holds it."""
    return {"_id": job.id, "status": Status.PROCESSING.value, "token": job.token}


def claimed_job(document: Document, token: str, slot: int, worker: str) -> Job:
    """The document as the claim has left it, without reading it again; its times are the database's to know."""
    changes = {"token": token, "slot": slot, "worker": worker, "attempts": document["attempts"] + 1}
    return Job.from_document({**document, **changes, "status": Status.PROCESSING.value})


def taken_over(document: Document) -> Job:
    """A job with a direct lease as its worker begins it: in the document the attempt does not count yet."""
    return Job.from_document({**document, "attempts": document["attempts"] + 1})


def leased_document(document: Document, lease: Document) -> Document:
    """The new job with a direct lease instead of its lane."""
    leased = {**document, **lease, "begun": 1}
    del leased["lane"]
    return leased


def end_of(job: Job, status: Status) -> Document:
    """Of the end of an attempt, which says by its token which one it was."""
    # For those who look for it in the change: the field was there, as False.
    due = {} if job.webhook is None else {"webhook_due": True}
    return {"status": status.value, "ended_by": job.token, "attempts": job.attempts, **due}


def completion(job: Job, result: Mapping[str, Any]) -> UpdateOne:
    changes = {
        "$set": {**end_of(job, Status.COMPLETED), **result},
        "$unset": dict.fromkeys(OPEN, ""),
        "$currentDate": {"finished_at": True},
    }
    return UpdateOne(fence(job), changes)


def cancellation(code: str, message: str) -> dict[str, Any]:
    """The update of an open job that ends it; its slot stays its worker's until that has stopped."""
    return {
        "$set": {"status": Status.CANCELLED.value, "error": {"code": code, "message": message}},
        "$unset": {"place": "", "lane": "", "not_before": ""},
        "$currentDate": {"finished_at": True},
    }


def after_end(job: Job, changes: Document) -> Job | None:
    """The job as it was submitted, with what its end has changed; None where there may be more to tell.

    There is not where the attempt that was begun with the submit has ended it (see ``broker.direct``): whatever else
    was written meanwhile was its lease. Of documents there may be progress, too.
    """
    if job.token is None or changes.get("ended_by") != job.token or job.file is not None:
        return None
    return replace(
        job,
        status=Status(changes["status"]),
        attempts=1,
        finished_at=changes["finished_at"],
        slot=None,
        errors=tuple(changes.get("errors", ())),
        error=changes.get("error"),
        result=changes.get("result"),
        result_file=changes.get("result_file"),
        chunks=changes.get("chunks"),
        backends=tuple(changes.get("backends", ())),
    )


def write_error(fault: Mapping[str, Any]) -> WriteError:
    kind = DuplicateKeyError if fault["code"] == DUPLICATE_KEY else WriteError
    return kind(fault["errmsg"], fault["code"], fault)


def unique_keys(error: DuplicateKeyError) -> Mapping[str, Any]:
    """The fields of the unique index that the write would have broken."""
    keys: Mapping[str, Any] = (error.details or {}).get("keyPattern", {})
    return keys


def error_entry(job: Job, failure: Failure) -> dict[str, Any]:
    entry = {
        "attempt": job.attempts,
        "code": failure.code,
        "message": failure.message,
        "worker": job.worker,
        **failure.details,
    }
    return {"$mergeObjects": [literal(entry), {"at": "$$NOW"}]}


def new_document(new: NewJob, model: ModelSettings | None) -> dict[str, Any]:
    """A job that waits, but for its place. ``model``: None for one that is not to run."""
    document: dict[str, Any] = {
        "_id": new.id,
        "task": new.task,
        "model": new.model,
        "subject": new.subject,
        "client": new.client,
        "priority": new.priority.value,
        "level": new.priority.level,
        # MongoDB fills an empty timestamp in as it stores the document: the order is the database's, not a host's.
        "seq": Timestamp(0, 0),
        "lane": lane_name(new.priority.level, new.subject),
        "status": Status.QUEUED.value,
        "attempts": 0,
        "max_retries": 0 if model is None else model.max_retries,
        "timeout": new.timeout or (0.0 if model is None else model.timeout),
        "payload": dict(new.payload),
        "created_at": to_the_millisecond(datetime.now(UTC)),
    }
    if new.file is not None:
        document["file"] = asdict(new.file)
    if new.payload_file is not None:
        document["payload_file"] = new.payload_file
    if new.idempotency is not None:
        document["idempotency"] = asdict(new.idempotency)
    if new.fingerprint is not None:
        document["fingerprint"] = new.fingerprint
    if new.asked:
        document["asked"] = dict(new.asked)
    if new.stream:
        document["stream"] = True
    if new.webhook is not None:
        document["webhook"], document["webhook_due"] = dict(new.webhook), False
    if new.batch is not None:
        document["batch"] = asdict(new.batch)
    if new.fallbacks:
        document["fallbacks"] = list(new.fallbacks)
    if new.hops:
        document["hops"] = [dict(hop) for hop in new.hops]
    return document


def refused_document(new: NewJob, error: Mapping[str, Any]) -> dict[str, Any]:
    """A job that ends as it comes, for it cannot be run. ``error``: its ``code`` and ``message``."""
    document = new_document(new, None)
    del document["lane"]
    return {**document, "status": Status.FAILED.value, "error": dict(error), "finished_at": document["created_at"]}


def answered_document(new: NewJob, model: ModelSettings, origin: Job) -> dict[str, Any]:
    """A job that ends as it comes, with the result and the pages of ``origin``."""
    document = new_document(new, model)
    del document["lane"]
    shared = {
        "result": origin.result,
        "result_file": origin.result_file,
        "files": origin.files,
        "progress": origin.progress,
    }
    return {
        **document,
        **{key: value for key, value in shared.items() if value},
        "pages_of": origin.pages_id,
        "status": Status.COMPLETED.value,
        "finished_at": document["created_at"],
    }

"""The job and its state machine, as pure code: nothing here talks to a database.

    queued ──claim──▶ processing ──complete──▶ completed
      ▲                 │   │ └──fail, reap──▶ failed | timeout
      └─retry, reap,────┘   └─────cancel─────▶ cancelled ◀──cancel── queued
        release

Terminal is forever. The token made at each claim, never the attempt number, fences every write of that attempt.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from bson import ObjectId
from bson.errors import InvalidId

Document = dict[str, Any]


class Status(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return not LEGAL[self]


LEGAL: Mapping[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.PROCESSING, Status.CANCELLED}),
    Status.PROCESSING: frozenset({Status.QUEUED, Status.COMPLETED, Status.FAILED, Status.TIMEOUT, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.TIMEOUT: frozenset(),
    Status.CANCELLED: frozenset(),
}
TERMINAL: tuple[Status, ...] = tuple(status for status in Status if status.terminal)


class Priority(StrEnum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def level(self) -> int:
        """0 is claimed first."""
        return tuple(Priority).index(self)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A job's document in the file store. ``size`` in bytes."""

    id: ObjectId
    name: str | None
    media_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's ``Idempotency-Key``, unique per subject, and the digest of the content that it came with."""

    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended without a result.

    ``permanent``: another attempt would end the same way, so none is made.
    ``timeout``: the attempt ran longer than the model's timeout.
    ``details`` are for the client too, ``stack`` is for operators alone.
    """

    code: str
    message: str
    permanent: bool = False
    timeout: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    stack: str | None = None


LEASE_EXPIRED = Failure("lease_expired", "The worker stopped renewing its lease: it crashed or lost the database.")


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is submitted. ``fingerprint``: of all that its result depends on, see ``broker.reuse``."""

    task: str
    model: str
    subject: str
    payload: Mapping[str, Any]
    client: str | None = None
    priority: Priority = Priority.NORMAL
    file: StoredFile | None = None
    idempotency: Idempotency | None = None
    fingerprint: str | None = None
    id: ObjectId = field(default_factory=ObjectId)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is stored. Times are aware UTC datetimes, ``timeout`` is in seconds.

    ``suspect``: an engine died while it and others ran there, so it runs alone. ``gained``: the attempt that holds it
    has brought it further, by what the next one need not do again. ``pages_of``: the job that has read the pages, where
    that was another one. ``files`` belong to its result.
    """

    id: ObjectId
    task: str
    model: str
    subject: str
    client: str | None
    priority: Priority
    status: Status
    attempts: int
    max_retries: int
    timeout: float
    payload: Mapping[str, Any]
    file: StoredFile | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    not_before: datetime | None
    worker: str | None
    token: str | None
    slot: int | None
    suspect: bool
    gained: bool
    progress: Mapping[str, Any] | None
    errors: tuple[Mapping[str, Any], ...]
    error: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    result_file: ObjectId | None
    files: Mapping[str, ObjectId]
    fingerprint: str | None
    pages_of: ObjectId | None

    @property
    def pages_id(self) -> ObjectId:
        """The job under whose id its pages are kept."""
        return self.pages_of or self.id

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Job":
        stored = document.get("file")
        return cls(
            id=document["_id"],
            task=document["task"],
            model=document["model"],
            subject=document["subject"],
            client=document.get("client"),
            priority=Priority(document["priority"]),
            status=Status(document["status"]),
            attempts=document["attempts"],
            max_retries=document["max_retries"],
            timeout=document["timeout"],
            payload=document["payload"],
            file=StoredFile(**stored) if stored else None,
            created_at=document["created_at"],
            started_at=document.get("started_at"),
            finished_at=document.get("finished_at"),
            not_before=document.get("not_before"),
            worker=document.get("worker"),
            token=document.get("token"),
            slot=document.get("slot"),
            suspect=document.get("suspect", False),
            gained="gained" in document and document["gained"] == document.get("token"),
            progress=document.get("progress"),
            errors=tuple(document.get("errors", ())),
            error=document.get("error"),
            result=document.get("result"),
            result_file=document.get("result_file"),
            files=document.get("files", {}),
            fingerprint=document.get("fingerprint"),
            pages_of=document.get("pages_of"),
        )


def parse_job_id(text: str) -> ObjectId | None:
    """The id that a client sent, or None where it cannot be one."""
    try:
        return ObjectId(text)
    except InvalidId:
        return None


def after_failure(attempts: int, max_retries: int, failure: Failure) -> Status:
    """Where a processing job goes after a failed attempt: ``attempts`` counts the failed one too."""
    if not failure.permanent and attempts <= max_retries:
        return Status.QUEUED
    return Status.TIMEOUT if failure.timeout else Status.FAILED

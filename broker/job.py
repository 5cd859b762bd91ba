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
class BatchLine:
    """Where a job of a batch comes from: ``line`` counts the requests of the batch's file from 0."""

    id: ObjectId
    line: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended without a result.

    ``permanent``: another attempt would end the same way, so none is made.
    ``timeout``: the attempt ran longer than the model's timeout.
    ``details`` are for the client too, ``stack`` is for operators alone. ``retry_after``: seconds before which another
    attempt is of no use, where that is known.
    """

    code: str
    message: str
    permanent: bool = False
    timeout: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    stack: str | None = None
    retry_after: float | None = None


LEASE_EXPIRED = Failure("lease_expired", "The worker stopped renewing its lease: it crashed or lost the database.")


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is submitted.

    ``fingerprint``: of all that its result depends on, see ``broker.reuse``. ``stream``: whether its answer can be
    followed while it is generated, see ``broker.chunks``. ``timeout``: seconds for an attempt, where it is not to be
    the model's. ``asked``: what the form of its answer depends on. ``payload_file``: where the payload's long parts
    are, see ``broker.payloads``. ``batch``: see ``broker.batches``.
    ``fallbacks``: the models that may take it over, as the queue notes them; ``hops``: from which it came, and why.
    ``webhook``: the ``url`` that is told of its end, where that is one of ``events``.
    """

    task: str
    model: str
    subject: str
    payload: Mapping[str, Any]
    client: str | None = None
    priority: Priority = Priority.NORMAL
    file: StoredFile | None = None
    payload_file: ObjectId | None = None
    idempotency: Idempotency | None = None
    fingerprint: str | None = None
    stream: bool = False
    timeout: float | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    webhook: Mapping[str, Any] | None = None
    batch: BatchLine | None = None
    fallbacks: tuple[str, ...] = ()
    hops: tuple[Mapping[str, Any], ...] = ()
    reuse: bool = False
    """Whether an answer with the same fingerprint that was given before will do, see ``broker.answer_cache``."""
    id: ObjectId = field(default_factory=ObjectId)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is stored. Times are aware UTC datetimes, ``timeout`` is in seconds.

    ``suspect``: an engine died while it and others ran there, so it runs alone. ``gained``: the attempt that holds it
    has brought it further, by what the next one need not do again. ``pages_of``: the job that has read the pages, where
    that was another one. ``files`` belong to its result. ``stream``: its answer can be followed while it is generated;
    ``chunks``: events of that, once it is completed. ``payload_file``: has the payload's long parts. ``asked``: what
    the form of its answer depends on. ``begun``: how often it was given to a worker, released or not: whatever an
    earlier time has generated is void. ``fallbacks``: models that may take it over; ``hops``: ``{model, code, message,
    at}`` of those that it left (``broker.fallback``). ``backends``: where its model has several servers, those that the
    attempt which completed it has asked, the last of which has answered; ``{name, code, message}`` of the others.
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
    payload_file: ObjectId | None
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
    stream: bool
    chunks: int | None
    asked: Mapping[str, Any]
    webhook: Mapping[str, Any] | None
    begun: int
    batch: BatchLine | None
    fallbacks: tuple[str, ...]
    hops: tuple[Mapping[str, Any], ...]
    backends: tuple[Mapping[str, Any], ...]

    @property
    def pages_id(self) -> ObjectId:
        """The job under whose id its pages are kept."""
        return self.pages_of or self.id

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Job":
        stored, batch = document.get("file"), document.get("batch")
        plain: dict[str, Any] = {
            **{name: document[name] for name in _ALWAYS},
            **{name: document.get(name, absent) for name, absent in _AT_TIMES.items()},
            **{name: tuple(document.get(name, ())) for name in _LISTS},
        }
        return cls(
            id=document["_id"],
            priority=Priority(document["priority"]),
            status=Status(document["status"]),
            file=StoredFile(**stored) if stored else None,
            gained="gained" in document and document["gained"] == document.get("token"),
            files=document.get("files", {}),
            asked=document.get("asked", {}),
            batch=BatchLine(**batch) if batch else None,
            **plain,
        )


# The fields of a document that a job has as they are: those that each document has, those that some have, with what it
# means that they are not there, and lists.
_ALWAYS = ("task", "model", "subject", "attempts", "max_retries", "timeout", "payload", "created_at")
_AT_TIMES: Mapping[str, Any] = {
    "client": None,
    "payload_file": None,
    "started_at": None,
    "finished_at": None,
    "not_before": None,
    "worker": None,
    "token": None,
    "slot": None,
    "suspect": False,
    "progress": None,
    "error": None,
    "result": None,
    "result_file": None,
    "fingerprint": None,
    "pages_of": None,
    "stream": False,
    "chunks": None,
    "webhook": None,
    "begun": 0,
}
_LISTS = ("errors", "fallbacks", "hops", "backends")


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

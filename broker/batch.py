"""A batch and its states, as pure code: nothing here talks to a database.

    validating ──▶ in_progress ──▶ finalizing ──▶ completed | expired
        │  └─────────────┬┘
        ▼                ▼
      failed         cancelling ──▶ cancelled

The names are those of OpenAI's API. Each step is a write that matches the state it goes out from, so that two who take
it at the same time take it once.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import Any

from bson import ObjectId

from broker.job import Idempotency, Priority, Status
from config import ModelSettings

PREFIX = "batch_"
OUTPUT, ERRORS = "output", "errors"


class BatchStatus(StrEnum):
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


def share_of(model: ModelSettings) -> int:
    """Places of the model that batches may hold: half of them."""
    return max(1, (model.max_concurrent + model.max_waiting) // 2)


WANTED = frozenset({BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS})
"""Those that can be cancelled."""
CLOSING = frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING})
"""Those of which nothing more is run."""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """``timeout``: seconds for each attempt at a line, None for the model's. ``window``: seconds until it expires.
    ``input``: the uploaded file, ``content``: what it holds, in the file store. ``cache`` and ``fresh``: whether
    earlier answers may be used for its lines, as for a request of its own."""

    subject: str
    role: str
    endpoint: str
    input: ObjectId
    content: ObjectId
    window: float
    metadata: Mapping[str, str] | None = None
    client: str | None = None
    priority: Priority = Priority.LOW
    timeout: float | None = None
    idempotency: Idempotency | None = None
    cache: str | None = None
    fresh: bool = False
    id: ObjectId = field(default_factory=ObjectId)


@dataclass(frozen=True, slots=True)
class Output:
    """A file of answers. ``id``: of the upload that it becomes; ``size`` in bytes; ``lines``: how many it has."""

    id: ObjectId
    content: ObjectId
    size: int
    lines: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the file, or with its ``line`` (from 1)."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it is stored.

    Requests are counted from 0, in the file's order. ``total``: how many there are, 0 until the file is validated.
    ``fed``: all before this one were let into the queue, and ``offset`` is where it begins in the file, in bytes.
    ``settled``: all before this one have ended, ``completed`` and ``failed`` of them. ``ending``: the state that it is
    to end in, once nothing more of it is run. ``times``: when it came to a state.
    """

    id: ObjectId
    subject: str
    role: str
    endpoint: str
    input: ObjectId
    content: ObjectId
    metadata: Mapping[str, str] | None
    client: str | None
    priority: Priority
    timeout: float | None
    status: BatchStatus
    ending: BatchStatus | None
    model: str
    total: int
    fed: int
    offset: int
    settled: int
    completed: int
    failed: int
    faults: tuple[Fault, ...]
    outputs: Mapping[str, Output] | None
    created_at: datetime
    expires_at: datetime
    times: Mapping[str, datetime]
    cache: str | None
    fresh: bool

    @property
    def public_id(self) -> str:
        """As clients know it."""
        return f"{PREFIX}{self.id}"

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Batch":
        outputs = document.get("outputs")
        ending = document.get("ending")
        as_they_are = ("subject", "role", "endpoint", "input", "content", "metadata", "client", "timeout", "model")
        numbers = ("total", "fed", "offset", "settled", "completed", "failed")
        return cls(
            id=document["_id"],
            priority=Priority(document["priority"]),
            status=BatchStatus(document["status"]),
            ending=ending and BatchStatus(ending),
            faults=tuple(Fault(**fault) for fault in document["faults"]),
            outputs=None if outputs is None else {kind: Output(**output) for kind, output in outputs.items()},
            created_at=document["created_at"],
            expires_at=document["expires_at"],
            times=document["times"],
            cache=document.get("cache"),
            fresh=document.get("fresh", False),
            **{key: document[key] for key in (*as_they_are, *numbers)},
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """Of a batch's requests at one moment; those that are neither completed nor failed have not ended."""

    total: int
    completed: int
    failed: int


def line_job_id(batch: ObjectId, line: int) -> ObjectId:
    """The id of the job for a request: always the same, so that letting it in twice makes one job.

    It begins with the batch's time, as lists of jobs go by that.
    """
    return ObjectId(batch.binary[:4] + hashlib.sha256(batch.binary + line.to_bytes(8, "big")).digest()[:8])


def settle(batch: Batch, jobs: Iterable[tuple[int, Status]]) -> tuple[int, int, int]:
    """(settled, completed, failed) of the batch with what has become of its ``jobs`` from ``batch.settled`` on.

    ``jobs``: (request, status), by request. It goes on as far as there is no gap and nothing open.
    """
    settled, completed = batch.settled, batch.completed
    for line, status in jobs:
        if line != settled or not status.terminal:
            break
        settled += 1
        completed += status is Status.COMPLETED
    return settled, completed, settled - completed


@dataclass(frozen=True, slots=True)
class Standing:
    """Of a batch: requests that are in the queue or run (``inside``), and that are still to be let in (``left``)."""

    inside: int
    left: int


class Turns:
    """How many requests of each batch are let in next: each time one of the batch that has the fewest inside, and of
    those the one whose last turn is longest ago."""

    def __init__(self) -> None:
        self._last: dict[ObjectId, int] = {}
        self._turn = 0

    def share(self, room: int, standings: Mapping[ObjectId, Standing]) -> dict[ObjectId, int]:
        """``room``: how many in all."""
        self._last = {batch: turn for batch, turn in self._last.items() if batch in standings}
        heap = [(held.inside, self._last.get(batch, 0), batch) for batch, held in standings.items() if held.left > 0]
        heapify(heap)
        given: dict[ObjectId, int] = {}
        for _ in range(room):
            if not heap:
                break
            inside, _, batch = heappop(heap)
            self._turn += 1
            self._last[batch] = self._turn
            given[batch] = given.get(batch, 0) + 1
            if given[batch] < standings[batch].left:
                heappush(heap, (inside + 1, self._turn, batch))
        return given

"""The bodies that the routes answer with. ``/openapi.json`` is made from these very models."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Task = Literal["chat", "ocr", "embedding"]
Priority = Literal["high", "normal", "low"]
Status = Literal["queued", "processing", "completed", "failed", "timeout", "cancelled"]


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Links(Body):
    self: str
    """Where the job can be looked up, awaited and cancelled."""


class JobError(Body):
    code: str
    message: str


class AttemptError(JobError):
    attempt: int
    at: datetime
    worker: str | None = None
    details: dict[str, Any] | None = None


class JobProgress(Body):
    done: int
    total: int | None
    unit: str


class JobBody(Body):
    """A job. ``result`` has the shape of its task."""

    request_id: str
    status: Status
    task: Task
    model: str
    client: str | None
    """The label that the submitter gave in ``X-Client-ID``."""
    priority: Priority
    position: int | None
    """1 for the job that is claimed next; null for one that does not wait."""
    position_exact: bool
    """False for a position beyond 1000, or of a job that has only just come: then it is an estimate."""
    eta_seconds: float | None
    """Seconds until the job has probably ended, from measured service times; null where nothing is known."""
    attempts: int
    max_retries: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    worker: str | None
    progress: JobProgress | None
    result: dict[str, Any] | None
    error: JobError | None
    errors: list[AttemptError]
    """One entry for each failed attempt."""
    links: Links


class JobSummary(Body):
    """A job in a list: without its result and the errors of its attempts."""

    request_id: str
    status: Status
    task: Task
    model: str
    client: str | None
    priority: Priority
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: JobProgress | None
    error: JobError | None
    links: Links


class JobList(Body):
    """Newest first. ``next_cursor`` asks for the jobs after these; null at the end."""

    jobs: list[JobSummary]
    next_cursor: str | None


class Accepted(Body):
    """The job is stored durably and will be run."""

    request_id: str
    status: Status
    task: Task
    model: str
    priority: Priority
    position: int | None
    """1 for the job that is claimed next."""
    position_exact: bool
    eta_seconds: float | None
    workers: int
    """Live workers that serve the model."""
    message: str | None
    """What to know, e.g. that no worker serves the model just now."""
    links: Links


class DatabaseHealth(Body):
    ok: bool
    latency_ms: float | None
    reason: str | None
    """What keeps the embedded mongod from running, e.g. «No space left on device»; null where nothing is known."""


class ModelHealth(Body):
    name: str
    task: Task
    workers: int
    queued: int
    processing: int


class Health(Body):
    status: Literal["ok", "unavailable"]
    timestamp: datetime
    version: str
    database: DatabaseHealth | None = None
    workers: int | None = None
    models: list[ModelHealth] | None = None


class ModelOnWorker(Body):
    worker: str
    host: str
    pid: int
    ready: bool
    state: str
    """«ready», or why this worker does not serve the model."""


class ModelBody(Body):
    name: str
    task: Task
    engine: str
    model: str
    aliases: list[str]
    description: str
    state: str
    """«ready» where a worker serves it, else the reason why none does."""
    max_concurrent: int
    max_waiting: int
    timeout: float
    """Seconds that one attempt may run; for documents, one page of it."""
    max_retries: int
    queued: int
    processing: int
    workers: list[ModelOnWorker]


class ModelList(Body):
    models: list[ModelBody]


class QueueBody(Body):
    model: str
    processing: int
    waiting: int
    max_concurrent: int
    max_waiting: int
    total_processed: int
    """Completed jobs in the history."""
    total_failed: int
    total_timeout: int
    total_cancelled: int
    utilization: float
    """Share of the model's ``max_concurrent`` that is at work, 0 to 1."""


class Crash(Body):
    at: datetime
    job: str | None
    """Null for the death of a worker."""
    model: str | None
    attempt: int | None
    worker: str | None
    code: str
    message: str
    details: dict[str, Any]
    stack: str | None = None
    """Where in the code the attempt failed; null for a worker that died, which could not tell."""
    outcome: str
    """What became of the job: «queued» for another attempt, or the status it ended in."""


class CrashList(Body):
    crashes: list[Crash]


class MissingModel(Body):
    name: str
    count: int
    first_seen: datetime
    last_seen: datetime
    last_subject: str


class MissingModelList(Body):
    missing_models: list[MissingModel]


class ScheduledRun(Body):
    name: str
    every: float
    """Seconds between two runs."""
    last_run: datetime
    seconds: float
    """How long it took."""
    next_run: datetime
    ok: bool
    outcome: str


class Scheduler(Body):
    """The clockwork: one process runs it at a time."""

    holder: str | None
    """The process that leads; null before the first start."""
    epoch: int
    """How often the lead has changed hands."""
    lease_expires_at: datetime | None
    runs: list[ScheduledRun]

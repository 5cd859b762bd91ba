"""The bodies that the routes answer with. ``/openapi.json`` is made from these very models."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from broker.parameters import Parameters

Task = Literal["chat", "completion", "ocr", "embedding"]
Priority = Literal["high", "normal", "low"]
Status = Literal["queued", "processing", "completed", "failed", "timeout", "cancelled"]
EngineState = Literal["stopped", "starting", "ready", "sleeping", "draining", "stopping", "failed", "unavailable"]
ModelStateName = EngineState | Literal["no worker"]


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


class PageStanding(Body):
    number: int
    status: Literal["processing", "completed", "blank", "failed"]


class Hop(Body):
    """A model that a job has left for another, which stood in."""

    model: str
    code: str
    """Why: that of its last error there, or `queue_full`."""
    message: str
    at: datetime


class AskedBackend(Body):
    """A server that a job's model was asked on. ``code`` and ``message``: why another one was asked after it."""

    name: str
    code: str | None = None
    message: str | None = None


class JobBody(Body):
    """A job. ``result`` has the shape of its task. What there is of pages is null where it is about no document."""

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
    cached_from: str | None
    """The job whose result answers this one too: the same document was read before, by the same model with the same
    options. `Cache-Control: no-cache` has it read anew."""
    progress: JobProgress | None
    pages_done: int | None
    pages_total: int | None
    """Pages that were asked for; null until the document is opened."""
    pages: list[PageStanding] | None
    """Pages that were begun, ascending."""
    result: dict[str, Any] | None
    error: JobError | None
    errors: list[AttemptError]
    """One entry for each failed attempt."""
    hops: list[Hop]
    """The models that it was with before; `attempts` counts those of `model`."""
    backends: list[AskedBackend]
    """The servers that the attempt which completed it has asked, where the model has several; the last has answered.
    Those of a failed attempt are in the `details` of its error."""
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


class BackendBody(Body):
    """One server of a model, as one worker sees it."""

    name: str
    address: str
    state: Literal["closed", "open", "half-open"]
    """Of its circuit breaker: requests go there; none do; one tries whether it is back."""
    retry_in: float
    """Seconds until a request goes there again; 0 where they do."""
    running: int
    latency: float | None
    """Seconds that it took of late until an answer began; null also after a failure."""
    last_error: str | None
    asked: int
    """Requests since the worker's start."""
    failed: int
    """Those of them that the server has failed."""


class HopCount(Body):
    """How often jobs went from this model to another."""

    to: str
    code: str
    count: int
    last_at: datetime


class ModelRun(Body):
    """What one worker says of one model. Seconds are those of the last time; null where nothing is known."""

    ready: bool
    state: EngineState
    reason: str | None
    """Why it is in this state, e.g. why it cannot run there."""
    since: datetime | None
    phase: str | None
    """What a start is at, e.g. «loading»."""
    progress: float | None
    """How far that is, 0 to 1."""
    healthy: bool | None
    last_error: str | None
    gpus: list[str]
    address: str | None
    """Where the engine listens: a port, a socket's path or a URL."""
    memory_bytes: int | None
    load_seconds: float | None
    sleep_seconds: float | None
    wake_seconds: float | None
    resolution: str | None
    backends: list[BackendBody]
    """The servers of a model that runs elsewhere."""


class ModelOnWorker(ModelRun):
    worker: str
    host: str
    pid: int


class DesiredBody(Body):
    """What operators want of the model."""

    wanted: Literal["running", "stopped", "sleeping"] | None
    """Null where nobody has asked for anything, or has handed the model back to the planner."""
    pinned: bool
    """Whether the planner may not take it out of memory."""
    resolution: str | None
    changed_at: datetime | None
    changed_by: str | None


class ModelBody(Body):
    name: str
    task: Task
    engine: str
    model: str
    aliases: list[str]
    description: str
    state: ModelStateName
    """The best of its workers' states; «unavailable» where none of them can serve it."""
    reason: str | None
    managed: bool
    """Whether its engine takes memory, so that it is loaded and unloaded as is planned."""
    plan: str | None
    """Why it is loaded, or is not: the last word on it of those who plan. Null for what is always loaded."""
    replicas: int
    """Workers that serve it now."""
    desired: DesiredBody
    settled: bool
    """Whether the workers have done what was asked for last, or have failed to."""
    max_concurrent: int
    max_waiting: int
    timeout: float
    """Seconds that one attempt may run; for documents, one page of it."""
    max_retries: int
    parameters: Parameters
    """What has been changed while it ran, and goes before the configuration."""
    fallbacks: list[str]
    """Models that stand in, in this order."""
    hops: list[HopCount]
    """How often they did, since the database is there; the latest first."""
    queued: int
    processing: int
    workers: list[ModelOnWorker]


class ModelOfWorker(ModelRun):
    name: str
    processing: int
    """Jobs of the model that this worker runs."""


class WorkerBody(Body):
    id: str
    host: str
    pid: int
    started_at: datetime
    last_seen: datetime
    draining: bool
    models: list[ModelOfWorker]


class WorkerList(Body):
    """The workers that have been heard of lately, the oldest first."""

    workers: list[WorkerBody]


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

"""The operator's routes: models, queues, crashes, and models that were asked for in vain. Role admin."""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from broker.errors import ModelNotFound
from broker.registry import ModelState, Worker
from gateway.auth import require_role
from gateway.context import context, json_body
from gateway.health import open_counts
from gateway.problems import Problem
from gateway.query import integer
from gateway.schemas import (
    Crash,
    CrashList,
    MissingModel,
    MissingModelList,
    ModelBody,
    ModelList,
    ModelOnWorker,
    QueueBody,
    ScheduledRun,
    Scheduler,
)


async def models(request: Request) -> Response:
    require_role(request, "admin")
    gateway = context(request)
    names = list(gateway.settings.models)
    workers = await gateway.broker.registry.live_workers()
    counts = await open_counts(gateway, names)
    bodies = []
    for name, entry in gateway.settings.models.items():
        queued, processing = counts[name]
        bodies.append(
            ModelBody(
                name=name,
                task=entry.task,
                engine=entry.engine,
                model=entry.model or name,
                aliases=list(entry.aliases),
                description=entry.description,
                state=_state(name, workers),
                max_concurrent=entry.max_concurrent,
                max_waiting=entry.max_waiting,
                timeout=entry.timeout,
                max_retries=entry.max_retries,
                queued=queued,
                processing=processing,
                workers=_on_workers(name, workers),
            )
        )
    return json_body(ModelList(models=bodies))


def _on_workers(model: str, workers: list[Worker]) -> list[ModelOnWorker]:
    return [
        ModelOnWorker(
            worker=worker.id,
            host=worker.host,
            pid=worker.pid,
            ready=worker.serves(model),
            state=_state_on(worker, known),
        )
        for worker in workers
        if (known := worker.models.get(model)) is not None
    ]


def _state_on(worker: Worker, known: ModelState) -> str:
    return "draining" if worker.draining and known.ready else known.state


def _state(model: str, workers: list[Worker]) -> str:
    known = _on_workers(model, workers)
    if any(entry.ready for entry in known):
        return "ready"
    return known[0].state if known else "no worker"


async def queue(request: Request) -> Response:
    require_role(request, "admin")
    gateway = context(request)
    asked = request.path_params["model"]
    name = gateway.settings.resolve(asked)
    if name is None:
        raise ModelNotFound(asked)
    entry = gateway.settings.models[name]
    counts = await gateway.broker.reader.counts(name)
    return json_body(
        QueueBody(
            model=name,
            processing=counts.processing,
            waiting=counts.queued,
            max_concurrent=entry.max_concurrent,
            max_waiting=entry.max_waiting,
            total_processed=counts.completed,
            total_failed=counts.failed,
            total_timeout=counts.timeout,
            total_cancelled=counts.cancelled,
            utilization=round(counts.processing / entry.max_concurrent, 4),
        )
    )


async def crashes(request: Request) -> Response:
    require_role(request, "admin")
    found = await context(request).broker.crashes.newest(
        limit=integer(request, "limit", default=100, least=1, most=1000),
        since=_since(request),
        model=request.query_params.get("model"),
    )
    return json_body(CrashList(crashes=[Crash(**crash) for crash in found]))


def _since(request: Request) -> datetime | None:
    text = request.query_params.get("since")
    if text is None:
        return None
    try:
        since = datetime.fromisoformat(text)
    except ValueError:
        raise Problem("invalid_query", f"since={text!r} is no RFC 3339 time, e.g. 2026-11-21T08:00:00Z.") from None
    return since if since.tzinfo else since.replace(tzinfo=UTC)


async def missing_models(request: Request) -> Response:
    require_role(request, "admin")
    found = await context(request).broker.registry.missing_models()
    bodies = [
        MissingModel(name=document["_id"], **{k: v for k, v in document.items() if k != "_id"}) for document in found
    ]
    return json_body(MissingModelList(missing_models=bodies))


async def scheduler(request: Request) -> Response:
    require_role(request, "admin")
    lease = await context(request).broker.leadership.look() or {}
    return json_body(
        Scheduler(
            holder=lease.get("holder"),
            epoch=lease.get("epoch", 0),
            lease_expires_at=lease.get("expires_at"),
            runs=[ScheduledRun(**run) for run in lease.get("runs", ())],
        )
    )

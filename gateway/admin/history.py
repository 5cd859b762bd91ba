"""The operator's routes: queues, crashes, the clockwork, and models that were asked for in vain. Role admin.

Those on models and workers are in ``gateway.admin.models``.
"""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from broker.naming import named
from gateway.auth import require_role
from gateway.context import context, json_body
from gateway.problems import Problem
from gateway.query import integer
from gateway.schemas import (
    Crash,
    CrashList,
    MissingModel,
    MissingModelList,
    QueueBody,
    ScheduledRun,
    Scheduler,
)


async def queue(request: Request) -> Response:
    require_role(request, "admin")
    gateway = context(request)
    name = named(gateway.settings, request.path_params["model"])
    entry = gateway.broker.models[name]
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
        code=request.query_params.get("code"),
    )
    return json_body(CrashList(crashes=[Crash(**crash) for crash in found]))


def _since(request: Request) -> datetime | None:
    text = request.query_params.get("since")
    if text is None:
        return None
    try:
        since = datetime.fromisoformat(text)
        return since.astimezone(UTC) if since.tzinfo else since.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise Problem("invalid_query", f"since={text!r} is no RFC 3339 time, e.g. 2026-11-21T08:00:00Z.") from None


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

"""``GET /health``: whether this gateway can accept jobs."""

import asyncio
import logging
import time
from datetime import UTC, datetime
from importlib.metadata import version

import pymongo
from pymongo.errors import PyMongoError
from starlette.requests import Request
from starlette.responses import Response

from broker.mongod import EmbeddedMongod
from gateway.context import Context, context, json_body
from gateway.schemas import DatabaseHealth, Health, ModelHealth

log = logging.getLogger(__name__)

VERSION = version("roundhouse")
# Seconds that the database has for its answer: a probe that hangs tells a load balancer nothing.
PATIENCE = 2.0


async def health(request: Request) -> Response:
    gateway = context(request)
    latency = await _ping(gateway)
    ok = latency is not None and gateway.broker.ready.is_set()
    body = Health(status="ok" if ok else "unavailable", timestamp=datetime.now(UTC), version=VERSION)
    if request.query_params.get("detail", "0") not in ("", "0", "false"):
        reason = _reason(gateway) if latency is None else None
        database = DatabaseHealth(ok=latency is not None, latency_ms=latency, reason=reason)
        body = body.model_copy(update={"database": database})
        if ok:
            body = body.model_copy(update=await _details(gateway))
    headers = {"Cache-Control": "no-store"} | ({} if ok else {"Retry-After": "2"})
    return json_body(body, 200 if ok else 503, headers)


async def _ping(gateway: Context) -> float | None:
    """Milliseconds that a round trip takes, or None."""
    start = time.perf_counter()
    try:
        # By the driver's own clock: cancelled while it looks for a server, it may raise a RuntimeError of its locks.
        with pymongo.timeout(PATIENCE):
            await gateway.broker.database.client.admin.command("ping")
    except PyMongoError as error:
        log.warning("the database does not answer: %s", error)
        return None
    return round((time.perf_counter() - start) * 1000, 2)


def _reason(gateway: Context) -> str | None:
    """What keeps the embedded mongod down, where that is known. No paths: whoever asks may be anybody."""
    if gateway.settings.mongodb.uri is not None:
        return None
    try:
        return EmbeddedMongod(gateway.settings.home).hindrance()
    except OSError as error:
        return error.strerror


async def open_counts(gateway: Context, models: list[str]) -> dict[str, tuple[int, int]]:
    """``{model: (queued, processing)}``."""
    found = await asyncio.gather(*(gateway.broker.reader.open_counts(model) for model in models))
    return dict(zip(models, found, strict=True))


async def _details(gateway: Context) -> dict[str, object]:
    workers = await gateway.broker.registry.live_workers()
    counts = await open_counts(gateway, list(gateway.settings.models))
    return {
        "workers": len(workers),
        "models": [
            ModelHealth(
                name=name,
                task=entry.task,
                workers=sum(worker.serves(name) for worker in workers),
                queued=counts[name][0],
                processing=counts[name][1],
            )
            for name, entry in gateway.settings.models.items()
        ],
    }

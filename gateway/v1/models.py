"""``GET /v1/models``: all names that a request may use, each with its model's state and where that is served."""

from collections.abc import Iterator, Sequence
from itertools import chain

from starlette.requests import Request
from starlette.responses import Response

from broker.errors import ModelNotFound
from broker.registry import Worker
from config import Settings
from gateway.context import context, json_body
from gateway.discovered import discovered
from gateway.model_list import hosts_of
from gateway.model_views import best_state
from gateway.v1.schemas import Model, ModelList


async def models(request: Request) -> Response:
    gateway = context(request)
    workers = await gateway.broker.registry.known_workers()
    return json_body(ModelList(data=list(_models(gateway.settings, workers))))


async def model(request: Request) -> Response:
    """Raises ModelNotFound."""
    gateway, asked = context(request), request.path_params["model"]
    workers = await gateway.broker.registry.known_workers()
    for found in _models(gateway.settings, workers):
        if found.id == asked:
            return json_body(found)
    raise ModelNotFound(asked)


def _models(settings: Settings, workers: Sequence[Worker]) -> Iterator[Model]:
    created = int(settings.config_path.stat().st_mtime) if settings.config_path.exists() else 0
    names = ((known, name) for name, entry in settings.models.items() for known in (name, *sorted(entry.other_names)))
    for known, name in chain(names, discovered(settings, workers).items()):
        entry = settings.models[name]
        yield Model(
            id=known,
            created=created,
            root=name,
            parent=name if known in entry.adapters else None,
            task=entry.task,
            state=best_state(name, workers),
            served_by=hosts_of(name, workers),
            description=entry.description,
        )

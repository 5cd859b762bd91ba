"""``GET /api/models``: what a client may ask for, each with its state and where it is served."""

from collections.abc import Sequence
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from broker.registry import Worker
from config import ModelSettings
from gateway.context import context, json_body
from gateway.model_views import best_state
from gateway.schemas import Body, ModelStateName


class ModelSummary(Body):
    name: str
    other_names: list[str]
    """Aliases and LoRA adapters: requests may give them in place of the name."""
    task: Literal["chat", "ocr", "embedding"]
    state: ModelStateName
    """The best on any worker."""
    served_by: list[str]
    """The hosts whose workers serve it now."""
    description: str


class ModelSummaries(Body):
    models: list[ModelSummary]


async def list_models(request: Request) -> Response:
    gateway = context(request)
    workers = await gateway.broker.registry.known_workers()
    models = [_summary(name, entry, workers) for name, entry in gateway.settings.models.items()]
    return json_body(ModelSummaries(models=models))


def hosts_of(model: str, workers: Sequence[Worker]) -> list[str]:
    """The hosts whose workers serve the model now."""
    return sorted({worker.host for worker in workers if worker.serves(model)})


def _summary(name: str, entry: ModelSettings, workers: Sequence[Worker]) -> ModelSummary:
    return ModelSummary(
        name=name,
        other_names=sorted(entry.other_names),
        task=entry.task,
        state=best_state(name, workers),
        served_by=hosts_of(name, workers),
        description=entry.description,
    )

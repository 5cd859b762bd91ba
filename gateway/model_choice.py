"""Which model serves a request, and whether it has room."""

from collections.abc import Mapping, Sequence
from typing import Any

from broker.errors import ModelNotFound
from broker.registry import Worker, first_available
from config import ModelSettings, OpenaiSettings, Settings
from gateway.auth import Principal
from gateway.context import Context
from gateway.discovered import entry_for
from gateway.problems import Problem


async def choose_model(
    gateway: Context, task: str, asked: str | None, principal: Principal, workers: list[Worker]
) -> str:
    """The model that the request names or, if it names none, the first of ``defaults`` that a worker serves or loads.

    What is not configured may be the model of an upstream, see ``gateway.discovered``.

    Raises ModelNotFound (and remembers what was asked for), or Problem ``wrong_task``, ``no_default_model``,
    ``model_not_allowed``, ``model_ambiguous``.
    """
    settings = gateway.settings
    if asked is None:
        preferences = {"ocr": settings.defaults.ocr, "chat": settings.defaults.chat}[task]
        chosen = first_available(preferences, workers, await _loaded_on_demand(gateway, preferences, workers))
        if chosen is None:
            raise Problem("no_default_model", f"Name a model: the configuration has no defaults.{task}.")
        return chosen
    name = settings.resolve(asked) or entry_for(settings, task, asked, workers)
    if name is None:
        await gateway.broker.registry.missing(asked, principal.subject)
        raise ModelNotFound(asked)
    if settings.models[name].task != task:
        raise Problem("wrong_task", f"{name} does {settings.models[name].task}, not {task}.", model=name)
    return name


def beyond(settings: Settings, asked: str | None) -> dict[str, str]:
    """What the name that was asked for says beyond its model: an adapter, or the upstream's model."""
    if (adapter := settings.adapter(asked)) is not None:
        return {"adapter": adapter}
    return {} if asked is None or settings.resolve(asked) is not None else {"upstream_model": asked}


def require_backend(entry: ModelSettings, model: str, payload: Mapping[str, Any]) -> None:
    """Raises Problem ``unknown_backend`` where ``modelKey`` is no name of one of the model's servers."""
    if (key := payload.get("modelKey")) is None:
        return
    known = [backend.name for backend in entry.backends] if isinstance(entry, OpenaiSettings) else []
    if key not in known:
        told = f"Its backends are {', '.join(known)}." if known else "It has no backends to choose from."
        raise Problem("unknown_backend", f"{model} has no backend {key!r}. {told}", backends=[*known])


async def _loaded_on_demand(gateway: Context, models: Sequence[str], workers: Sequence[Worker]) -> set[str]:
    """Those that need not be ready to be asked for, as they are loaded then."""
    if not gateway.settings.auto_switch.enabled:
        return set()
    loadable = {model for model in models if any(worker.could_load(model) for worker in workers)}
    return loadable - (await gateway.broker.plans.known()).overview.unfit.keys() if loadable else loadable


async def require_room(gateway: Context, task: str, asked: str | None) -> None:
    """Raises QueueFull if no model that the request can mean has a place free. Asked before its body is read."""
    named = None if asked is None else gateway.settings.resolve(asked)
    candidates = [name for name, entry in gateway.settings.models.items() if entry.task == task]
    if named in candidates:
        candidates = [named]
    for model in candidates:
        if await gateway.broker.queue.has_room(model):
            return
    if candidates:
        raise gateway.broker.queue.full(candidates[0])

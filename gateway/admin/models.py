"""The operator's routes on models and workers. Role admin.

An operator's request is written down as what is desired, and the workers make it so: an answer of 200 says that they
have (or that they have failed to, which the body shows), 202 that they have yet to.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import Response

from broker.desired import Desired, settled
from broker.naming import named
from broker.parameters import SAMPLING, Parameters
from config import ModelSettings, SimulatorSettings, VllmSettings
from config.models import Resolution
from gateway.auth import Principal, require_role
from gateway.body import parse_json, read_body, validated
from gateway.context import Context, context, json_body
from gateway.health import open_counts
from gateway.model_views import Sight, model_body, states_of, worker_body
from gateway.payloads import ResolutionRequest
from gateway.problems import Problem
from gateway.query import flag
from gateway.schemas import ModelList, WorkerList
from gateway.submissions import wait_seconds
from gateway.switch_views import misfit

log = logging.getLogger(__name__)

# Bytes of a body.
_LIMIT = 64 * 1024
# Seconds between two looks at what the workers say, while somebody waits for it.
_LOOK = 0.25
_AWAKE_OR_ASLEEP = frozenset({"sleeping", "ready", "starting", "draining"})


async def models(request: Request) -> Response:
    require_role(request, "admin")
    gateway = context(request)
    names = list(gateway.settings.models)
    sight = await _sight(gateway, names)
    return json_body(ModelList(models=[model_body(name, sight) for name in names]))


async def model(request: Request) -> Response:
    require_role(request, "admin")
    gateway = context(request)
    return await _answer(gateway, named(gateway.settings, request.path_params["model"]))


async def start(request: Request) -> Response:
    gateway, operator, name = _asked(request)
    resolution = _resolution(gateway.settings.models[name], name, request.query_params.get("resolution"))
    wait = wait_seconds(request, gateway.settings)
    await _require_able(gateway, name)
    return await _when_settled(gateway, await gateway.broker.desired.start(name, operator.subject, resolution), wait)


async def stop(request: Request) -> Response:
    gateway, operator, name = _asked(request)
    graceful = flag(request, "graceful", default=True)
    wait = wait_seconds(request, gateway.settings)
    desired = await gateway.broker.desired.stop(name, operator.subject, graceful=graceful)
    return await _when_settled(gateway, desired, wait)


async def sleep(request: Request) -> Response:
    gateway, operator, name = _asked(request)
    _require_sleeper(gateway, name)
    wait = wait_seconds(request, gateway.settings)
    workers = await gateway.broker.registry.live_workers()
    if not any(state.state in _AWAKE_OR_ASLEEP for state in states_of(name, workers)):
        raise Problem("model_not_running", f"{name} runs nowhere, so it cannot be put to sleep.", model=name)
    return await _when_settled(gateway, await gateway.broker.desired.sleep(name, operator.subject), wait)


async def wake(request: Request) -> Response:
    gateway, operator, name = _asked(request)
    _require_sleeper(gateway, name)
    wait = wait_seconds(request, gateway.settings)
    await _require_able(gateway, name)
    return await _when_settled(gateway, await gateway.broker.desired.wake(name, operator.subject), wait)


async def restart(request: Request) -> Response:
    gateway, operator, name = _asked(request)
    wait = wait_seconds(request, gateway.settings)
    await _require_able(gateway, name)
    return await _when_settled(gateway, await gateway.broker.desired.restart(name, operator.subject), wait)


async def automatic(request: Request) -> Response:
    gateway, operator, name = _asked(request)
    wait = wait_seconds(request, gateway.settings)
    return await _when_settled(gateway, await gateway.broker.desired.automatic(name, operator.subject), wait)


async def pin(request: Request) -> Response:
    gateway, operator, name = _asked(request)
    await gateway.broker.desired.pin(name, operator.subject)
    return await _answer(gateway, name)


async def unpin(request: Request) -> Response:
    gateway, operator, name = _asked(request)
    await gateway.broker.desired.unpin(name, operator.subject)
    return await _answer(gateway, name)


async def change_parameters(request: Request) -> Response:
    gateway, operator, name = _asked(request)
    data = parse_json(await read_body(request, _LIMIT))
    if isinstance(data, dict):
        _require_changeable(gateway.settings.models[name], name, data)
    await gateway.broker.models.change(name, validated(Parameters, data), operator.subject)
    return await _answer(gateway, name)


async def ocr_resolution(request: Request) -> Response:
    operator = require_role(request, "admin")
    gateway = context(request)
    wait = wait_seconds(request, gateway.settings)
    asked = validated(ResolutionRequest, parse_json(await read_body(request, _LIMIT)))
    name = _first_with_modes(gateway) if asked.model is None else named(gateway.settings, asked.model)
    _resolution(gateway.settings.models[name], name, asked.resolution)
    log.info("%s sets the resolution of %s to %s", operator.subject, name, asked.resolution)
    desired = await gateway.broker.desired.set_resolution(name, operator.subject, asked.resolution)
    return await _when_settled(gateway, desired, wait)


async def workers(request: Request) -> Response:
    require_role(request, "admin")
    gateway = context(request)
    registry = gateway.broker.registry
    alive, running = await asyncio.gather(registry.live_workers(), registry.running_jobs(list(gateway.settings.models)))
    return json_body(WorkerList(workers=[worker_body(worker, running.get(worker.id, {})) for worker in alive]))


# --- what may be asked


def _asked(request: Request) -> tuple[Context, Principal, str]:
    """Who asks something of which model. Raises Problem ``forbidden``, ModelNotFound."""
    operator = require_role(request, "admin")
    gateway = context(request)
    name = named(gateway.settings, request.path_params["model"])
    log.info("%s asks: %s %s", operator.subject, request.method, request.url.path)
    return gateway, operator, name


def _require_sleeper(gateway: Context, name: str) -> None:
    entry = gateway.settings.models[name]
    if not isinstance(entry, VllmSettings) and not (isinstance(entry, SimulatorSettings) and entry.memory is not None):
        raise Problem("action_not_supported", f"{name} runs on {entry.engine}, which cannot sleep.", model=name)


async def _require_able(gateway: Context, name: str) -> None:
    """Raises Problem ``cannot_start`` with the reasons where no worker could serve the model, or has the memory."""
    states = states_of(name, await gateway.broker.registry.live_workers())
    reasons = sorted({state.state for state in states if not state.able})
    if any(state.ready for state in states):
        return
    if any(state.able for state in states):
        reason = misfit(name, (await gateway.broker.plans.look()).overview)
        if reason is None:
            return
        reasons = [reason]
    told = "; ".join(reasons) or "no live worker serves it; start one by `roundhouse worker`"
    raise Problem("cannot_start", f"{name} cannot be started: {told}.", model=name, reasons=[*reasons])


def _first_with_modes(gateway: Context) -> str:
    settings = gateway.settings
    for name in (*settings.defaults.ocr, *settings.models):
        if settings.models[name].has_modes:
            return name
    raise Problem("action_not_supported", "No model of the configuration reads documents in several resolutions.")


def _resolution(entry: ModelSettings, name: str, asked: str | None) -> str | None:
    if asked is None:
        return None
    if not entry.has_modes:
        raise Problem("action_not_supported", f"{name} has no resolutions to choose from.", model=name)
    if asked not in get_args(Resolution):
        raise Problem(
            "invalid_resolution", f"resolution has to be one of {', '.join(get_args(Resolution))}, not {asked!r}."
        )
    return asked


def _require_changeable(entry: ModelSettings, name: str, data: dict[str, Any]) -> None:
    """What nobody knows is left to the validation."""
    fixed = [key for key in data if key in type(entry).model_fields and key not in Parameters.model_fields]
    if fixed:
        raise Problem(
            "not_changeable",
            f"{fixed[0]} of {name} cannot change while it runs; set it in config.yaml and start Roundhouse again.",
            keys=[*fixed],
        )
    unused = [key for key in data if key in SAMPLING] if entry.engine == "tesseract" else []
    if unused:
        raise Problem("not_changeable", f"{name} has no use for {unused[0]}: it does not sample.", keys=[*unused])


# --- answers


async def _sight(gateway: Context, names: Sequence[str]) -> Sight:
    broker = gateway.broker
    counts, desired, alive, plan, hops = await asyncio.gather(
        open_counts(gateway, list(names)),
        broker.desired.all(),
        broker.registry.live_workers(),
        broker.plans.look(),
        broker.queue.fallbacks.counts(),
    )
    return Sight(broker.models, desired, alive, counts, plan, hops)


async def _answer(gateway: Context, name: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return json_body(model_body(name, await _sight(gateway, [name])), status, headers)


async def _when_settled(gateway: Context, desired: Desired, wait: int | None) -> Response:
    """Answers once the workers have done it or have failed to, or after ``wait`` seconds."""
    deadline = time.monotonic() + (wait or 0)
    done = await _is_settled(gateway, desired)
    while not done and time.monotonic() < deadline:
        await asyncio.sleep(_LOOK)
        done = await _is_settled(gateway, desired)
    headers = {} if wait is None else {"Preference-Applied": f"wait={wait}"}
    return await _answer(gateway, desired.model, 200 if done else 202, headers)


async def _is_settled(gateway: Context, desired: Desired) -> bool:
    return settled(desired, states_of(desired.model, await gateway.broker.registry.live_workers()))


ACTIONS = {
    "start": start,
    "stop": stop,
    "sleep": sleep,
    "wake": wake,
    "restart": restart,
    "auto": automatic,
    "pin": pin,
    "unpin": unpin,
}
"""By the last part of their path."""

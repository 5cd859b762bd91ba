"""What has been planned, as operators and clients see it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import cast

from broker.broker import Broker
from broker.desired import Desired, Wanted
from broker.plans import Order, Overview, Standing
from broker.registry import ModelState, Worker
from broker.switching import STALE
from gateway.admin.switch_schemas import (
    AutoSwitch,
    MemoryDevice,
    Residence,
    SwitchDecision,
    SwitchedModel,
    SwitchForecast,
    SwitchWaiting,
)
from gateway.schemas import EngineState

_BEST_FIRST = (Wanted.RUNNING, Wanted.SLEEPING, Wanted.STOPPED)


def state_name(worker: Worker, state: ModelState) -> EngineState:
    if not state.able:
        return "unavailable"
    return "draining" if state.ready and worker.draining else cast(EngineState, state.state)


def managed(model: str, workers: Sequence[Worker]) -> bool:
    return any(worker.manages(model) for worker in workers)


def plan_of(model: str, standing: Standing, workers: Sequence[Worker]) -> str | None:
    """Why the model is loaded or is not; None for what is always loaded."""
    if not managed(model, workers):
        return None
    if hindrance := hindrance_to(model, standing.overview):
        return hindrance
    alive = {worker.id for worker in workers}
    orders = [order for order in standing.of(model) if order.worker in alive]
    if not orders:
        return "nobody has asked for it"
    best = min(_BEST_FIRST.index(order.wanted) for order in orders)
    return max((order for order in orders if order.wanted is _BEST_FIRST[best]), key=_at).reason


def hindrance_to(model: str, overview: Overview) -> str | None:
    """Why a model that is wanted is not loaded, or could not be. None also where nobody has planned lately."""
    if not _fresh(overview):
        return None
    return overview.unfit.get(model) or overview.waiting.get(model)


def misfit(model: str, overview: Overview) -> str | None:
    """Why the model fits nowhere, whoever made room."""
    return overview.unfit.get(model) if _fresh(overview) else None


def _fresh(overview: Overview) -> bool:
    return overview.planned_at is not None and datetime.now(UTC) - overview.planned_at < STALE


def _at(order: Order) -> datetime:
    return order.at or datetime.min.replace(tzinfo=UTC)


async def why_it_waits(broker: Broker, model: str) -> str:
    """What to tell the submitter of a job that no worker serves just now. Costs nothing most of the time."""
    workers = await broker.registry.known_workers()
    if not managed(model, workers):
        return f"No worker serves {model} just now; the job waits until one does."
    if reason := hindrance_to(model, (await broker.plans.known()).overview):
        return f"{model} is not loaded; the job waits until it is: {reason}."
    return f"{model} is not loaded; the job waits until it is."


def auto_switch_body(
    broker: Broker,
    lease: Mapping[str, object],
    standing: Standing,
    workers: Sequence[Worker],
    desired: Mapping[str, Desired],
) -> AutoSwitch:
    settings, overview = broker.settings.auto_switch, standing.overview
    holder, epoch = lease.get("holder"), lease.get("epoch", 0)
    told = {**overview.waiting, **overview.unfit}
    return AutoSwitch(
        enabled=settings.enabled,
        max_swap_wait=settings.max_swap_wait,
        leader=holder if isinstance(holder, str) else None,
        epoch=epoch if isinstance(epoch, int) else 0,
        planned_at=overview.planned_at,
        models=[
            _model(name, desired.get(name, Desired(name)), standing, workers)
            for name in broker.settings.models
            if managed(name, workers)
        ],
        devices=_devices(workers),
        waiting=[SwitchWaiting(model=model, reason=reason) for model, reason in told.items()],
        forecast=[
            SwitchForecast(
                model=found.model, hour=found.hour, jobs=found.jobs, trusted=found.trusted, reason=found.reason
            )
            for found in overview.expected
        ],
        decisions=[
            SwitchDecision(
                at=made.at,
                kind=made.kind,
                model=made.model,
                worker=made.worker,
                gpus=list(made.gpus),
                reason=made.reason,
            )
            for made in overview.decisions
        ],
    )


def _model(name: str, desired: Desired, standing: Standing, workers: Sequence[Worker]) -> SwitchedModel:
    orders = {order.worker: order for order in standing.of(name)}
    states = [(worker, state) for worker in workers if (state := worker.models.get(name)) and state.managed]
    needs = [state.need_bytes for _, state in states if state.need_bytes is not None]
    return SwitchedModel(
        name=name,
        wanted=None if desired.wanted is None else desired.wanted.value,
        pinned=desired.pinned,
        need_bytes=max(needs, default=None),
        residents=[_residence(worker, state, orders.get(worker.id)) for worker, state in states],
    )


def _residence(worker: Worker, state: ModelState, order: Order | None) -> Residence:
    return Residence(
        worker=worker.id,
        state=state_name(worker, state),
        gpus=list(state.gpus),
        memory_bytes=state.memory_bytes,
        ordered=None if order is None else order.wanted.value,
        reason=None if order is None else order.reason or None,
        ordered_at=None if order is None else order.at,
    )


def _devices(workers: Sequence[Worker]) -> list[MemoryDevice]:
    """Each once, as the worker that was heard of last tells of it."""
    latest = {device.uuid: device for worker in sorted(workers, key=lambda w: w.last_seen) for device in worker.devices}
    held = {
        uuid: sum(
            state.memory_bytes or 0 for worker in workers for state in worker.models.values() if uuid in state.gpus
        )
        for uuid in latest
    }
    return [
        MemoryDevice(
            uuid=uuid,
            name=device.name,
            total=device.total,
            free=device.free,
            ours=held[uuid],
            workers=[worker.id for worker in workers if any(of.uuid == uuid for of in worker.devices)],
        )
        for uuid, device in sorted(latest.items())
    ]

"""From what workers, operators and the queue say to the planner's ``Snapshot``, and from its ``Plan`` to orders. Pure.

What has been promised counts as taken: an order to run whose worker has not begun is an engine that starts, and an
engine that is ordered away is going, whatever its worker still says. A worker that drains or has fallen silent is no
place to load anything, but what its engines hold is not free.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from broker.demand import Demand
from broker.desired import Desired, Wanted
from broker.devices import DeviceUse, Engine, devices_of, host_memory
from broker.forecast import Forecast
from broker.measurements import Measurement
from broker.plans import Decision, DecisionKind, Order
from broker.registry import ModelState, Worker
from broker.snapshot import (
    DRAINING,
    FAILED,
    READY,
    SLEEPING,
    STARTING,
    STOPPING,
    Device,
    Model,
    Plan,
    Resident,
    Rules,
    Snapshot,
)

_WANTED: Mapping[Wanted | None, Literal["auto", "on", "off", "asleep"]] = {
    None: "auto",
    Wanted.RUNNING: "on",
    Wanted.STOPPED: "off",
    Wanted.SLEEPING: "asleep",
}
_ORDERED: Mapping[str, Wanted] = {
    "load": Wanted.RUNNING,
    "wake": Wanted.RUNNING,
    "sleep": Wanted.SLEEPING,
    "stop": Wanted.STOPPED,
}
_GIB = 2**30
# A worker that has been heard of so long after an order was withdrawn can no more be about to follow it.
_HEARD = timedelta(seconds=1)
# So long after an order an engine may be loading that neither its silent worker nor the device's driver tells of.
_UNSEEN = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known at ``now``.

    ``models``: names of those whose engines take memory, in the order of the config. ``workers``: those alive;
    ``known``: ids of these and of those that have fallen silent and may come back. ``orders``: all that stand.
    ``others``: by device, bytes that other programs held when that was last certain, see ``broker.devices``.
    """

    now: datetime
    models: Sequence[str]
    workers: Sequence[Worker]
    known: frozenset[str] = frozenset()
    desired: Mapping[str, Desired] = field(default_factory=dict)
    orders: Sequence[Order] = ()
    demand: Mapping[str, Demand] = field(default_factory=dict)
    measured: Mapping[str, Measurement] = field(default_factory=dict)
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)

    def wants(self, model: str) -> Desired:
        return self.desired.get(model, Desired(model))

    def needs(self, model: str) -> int | None:
        """Bytes on each of its devices; None while nobody knows."""
        told = [state.need_bytes for _, state in self.states(model) if state.need_bytes is not None]
        return max(told, default=self.measured.get(model, Measurement()).memory_bytes)

    def states(self, model: str) -> Iterator[tuple[Worker, ModelState]]:
        for worker in self.workers:
            state = worker.models.get(model)
            if state is not None and state.managed:
                yield worker, state

    def places(self, model: str) -> list[tuple[Worker, ModelState]]:
        """The workers that could serve it."""
        return [(worker, state) for worker, state in self.states(model) if state.able and not worker.draining]


@dataclass(frozen=True, slots=True)
class Survey:
    """``unfit``: by model, why it fits nowhere, whoever made room."""

    snapshot: Snapshot
    engines: tuple[Engine, ...]
    devices: Mapping[str, DeviceUse]
    unfit: Mapping[str, str]


def survey(facts: Facts) -> Survey:
    engines = tuple(engines_of(facts))
    devices = devices_of(facts.workers, engines, facts.others)
    models = [_model(name, facts, engines) for name in facts.models]
    places = [worker for worker in facts.workers if not worker.draining]
    snapshot = Snapshot(
        models=(*models, *(_guest(engine) for engine in engines if engine.leaving)),
        devices=tuple(
            Device(worker.id, told.uuid, devices[told.uuid].for_models) for worker in places for told in worker.devices
        ),
        rules=facts.rules,
        host_memory=host_memory(places),
    )
    unfit = {model.name: reason for model in models if (reason := _unfit(model, snapshot.devices))}
    return Survey(snapshot, engines, devices, unfit)


# --- engines


def engines_of(facts: Facts) -> Iterator[Engine]:
    orders = {(order.model, order.worker): order for order in facts.orders}
    totals = {told.uuid: told.total for worker in facts.workers for told in worker.devices}
    for name in facts.models:
        need = facts.needs(name)
        for worker, state in facts.states(name):
            order = orders.get((name, worker.id))
            seen = _seen(worker, state, order, facts.wants(name).wanted)
            if seen is not None:
                away = state.state == "stopped" or not state.able
                devices = order.gpus if order is not None and away else state.gpus
                memory, holds = _memory(seen, state, _or_all(need, devices, totals))
                yield Engine(name, worker.id, devices, seen, memory, holds, state.since, leaving=worker.draining)
    alive = {worker.id for worker in facts.workers}
    for order in facts.orders:
        young = order.at is not None and facts.now - order.at < _UNSEEN
        if young and order.wanted is Wanted.RUNNING and order.worker in facts.known - alive:
            memory = _or_all(facts.needs(order.model), order.gpus, totals)
            yield Engine(order.model, order.worker, order.gpus, DRAINING, memory, 0, leaving=True)


def _seen(worker: Worker, state: ModelState, order: Order | None, asked: Wanted | None) -> str | None:
    """The state in which the planner is to see an engine; None for one that is not there.

    ``asked``: by an operator. The worker obeys that first; the order that it goes against is about to be withdrawn,
    and until that is written the worker may yet follow it, should the operator change their mind.
    """
    ordered, leaving = None if order is None else order.wanted, worker.draining
    away = leaving or ordered in (Wanted.STOPPED, Wanted.SLEEPING)
    refused = asked in (Wanted.STOPPED, Wanted.SLEEPING)
    match state.state:
        case "stopped" if ordered is Wanted.RUNNING and not leaving:
            return STOPPING if refused else STARTING
        case "stopped" if order is not None and _just_withdrawn(worker, state, order):
            return STOPPING
        case "draining" | "stopping" if not away and not refused and ordered is Wanted.RUNNING:
            return STARTING  # it is started anew
        case "starting":
            return STOPPING if away else STARTING
        case "ready":
            return DRAINING if away else READY
        case "sleeping" if leaving or ordered is Wanted.STOPPED:
            return STOPPING
        case "sleeping":
            return STARTING if ordered is Wanted.RUNNING else SLEEPING
        case "draining" | "stopping" | "failed":
            return state.state
    # Stopped, or unable to run there: until that order is withdrawn it may yet be followed.
    return STOPPING if ordered is Wanted.RUNNING and not state.able and not leaving else None


def _just_withdrawn(worker: Worker, state: ModelState, order: Order) -> bool:
    """Whether the worker may have begun to follow the order before this one, and not have told yet."""
    if order.at is None or not order.gpus:
        return False
    stopped_since = state.since is not None and state.since >= order.at
    return not stopped_since and worker.last_seen < order.at + _HEARD


def _memory(seen: str, state: ModelState, need: int) -> tuple[int, int]:
    """What an engine holds on each device or is going to, and what of that it holds for certain."""
    told = state.memory_bytes
    match seen:
        case "failed":
            return 0, 0
        case "sleeping":
            return told or 0, told or 0
        case "ready" | "draining":
            held = need if told is None else told
            return held, held
    return max(need, told or 0), 0 if state.state == STOPPING else told or 0


def _or_all(need: int | None, devices: Sequence[str], totals: Mapping[str, int]) -> int:
    """An engine whose need nobody knows gets its devices for itself."""
    return max((totals.get(uuid, 0) for uuid in devices), default=0) if need is None else need


# --- models


def _model(name: str, facts: Facts, engines: Sequence[Engine]) -> Model:
    demand, desired = facts.demand.get(name, Demand()), facts.wants(name)
    measured, forecast = facts.measured.get(name, Measurement()), facts.forecasts.get(name)
    states = [state for _, state in facts.places(name)]
    plain = Model(name, facts.needs(name), frozenset(worker.id for worker, _ in facts.places(name)))
    return replace(
        plain,
        gpus=max((state.gpu_count for state in states), default=1),
        queued=demand.queued,
        oldest_wait=demand.oldest_wait,
        rate=demand.rate,
        expected=forecast.jobs if forecast is not None and forecast.trusted else 0.0,
        load=_last([state.load_seconds for state in states], measured.load_seconds, plain.load),
        wake=_last([state.wake_seconds for state in states], measured.wake_seconds, plain.wake),
        can_sleep=bool(states) and all(state.can_sleep for state in states),
        host_need=max((state.host_bytes for state in states), default=0) or measured.host_bytes or 0,
        idle_for=demand.idle_for,
        away_for=_away_for(name, facts),
        pinned=desired.pinned,
        wanted=_WANTED[desired.wanted],
        residents=tuple(
            _resident(engine, facts.now, demand) for engine in engines if engine.model == name and not engine.leaving
        ),
    )


def _last(told: Sequence[float | None], measured: float | None, usual: float) -> float:
    known = [seconds for seconds in told if seconds is not None]
    return max(known) if known else usual if measured is None else measured


def _resident(engine: Engine, now: datetime, demand: Demand) -> Resident:
    loaded = engine.state == READY and engine.since is not None
    return Resident(
        worker=engine.worker,
        devices=engine.devices,
        state=engine.state,
        memory=engine.memory,
        running=demand.running.get(engine.worker, 0),
        loaded_for=max(0.0, (now - engine.since).total_seconds()) if loaded and engine.since else 0.0,
        still_waiting=demand.still_waiting.get(engine.worker, 0),
    )


def _guest(engine: Engine) -> Model:
    """What nobody can plan with, but has to reckon with: an engine on a worker that leaves."""
    state = engine.state if engine.state in (DRAINING, STOPPING) else STOPPING
    held = Resident(engine.worker, engine.devices, state, engine.memory)
    name = f"{engine.model} on {engine.worker}"
    return Model(name, engine.memory, frozenset(), wanted="off", residents=(held,))


def _away_for(model: str, facts: Facts) -> float:
    """Since an engine of it was last ordered away and went."""
    states = {worker.id: state for worker, state in facts.states(model)}
    went = []
    for order in facts.orders:
        if order.model == model and order.wanted is not Wanted.RUNNING and order.at is not None:
            state = states.get(order.worker)
            gone = state is not None and state.since is not None and state.state in ("stopped", SLEEPING)
            went.append(max(order.at, state.since) if gone and state and state.since else order.at)
    return max(0.0, (facts.now - max(went)).total_seconds()) if went else math.inf


def _unfit(model: Model, devices: Sequence[Device]) -> str | None:
    there = [[device.memory for device in devices if device.worker == worker] for worker in model.workers]
    most_devices = max(map(len, there), default=0)
    if most_devices == 0:
        return None  # whoever could serve it has none just now
    if most_devices < model.gpus:
        return f"it needs {model.gpus} devices of one worker, and none has more than {most_devices}"
    need = model.need or 0
    if any(sum(memory >= need for memory in of) >= model.gpus for of in there):
        return None
    each = "" if model.gpus == 1 else f" on each of {model.gpus} devices"
    most = max(max(of) for of in there if of)
    return f"it needs {need / _GIB:.1f} GiB{each}, and models may use at most {most / _GIB:.1f} GiB of a device"


# --- orders


def orders_after(facts: Facts, plan: Plan) -> tuple[list[Order], list[Decision]]:
    """All orders that are to stand from now on, and what of that is new.

    An order stands until it is changed, or its worker is gone for good.
    """
    orders = {(order.model, order.worker): order for order in facts.orders if order.worker in facts.known}
    decisions: list[Decision] = []

    def order(kind: DecisionKind, wanted: Wanted, model: str, worker: str, gpus: tuple[str, ...], reason: str) -> None:
        standing = orders.get((model, worker))
        if standing is None or standing.wanted is not wanted or (wanted is Wanted.RUNNING and standing.gpus != gpus):
            orders[model, worker] = Order(model, worker, wanted, gpus, reason, facts.now)
            decisions.append(Decision(facts.now, kind, model, worker, gpus, reason))

    for name in facts.models:
        for worker, state in facts.states(name):
            standing = orders.get((name, worker.id))
            found = None if worker.draining else _correction(state, standing, facts.wants(name).wanted)
            if found is not None:
                kind, wanted, reason = found
                order(kind, wanted, name, worker.id, state.gpus if standing is None else standing.gpus, reason)
    for action in plan.actions:
        order(action.kind, _ORDERED[action.kind], action.model, action.worker, action.devices, action.reason)
    return list(orders.values()), decisions


def _correction(
    state: ModelState, order: Order | None, asked: Wanted | None
) -> tuple[DecisionKind, Wanted, str] | None:
    """What has to be changed about an order without any planning, because of what has become of its engine."""
    if order is None:
        adopted = {STARTING: Wanted.RUNNING, READY: Wanted.RUNNING, SLEEPING: Wanted.SLEEPING}.get(state.state)
        welcome = asked in (None, Wanted.RUNNING) or asked is adopted
        return ("keep", adopted, "it was there without an order") if adopted and welcome else None
    if order.wanted is Wanted.RUNNING:
        if not state.able:
            return "stop", Wanted.STOPPED, f"the worker cannot run it: {state.state}"
        if state.state == FAILED:
            return "stop", Wanted.STOPPED, f"its engine failed: {state.reason or 'no reason was given'}"
        if asked is Wanted.STOPPED:
            return "stop", Wanted.STOPPED, "an operator stopped it"
        if asked is Wanted.SLEEPING and state.can_sleep:
            return "sleep", Wanted.SLEEPING, "an operator put it to sleep"
    return None

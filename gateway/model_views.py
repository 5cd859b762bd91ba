"""Models and workers as operators see them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from broker.desired import Desired, settled
from broker.parameters import LiveModels
from broker.plans import Standing
from broker.registry import ModelState, Worker
from gateway.schemas import (
    BackendBody,
    DesiredBody,
    EngineState,
    HopCount,
    ModelBody,
    ModelOfWorker,
    ModelOnWorker,
    ModelStateName,
    WorkerBody,
)
from gateway.switch_views import managed, plan_of, state_name

# The best state first: with several workers it speaks for the model.
_BEST_FIRST: tuple[EngineState, ...] = (
    "ready",
    "starting",
    "sleeping",
    "draining",
    "stopping",
    "failed",
    "stopped",
    "unavailable",
)
assert set(_BEST_FIRST) == set(get_args(EngineState))


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of all models at one moment. ``counts``: {model: (queued, processing)}. ``hops``: see
    ``broker.fallback``."""

    models: LiveModels
    desired: Mapping[str, Desired]
    workers: Sequence[Worker]
    counts: Mapping[str, tuple[int, int]]
    plan: Standing
    hops: Sequence[Mapping[str, Any]]


def model_body(name: str, sight: Sight) -> ModelBody:
    entry = sight.models[name]
    runs = [_on_worker(worker, state) for worker in sight.workers if (state := worker.models.get(name))]
    best = min(runs, key=lambda run: _BEST_FIRST.index(run.state), default=None)
    wanted = sight.desired.get(name, Desired(name))
    queued, processing = sight.counts[name]
    return ModelBody(
        name=name,
        task=entry.task,
        engine=entry.engine,
        model=entry.model or name,
        aliases=list(entry.aliases),
        description=entry.description,
        state="no worker" if best is None else best.state,
        reason=None if best is None else best.reason,
        managed=managed(name, sight.workers),
        plan=plan_of(name, sight.plan, sight.workers),
        replicas=sum(run.ready for run in runs),
        desired=_desired(wanted),
        settled=settled(wanted, states_of(name, sight.workers)),
        max_concurrent=entry.max_concurrent,
        max_waiting=entry.max_waiting,
        timeout=entry.timeout,
        max_retries=entry.max_retries,
        parameters=sight.models.changed(name),
        fallbacks=list(entry.fallbacks),
        hops=[_hop_count(hop) for hop in sight.hops if hop["from"] == name],
        queued=queued,
        processing=processing,
        workers=runs,
    )


def best_state(model: str, workers: Sequence[Worker]) -> ModelStateName:
    """Of the model on all workers."""
    states = (state_name(worker, state) for worker in workers if (state := worker.models.get(model)))
    return min(states, key=_BEST_FIRST.index, default="no worker")


def states_of(model: str, workers: Sequence[Worker]) -> list[ModelState]:
    """What the workers that stay say of the model."""
    return [state for worker in workers if not worker.draining and (state := worker.models.get(model))]


def _hop_count(hop: Mapping[str, Any]) -> HopCount:
    return HopCount(to=hop["to"], code=hop["code"], count=hop["count"], last_at=hop["last_at"])


def _desired(desired: Desired) -> DesiredBody:
    return DesiredBody(
        wanted=None if desired.wanted is None else desired.wanted.value,
        pinned=desired.pinned,
        resolution=desired.resolution,
        changed_at=desired.changed_at,
        changed_by=desired.changed_by,
    )


def _on_worker(worker: Worker, state: ModelState) -> ModelOnWorker:
    return ModelOnWorker(worker=worker.id, host=worker.host, pid=worker.pid, **_run(worker, state))


def _run(worker: Worker, state: ModelState) -> dict[str, Any]:
    return {
        "ready": state.ready and not worker.draining,
        "state": state_name(worker, state),
        # A worker that can never serve the model says why in the place of a state.
        "reason": (state.reason or None) if state.able else state.state,
        "since": state.since,
        "phase": state.phase or None,
        "progress": state.progress,
        "healthy": state.healthy,
        "last_error": state.last_error,
        "gpus": list(state.gpus),
        "address": state.address,
        "memory_bytes": state.memory_bytes,
        "load_seconds": state.load_seconds,
        "sleep_seconds": state.sleep_seconds,
        "wake_seconds": state.wake_seconds,
        "resolution": state.resolution,
        "backends": [BackendBody.model_validate(asdict(backend)) for backend in state.backends],
    }


def worker_body(worker: Worker, running: Mapping[str, int]) -> WorkerBody:
    """``running``: {model: jobs that the worker runs}."""
    models = [
        ModelOfWorker(name=name, processing=running.get(name, 0), **_run(worker, state))
        for name, state in worker.models.items()
    ]
    return WorkerBody(
        id=worker.id,
        host=worker.host,
        pid=worker.pid,
        started_at=worker.started_at,
        last_seen=worker.last_seen,
        draining=worker.draining,
        models=models,
    )

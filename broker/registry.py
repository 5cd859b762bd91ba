"""Who is there: the live workers and what they serve, and the models that somebody asked for in vain."""

import math
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from broker.database import SLOT_INDEX, Database
from broker.job import Status

# A worker that has not been heard of for this long is not counted as alive. Jobs do not depend on it: leases do.
HEARTBEAT = 2.0
SILENCE = timedelta(seconds=3 * HEARTBEAT)
# After this long a silent worker is counted as dead.
BURIAL = timedelta(seconds=30)
# Seconds for which it is believed who is alive.
KNOWN = 1.0
# Names that clients send are kept short and few, so that nobody can fill the database with them.
NAME_LIMIT = 200
MISSING_LIMIT = 1000


# The states of an engine (worker/engine_state.py). Whatever else a worker says instead is why it has none.
ENGINE_STATES = frozenset({"stopped", "starting", "ready", "sleeping", "draining", "stopping", "failed"})


@dataclass(frozen=True, slots=True)
class BackendState:
    """What one worker says of one server of a model. ``state``: closed, open or half-open (``worker.backends``).

    ``retry_in``: seconds until it gets a request again; 0 where it does. ``running``: requests of this worker that are
    under way there. ``latency``: seconds that it took of late until an answer began. ``last_error``: of the last
    request, where the server has failed it. ``asked``: requests since the worker's start; ``failed``: those of them
    that the server has failed.
    """

    name: str
    address: str
    state: str
    retry_in: float = 0.0
    running: int = 0
    latency: float | None = None
    last_error: str | None = None
    asked: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class ModelState:
    """What one worker says of one model.

    ``state``: one of ENGINE_STATES, or in plain words why this worker can never serve the model. ``reason``: why the
    state is as it is. ``phase`` and ``progress`` (0 to 1, where it is known): how far a start is. ``address``: where
    the engine listens, a port, a socket's path or a URL. ``version``: of the Desired that the state is the answer to;
    None from a worker that does not look at that. Seconds are those of the last time. ``backends``: of a model that
    runs elsewhere, its servers; ``listed``: names of further models there, where the servers are asked for them.

    ``managed``: its engine takes memory, and is loaded and unloaded by orders (``broker.plans``). The rest is of such
    ones only. ``gpus``: uuids of the devices that it is on, or was on last. ``memory_bytes``: what it holds on each of
    them now. ``need_bytes``: what it takes on each of ``gpu_count`` devices when it is ready; None while nobody knows.
    ``can_sleep``: sleeping frees most of that, for ``host_bytes`` of main memory. ``loadable``: it has not failed, and
    no operator keeps it from being loaded.
    """

    ready: bool
    state: str
    reason: str = ""
    since: datetime | None = None
    phase: str = ""
    progress: float | None = None
    gpus: tuple[str, ...] = ()
    address: str | None = None
    memory_bytes: int | None = None
    load_seconds: float | None = None
    sleep_seconds: float | None = None
    wake_seconds: float | None = None
    healthy: bool | None = None
    last_error: str | None = None
    resolution: str | None = None
    version: int | None = None
    managed: bool = False
    gpu_count: int = 1
    need_bytes: int | None = None
    can_sleep: bool = False
    host_bytes: int = 0
    loadable: bool = False
    backends: tuple[BackendState, ...] = ()
    listed: tuple[str, ...] = ()

    @property
    def able(self) -> bool:
        """Whether this worker could serve the model, if it were told to."""
        return self.state in ENGINE_STATES


_PLAIN = ModelState(ready=False, state="")
_FIELDS = tuple(field.name for field in fields(ModelState))


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Memory that a worker's engines can use: a GPU (``uuid`` by NVML), or the main memory of a machine without one
    (``host:`` and its name). Two workers of one machine name the same. ``total`` and ``free``: bytes."""

    uuid: str
    total: int
    free: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Worker:
    """``host_memory``: bytes of main memory that sleeping models may fill on its machine."""

    id: str
    host: str
    pid: int
    started_at: datetime
    last_seen: datetime
    draining: bool
    models: Mapping[str, ModelState]
    devices: tuple[DeviceState, ...] = ()
    host_memory: int = 0

    def serves(self, model: str) -> bool:
        state = self.models.get(model)
        return state is not None and state.ready and not self.draining

    def manages(self, model: str) -> bool:
        """Whether it has an engine of the model that is loaded and unloaded by orders."""
        state = self.models.get(model)
        return state is not None and state.managed

    def could_load(self, model: str) -> bool:
        state = self.models.get(model)
        return state is not None and state.loadable and not self.draining


class Registry:
    def __init__(self, database: Database) -> None:
        self._workers = database.workers
        self._missing = database.missing_models
        self._jobs = database.jobs_local
        self._known: tuple[float, list[Worker]] = (-math.inf, [])

    async def heartbeat(
        self,
        worker: str,
        host: str,
        pid: int,
        models: Mapping[str, ModelState],
        *,
        draining: bool,
        devices: Sequence[DeviceState] = (),
        host_memory: int = 0,
    ) -> None:
        """Says that the worker lives. ``w:1``: the next beat heals a lost one."""
        about = {
            "host": host,
            "pid": pid,
            "draining": draining,
            # Model names may hold dots, so they are values here and not keys.
            "models": [{"name": name, **_told(state)} for name, state in models.items()],
            "devices": [asdict(device) for device in devices],
            "host_memory": host_memory,
        }
        update: list[dict[str, Any]] = [
            {"$set": {"last_seen": "$$NOW", "started_at": {"$ifNull": ["$started_at", "$$NOW"]}}},
            {"$set": {key: {"$literal": value} for key, value in about.items()}},
        ]
        await self._workers.update_one({"_id": worker}, update, upsert=True)

    async def remove(self, worker: str) -> None:
        """The worker has stopped in good order."""
        await self._workers.delete_one({"_id": worker})

    async def live_workers(self) -> list[Worker]:
        """The workers heard of within SILENCE, by the database's clock."""
        oldest = {"$subtract": ["$$NOW", int(SILENCE.total_seconds() * 1000)]}
        recent = {"$expr": {"$gte": ["$last_seen", oldest]}}
        return [_worker(document) async for document in self._workers.find(recent).sort("started_at", 1)]

    async def running_jobs(self, models: Sequence[str]) -> dict[str, dict[str, int]]:
        """``{worker: {model: jobs that it runs}}``; only of ``models``, and without zeros."""
        held = {"model": {"$in": list(models)}, "slot": {"$gte": 0}, "status": Status.PROCESSING.value}
        count = {"$group": {"_id": {"worker": "$worker", "model": "$model"}, "jobs": {"$sum": 1}}}
        running: dict[str, dict[str, int]] = {}
        async for found in await self._jobs.aggregate([{"$match": held}, count], hint=SLOT_INDEX):
            running.setdefault(found["_id"]["worker"], {})[found["_id"]["model"]] = found["jobs"]
        return running

    async def take_dead(self) -> list[Worker]:
        """Removes the workers that have been silent for BURIAL; who removes one is the only one to be told."""
        oldest = {"$subtract": ["$$NOW", int(BURIAL.total_seconds() * 1000)]}
        silent = {"$expr": {"$lt": ["$last_seen", oldest]}}
        dead = []
        while document := await self._workers.find_one_and_delete(silent):
            dead.append(_worker(document))
        return dead

    async def known_workers(self) -> list[Worker]:
        """The live workers as they were a moment ago: good enough to choose a model by, and free."""
        looked, workers = self._known
        if time.monotonic() - looked > KNOWN:
            workers = await self.live_workers()
            self._known = (time.monotonic(), workers)
        return workers

    async def missing(self, name: str, subject: str) -> None:
        """Somebody asked for a model that is not configured."""
        name = name[:NAME_LIMIT]
        known = await self._missing.find_one({"_id": name}, {"_id": 1})
        if known is None and await self._missing.estimated_document_count() >= MISSING_LIMIT:
            # Nobody fills the list for good: the name that was asked for least makes room.
            await self._missing.find_one_and_delete({}, {"_id": 1}, sort=[("count", 1), ("last_seen", 1)])
        now = datetime.now(UTC)
        await self._missing.update_one(
            {"_id": name},
            {
                "$inc": {"count": 1},
                "$set": {"last_seen": now, "last_subject": subject},
                "$setOnInsert": {"first_seen": now},
            },
            upsert=True,
        )

    async def missing_models(self) -> list[dict[str, Any]]:
        """Most wanted first."""
        return [document async for document in self._missing.find().sort("count", -1).limit(MISSING_LIMIT)]


def _told(state: ModelState) -> dict[str, Any]:
    """What a heartbeat says of one model: most of it is not known of most engines."""
    told = {name: getattr(state, name) for name in _FIELDS}
    told["backends"] = tuple(asdict(backend) for backend in state.backends)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in told.items()
        if name in ("ready", "state") or value != getattr(_PLAIN, name)
    }


def _known(kind: type[ModelState | BackendState | DeviceState], told: Mapping[str, Any]) -> dict[str, Any]:
    """A worker of another release may say more than is known here."""
    return {field.name: told[field.name] for field in fields(kind) if field.name in told}


def _state(told: Mapping[str, Any]) -> ModelState:
    known = _known(ModelState, told)
    lists = {name: tuple(known.get(name, ())) for name in ("gpus", "listed")}
    backends = tuple(BackendState(**_known(BackendState, backend)) for backend in known.get("backends", ()))
    return ModelState(**known | lists | {"backends": backends})


def _worker(document: Mapping[str, Any]) -> Worker:
    return Worker(
        id=document["_id"],
        host=document["host"],
        pid=document["pid"],
        started_at=document["started_at"],
        last_seen=document["last_seen"],
        draining=document["draining"],
        models={told["name"]: _state(told) for told in document["models"]},
        devices=tuple(DeviceState(**_known(DeviceState, device)) for device in document.get("devices", ())),
        host_memory=document.get("host_memory", 0),
    )


def first_available(
    preferences: Sequence[str], workers: Iterable[Worker], loaded_on_demand: Container[str] = ()
) -> str | None:
    """The model for a request that names none: the first that a live worker serves or that is loaded on demand.

    Where there is none just now it is the last one, which by custom asks the least of a machine.
    """
    workers = list(workers)
    served = (
        model for model in preferences if model in loaded_on_demand or any(worker.serves(model) for worker in workers)
    )
    return next(served, preferences[-1] if preferences else None)

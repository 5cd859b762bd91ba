"""What the planner looks at: devices, models and what is resident, all of it plain values.

Sizes are bytes, times seconds before now. Built by whoever leads, from the database; `broker.planner` decides on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Values of `worker.engine_state.EngineState`, which the broker may not import.
READY, SLEEPING, STARTING, DRAINING, STOPPING, FAILED = (
    "ready",
    "sleeping",
    "starting",
    "draining",
    "stopping",
    "failed",
)
_GOING = frozenset({DRAINING, STOPPING})
_COMING = frozenset({STARTING, READY})


@dataclass(frozen=True, slots=True)
class Device:
    """Says that a worker can use a physical device: a GPU, or the main memory of a machine that has none.

    ``uuid``: of the device itself. Several workers of one machine name the same ones, whose memory is there only once.
    ``memory``: bytes that models may fill: what is free on it and what our engines of all workers hold there, so
    nothing of other programs.
    """

    worker: str
    uuid: str
    memory: int


@dataclass(frozen=True, slots=True)
class Resident:
    """An engine of a model on a worker.

    ``state``: what it is or, before its worker says so, what was ordered: `starting` for one that is to be loaded or
    woken, `stopping` for one that is to go. Otherwise the next plan would order the same once more elsewhere.
    ``devices``: their uuids. ``memory``: bytes that it holds on each of them in this state, or will when it has
    started; none once it has failed. ``loaded_for``: seconds since it last became ready, 0 while it starts.
    ``still_waiting``: jobs that waited for the model when it became ready, and still do.
    """

    worker: str
    devices: tuple[str, ...]
    state: str
    memory: int
    running: int = 0
    loaded_for: float = 0.0
    still_waiting: int = 0

    @property
    def going(self) -> bool:
        return self.state in _GOING

    @property
    def coming(self) -> bool:
        return self.state in _COMING


@dataclass(frozen=True, slots=True)
class Model:
    """A model whose engine takes memory.

    ``workers``: those that could serve it, each with one engine at most. ``oldest_wait``: of the jobs queued.
    ``rate``: jobs per second submitted in the last minutes. ``expected``: jobs in the hour ahead, by the pattern; 0
    where the pattern is not to be trusted. ``need``: bytes on each of ``gpus`` devices; None: not known yet, so it gets
    devices of its own. ``host_need``: bytes of main memory that it takes asleep. ``load`` and ``wake``: measured.
    ``idle_for``: since a job last ran or waited. ``away_for``: since an engine of it was last unloaded or put to sleep.
    ``wanted``: what the operator asked for; the workers carry out ``off`` and ``asleep`` themselves.
    """

    name: str
    need: int | None
    workers: frozenset[str]
    gpus: int = 1
    queued: int = 0
    oldest_wait: float = 0.0
    rate: float = 0.0
    expected: float = 0.0
    load: float = 60.0
    wake: float = 5.0
    can_sleep: bool = False
    host_need: int = 0
    idle_for: float = float("inf")
    away_for: float = float("inf")
    pinned: bool = False
    wanted: Literal["auto", "on", "off", "asleep"] = "auto"
    residents: tuple[Resident, ...] = ()

    @property
    def waited(self) -> float:
        """Since when it waits for its turn: a model that has just had one does not outrank those that have not."""
        return min(self.oldest_wait, self.away_for)

    @property
    def running(self) -> int:
        return sum(resident.running for resident in self.residents)


@dataclass(frozen=True, slots=True)
class Rules:
    """All but the two switches, ``catch_up``, ``hysteresis`` and ``least_expected`` in seconds.

    ``enabled``: False leaves what operators ask for and ``fill``: nobody's only engine yields to demand.
    ``fill``: memory that nobody waits for is filled, in the order of ``Snapshot.models``.
    ``max_swap_wait``: how long a job waits for its model before a busy one has to yield, if its gate is open; up to
    twice as long where fewer jobs wait for it than would be harmed.
    ``catch_up``: the gate opens when the oldest job waits for no more than this share of the time since the load.
    ``turn``: the gate opens after so long at the latest, so that a queue without end holds nobody off for ever.
    ``min_residency``: what has been used since its load is not evicted sooner. ``cooldown``: what was evicted is not
    preloaded sooner, nor filled in.
    ``hysteresis``: how much more a preloaded model must be expected to do than the idle one it replaces.
    ``unused``: idle for so long, and expected by nobody, is memory that nobody needs.
    ``least_expected``: jobs in the hour for which a model is preloaded.
    """

    enabled: bool = True
    fill: bool = True
    max_swap_wait: float = 600.0
    catch_up: float = 0.1
    turn: float = 3600.0
    min_residency: float = 30.0
    cooldown: float = 300.0
    hysteresis: float = 1.5
    unused: float = 1800.0
    least_expected: float = 2.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``models``: in the order in which free memory is filled with them.

    ``host_memory``: bytes that sleeping models may fill in all, by worker.
    """

    models: tuple[Model, ...]
    devices: tuple[Device, ...]
    rules: Rules = Rules()
    host_memory: Mapping[str, int] = field(default_factory=dict)


Kind = Literal["load", "wake", "sleep", "stop"]


@dataclass(frozen=True, slots=True)
class Action:
    """``sleep`` and ``stop``: the worker lets end what still runs, and claims no more meanwhile.

    ``devices``: uuids; where to load, or where it is.
    """

    kind: Kind
    model: str
    worker: str
    devices: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """``actions``: in the order in which they are to be begun.

    ``waiting``: why a model with work, or one that operators want loaded, is not loaded yet.
    """

    actions: tuple[Action, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)

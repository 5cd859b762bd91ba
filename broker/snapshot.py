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
    """One GPU of a worker (or, with index 0, the memory of one that has none).

    ``memory``: bytes that models may fill: what is free on it and what our engines hold, so nothing of other programs.
    """

    worker: str
    index: int
    memory: int


@dataclass(frozen=True, slots=True)
class Resident:
    """An engine of a model on a worker. ``memory``: bytes that it holds on each of its ``devices`` in this state.

    ``loaded_for``: seconds since it last became ready, 0 while it starts. ``waiting_when_loaded``: jobs that the model
    had waiting at that moment; ``claimed_since_loaded``: those claimed since.
    """

    worker: str
    devices: tuple[int, ...]
    state: str
    memory: int
    running: int = 0
    loaded_for: float = 0.0
    waiting_when_loaded: int = 0
    claimed_since_loaded: int = 0

    @property
    def going(self) -> bool:
        return self.state in _GOING

    @property
    def coming(self) -> bool:
        return self.state in _COMING


@dataclass(frozen=True, slots=True)
class Model:
    """A model whose engine takes memory.

    ``oldest_wait``: of the jobs queued. ``rate``: jobs per second submitted in the last minutes. ``expected``: jobs in
    the hour ahead, by the pattern; 0 where the pattern is not to be trusted. ``need``: bytes on each of ``gpus``
    devices; None: not known yet, so it gets devices of its own. ``host_need``: bytes of main memory that it takes
    asleep. ``load`` and ``wake``: measured. ``idle_for``: since a job last ran or waited. ``away_for``: since it was
    last unloaded or put to sleep. ``wanted``: what the operator asked for.
    """

    name: str
    need: int | None
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
    wanted: Literal["auto", "on", "off"] = "auto"
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
    """``enabled``: False leaves only what operators ask for. All but ``hysteresis`` and ``least_expected`` in seconds.

    ``max_swap_wait``: how long a job waits for its model at most before a busy one has to yield, if its gate is open.
    ``turn``: the gate opens after so long at the latest, so that a queue without end holds nobody off for ever.
    ``min_residency``: nothing is evicted sooner. ``cooldown``: what was evicted is not preloaded sooner.
    ``hysteresis``: how much more a preloaded model must be expected to do than the idle one it replaces.
    ``unused``: idle for so long, and expected by nobody, is memory that nobody needs.
    ``least_expected``: jobs in the hour for which a model is preloaded.
    """

    enabled: bool = True
    max_swap_wait: float = 300.0
    turn: float = 3600.0
    min_residency: float = 30.0
    cooldown: float = 300.0
    hysteresis: float = 1.5
    unused: float = 1800.0
    least_expected: float = 2.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``host_memory``: bytes that sleeping models may fill in all, by worker."""

    models: tuple[Model, ...]
    devices: tuple[Device, ...]
    rules: Rules = Rules()
    host_memory: Mapping[str, int] = field(default_factory=dict)


Kind = Literal["load", "wake", "drain", "sleep", "stop"]


@dataclass(frozen=True, slots=True)
class Action:
    """``drain``: claim no more; what runs goes on. ``sleep`` and ``stop`` are only for an engine that runs nothing."""

    kind: Kind
    model: str
    worker: str
    devices: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """``actions``: in the order in which they are to be begun. ``waiting``: why a model with work is not loaded yet."""

    actions: tuple[Action, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)

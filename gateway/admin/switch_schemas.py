"""The bodies of what has been planned: which models are loaded where, and why."""

from datetime import datetime
from typing import Literal

from gateway.schemas import Body, EngineState


class SwitchDecision(Body):
    at: datetime
    kind: Literal["load", "wake", "sleep", "stop", "keep"]
    """«keep»: what ran without an order goes on."""
    model: str
    worker: str
    gpus: list[str]
    reason: str


class SwitchWaiting(Body):
    model: str
    reason: str


class SwitchForecast(Body):
    """Jobs that are expected in the hour that begins at ``hour``."""

    model: str
    hour: datetime
    jobs: float
    trusted: bool
    """Whether the pattern would have foretold the last days better than the hour before each hour did."""
    reason: str


class Residence(Body):
    """A model's engine on one worker."""

    worker: str
    state: EngineState
    gpus: list[str]
    memory_bytes: int | None
    """What it holds on each of them."""
    ordered: Literal["running", "stopped", "sleeping"] | None
    reason: str | None
    """Why that was ordered."""
    ordered_at: datetime | None


class SwitchedModel(Body):
    name: str
    wanted: Literal["running", "stopped", "sleeping"] | None
    """By operators."""
    pinned: bool
    need_bytes: int | None
    """What it takes on each of its devices; null while that is not known."""
    residents: list[Residence]


class MemoryDevice(Body):
    """A GPU, or the main memory of a machine without one; bytes."""

    uuid: str
    name: str
    total: int
    free: int
    ours: int
    """What the models loaded hold."""
    workers: list[str]
    """Those that can use it."""


class AutoSwitch(Body):
    enabled: bool
    max_swap_wait: float
    """Seconds."""
    leader: str | None
    """The process that plans; null before the first start."""
    epoch: int
    planned_at: datetime | None
    """Null where no worker has had a model to load."""
    models: list[SwitchedModel]
    devices: list[MemoryDevice]
    waiting: list[SwitchWaiting]
    """Models that are wanted and not loaded, or that fit nowhere."""
    forecast: list[SwitchForecast]
    decisions: list[SwitchDecision]
    """The last hundred, the newest first."""

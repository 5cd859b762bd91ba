"""What a worker has to do next about one engine, so that it becomes what is desired. Pure: the worker does it.

The worker asks again after each change of the engine's state and of what is desired, and does one thing at a time:
there is no action «restart», for a drain and then a start is the same and can be interrupted in between.
"""

from dataclasses import dataclass
from enum import StrEnum

from broker.desired import Desired, Wanted
from worker.engine_state import EngineState


class Action(StrEnum):
    START = "start"
    DRAIN = "drain"  # take nothing new, let what runs finish, then stop
    STOP = "stop"  # at once: what runs is handed back
    SLEEP = "sleep"
    WAKE = "wake"


@dataclass(frozen=True, slots=True)
class Actual:
    """An engine as its worker knows it.

    ``version``: of the Desired that was last acted on. ``restarts`` and ``resolution``: of the Desired that the engine
    was last started under. ``backing_off``: its last start has failed, and the next one is not due yet.
    """

    state: EngineState
    version: int = 0
    restarts: int = 0
    resolution: str | None = None
    can_sleep: bool = False
    backing_off: bool = False


def action_for(desired: Desired, actual: Actual, automatic: Wanted = Wanted.RUNNING) -> Action | None:
    """The next action; None where there is nothing to do, or something under way has to end first.

    ``automatic``: what is to be where no operator wants anything. The worker notes ``desired.version`` as ``version``
    in the same breath in which it begins the action (or finds that there is none) and the engine leaves its state: who
    sees the version may then take the state for the answer to it.
    """
    wanted = desired.wanted or automatic
    match actual.state:
        case EngineState.STOPPED:
            waits = actual.backing_off and desired.version <= actual.version
            return Action.START if wanted is Wanted.RUNNING and not waits else None
        case EngineState.FAILED:
            return _when_failed(desired, actual, wanted)
        case EngineState.STARTING:
            return Action.STOP if wanted is Wanted.STOPPED or _outdated(desired, actual) else None
        case EngineState.READY:
            return _when_ready(desired, actual, wanted)
        case EngineState.SLEEPING:
            return _when_sleeping(desired, actual, wanted)
        case EngineState.DRAINING:
            return Action.STOP if wanted is Wanted.STOPPED and not desired.graceful else None
        case _:
            return None


def _outdated(desired: Desired, actual: Actual) -> bool:
    """Whether the engine was started under something else than what holds now."""
    other = desired.resolution is not None and desired.resolution != actual.resolution
    return other or desired.restarts > actual.restarts


def _when_failed(desired: Desired, actual: Actual, wanted: Wanted) -> Action | None:
    """It has given up until an operator acts."""
    if desired.version <= actual.version:
        return None
    return {Wanted.RUNNING: Action.START, Wanted.STOPPED: Action.STOP}.get(wanted)


def _when_ready(desired: Desired, actual: Actual, wanted: Wanted) -> Action | None:
    if wanted is Wanted.STOPPED:
        # The planner never interrupts anybody.
        return Action.DRAIN if desired.graceful or desired.wanted is None else Action.STOP
    if _outdated(desired, actual):
        return Action.DRAIN
    return Action.SLEEP if wanted is Wanted.SLEEPING and actual.can_sleep else None


def _when_sleeping(desired: Desired, actual: Actual, wanted: Wanted) -> Action | None:
    if wanted is Wanted.STOPPED or _outdated(desired, actual):
        return Action.STOP
    return Action.WAKE if wanted is Wanted.RUNNING else None

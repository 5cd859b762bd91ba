"""What a worker has to do next about one engine, so that it becomes what is desired. Pure: the worker does it.

The worker asks again after each change of the engine's state and of what is desired, and does one thing at a time:
there is no action «restart», for a drain, a stop and a start are the same and can be interrupted in between.
"""

from dataclasses import dataclass
from enum import StrEnum

from broker.desired import Desired, Wanted
from worker.engine_state import EngineState


class Action(StrEnum):
    START = "start"
    DRAIN = "drain"  # take nothing new; what runs may finish
    STOP = "stop"  # at once: what runs is handed back
    SLEEP = "sleep"  # it has drained
    WAKE = "wake"
    RESET = "reset"  # it has failed, and is simply stopped from now on


@dataclass(frozen=True, slots=True)
class Actual:
    """An engine as its worker knows it.

    ``version``: of the Desired that was last acted on. ``restarts`` and ``resolution``: of the Desired that the engine
    was last started under. ``can_sleep``: where an operator asks; ``sleep_frees``: and that frees memory, which is what
    the plan asks for. ``waits``: its last start or wake has failed, and the next one is not due yet. ``unable``: it
    cannot be started, for this machine lacks something. ``busy``: a start, stop, sleep or wake is under way. Of one
    that drains, ``idle``: nothing runs any more, and ``overdue``: it has had its time to finish.
    """

    state: EngineState
    version: int = 0
    restarts: int = 0
    resolution: str | None = None
    can_sleep: bool = False
    sleep_frees: bool = False
    waits: bool = False
    unable: bool = False
    busy: bool = False
    idle: bool = False
    overdue: bool = False


def action_for(desired: Desired, actual: Actual, automatic: Wanted = Wanted.RUNNING) -> Action | None:
    """The next action; None where there is nothing to do, or something under way has to end first.

    ``automatic``: what is to be unless an operator has stopped the model or put it to sleep: for an engine that takes
    memory what its order says, for others to run. The worker notes ``desired.version`` as ``version`` in the same
    breath in which it begins the action (or finds that there is none) and the engine leaves its state: who sees the
    version may then take the state for the answer to it.
    """
    wanted = _wanted(desired, actual, automatic)
    match actual.state:
        case EngineState.STOPPED:
            return _when_stopped(desired, actual, wanted)
        case EngineState.FAILED:
            # It has given up until an operator acts. That makes it only one that may be started again.
            return Action.RESET if desired.version > actual.version else None
        case EngineState.STARTING:
            return Action.STOP if wanted is Wanted.STOPPED or _outdated(desired, actual) else None
        case EngineState.READY:
            return _when_ready(desired, actual, wanted)
        case EngineState.SLEEPING:
            return _when_sleeping(desired, actual, wanted)
        case EngineState.DRAINING:
            return _when_draining(desired, actual, wanted)
        case _:
            return None


def _wanted(desired: Desired, actual: Actual, automatic: Wanted) -> Wanted:
    if _by_operator(desired):
        assert desired.wanted is not None
        return desired.wanted
    if automatic is Wanted.SLEEPING and not actual.sleep_frees:
        return Wanted.STOPPED  # the plan needs the memory
    return automatic


def _by_operator(desired: Desired) -> bool:
    """Whether an operator has taken the model away. One who wants it to run leaves it to the plan where."""
    return desired.wanted in (Wanted.STOPPED, Wanted.SLEEPING)


def _outdated(desired: Desired, actual: Actual) -> bool:
    """Whether the engine was started under something else than what holds now."""
    other = desired.resolution is not None and desired.resolution != actual.resolution
    return other or desired.restarts > actual.restarts


def _at_once(desired: Desired) -> bool:
    return desired.wanted is Wanted.STOPPED and not desired.graceful


def _when_stopped(desired: Desired, actual: Actual, wanted: Wanted) -> Action | None:
    return Action.START if wanted is Wanted.RUNNING and not actual.unable and not _waits(desired, actual) else None


def _waits(desired: Desired, actual: Actual) -> bool:
    """An operator who asks does not wait."""
    return actual.waits and desired.version <= actual.version


def _when_ready(desired: Desired, actual: Actual, wanted: Wanted) -> Action | None:
    if _at_once(desired):
        return Action.STOP
    sleeps = wanted is Wanted.SLEEPING and actual.can_sleep
    return Action.DRAIN if sleeps or wanted is Wanted.STOPPED or _outdated(desired, actual) else None


def _when_draining(desired: Desired, actual: Actual, wanted: Wanted) -> Action | None:
    """What is wanted at the end of the drain counts. Only operators set it a limit: the plan never interrupts a job."""
    if _at_once(desired):
        return Action.STOP
    if wanted is Wanted.SLEEPING and actual.can_sleep and not _outdated(desired, actual):
        return Action.SLEEP if actual.idle and not actual.busy else None
    limited = desired.wanted is Wanted.STOPPED or _outdated(desired, actual)
    return Action.STOP if actual.idle or (limited and actual.overdue) else None


def _when_sleeping(desired: Desired, actual: Actual, wanted: Wanted) -> Action | None:
    if wanted is Wanted.STOPPED or _outdated(desired, actual):
        return Action.STOP
    return Action.WAKE if wanted is Wanted.RUNNING and not actual.busy and not _waits(desired, actual) else None

"""The life of an engine as pure code: which states there are, which follow which, and when a start is tried again.

    stopped ──► starting ──► ready ◄───── sleeping
       ▲           │         │   │        ▲     │
       │           │         │   ▼        │     │
       │           │         │  draining ─┘     │
       │           ▼         ▼   ▼              │
       └─────── stopping ◄───┴───┴──────────────┘

A start that fails and an engine that dies go to ``stopped``, from which the next start begins; after MAX_STARTS failed
starts in a row it is ``failed``, until an operator acts. It only sleeps when it has drained: what is sent to an engine
that sleeps hangs.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum

from config.errors import RoundhouseError

# Failed starts in a row after which only an operator can have it started again.
MAX_STARTS = 3
# Seconds.
_BACKOFF = 5.0
_BACKOFF_MAX = 60.0


class EngineState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    SLEEPING = "sleeping"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


_S = EngineState

# Something is loaded that can be looked at.
LOADED = frozenset({_S.READY, _S.SLEEPING, _S.DRAINING})

# From ready, sleeping and draining to stopped: it died.
TRANSITIONS: Mapping[EngineState, frozenset[EngineState]] = {
    _S.STOPPED: frozenset({_S.STARTING}),
    _S.STARTING: frozenset({_S.READY, _S.STOPPING, _S.STOPPED, _S.FAILED}),
    _S.READY: frozenset({_S.DRAINING, _S.STOPPING, _S.STOPPED}),
    _S.SLEEPING: frozenset({_S.READY, _S.STOPPING, _S.STOPPED}),
    _S.DRAINING: frozenset({_S.SLEEPING, _S.STOPPING, _S.STOPPED}),
    _S.STOPPING: frozenset({_S.STOPPED}),
    _S.FAILED: frozenset({_S.STOPPED}),
}


class IllegalTransition(RoundhouseError):
    """What was asked of an engine does not follow from the state that it is in."""

    code = "illegal_transition"

    def __init__(self, state: EngineState, to: EngineState) -> None:
        allowed = ", ".join(sorted(TRANSITIONS[state]))
        super().__init__(f"An engine that is {state} cannot become {to}, only {allowed}.", state=str(state), to=str(to))


def backoff(failures: int) -> float:
    """Seconds until the next start after so many failed ones in a row."""
    return min(_BACKOFF * 2.0 ** (failures - 1), _BACKOFF_MAX) if failures else 0.0


class Lifecycle:
    """The state of one engine, since when, why, and how many starts have failed in a row.

    An engine that dies while it serves is started again at once and not counted: what a job does to it is charged to
    the job.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self.state = EngineState.STOPPED
        self.since = clock()
        self.reason = ""
        self.failures = 0

    def to(self, state: EngineState, reason: str = "") -> None:
        """Raises IllegalTransition."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(self.state, state)
        if state is EngineState.READY or self.state is EngineState.FAILED:
            self.failures = 0
        self.state, self.since, self.reason = state, self._clock(), reason

    def start_failed(self, reason: str) -> float | None:
        """From ``starting``: the seconds to wait before the next start, or None when it gives up and is ``failed``.

        Raises IllegalTransition."""
        if self.state is not EngineState.STARTING:
            raise IllegalTransition(self.state, EngineState.FAILED)
        gives_up = self.failures + 1 >= MAX_STARTS
        self.to(EngineState.FAILED if gives_up else EngineState.STOPPED, reason)
        self.failures += 1
        return None if gives_up else backoff(self.failures)

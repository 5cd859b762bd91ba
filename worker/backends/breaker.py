"""A circuit breaker, as pure code: a server that keeps failing is left alone, and then tried with a single request.

    closed ──too many failures, or «come back later»──▶ open ──time passes──▶ half-open
      ▲                                                  ▲                      │  │
      └──────────────────the probe is answered───────────┼──────────────────────┘  │
                                                         └─────the probe fails─────┘

Times are seconds of any clock that does not go back.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

# Of the outcomes within the window at least this part has to be failures: a busy server fails now and then.
SHARE = 0.5
# So many outcomes are remembered at most.
REMEMBERED = 1000
# Seconds: nobody is left alone for longer, whatever he asks for.
LONGEST = 600.0


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request that was let through. What comes of it counts in the period in which it began."""

    period: int
    probe: bool


class Breaker:
    """``failures`` within ``window`` seconds open it for ``pause`` seconds."""

    def __init__(self, failures: int, window: float, pause: float) -> None:
        self._failures = failures
        self._window = window
        self._pause = pause
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=REMEMBERED)
        self._open_until: float | None = None
        self._period = 0
        self._probing = False

    def state(self, now: float) -> State:
        if self._open_until is None:
            return State.CLOSED
        return State.OPEN if now < self._open_until else State.HALF_OPEN

    def admits(self, now: float) -> bool:
        state = self.state(now)
        return state is State.CLOSED or (state is State.HALF_OPEN and not self._probing)

    def retry_in(self, now: float) -> float:
        """Seconds for which it is open yet."""
        return 0.0 if self._open_until is None else max(self._open_until - now, 0.0)

    def begin(self, now: float) -> Ticket:
        """A request goes out. Only where it is admitted; its end is told by ``succeeded``, ``failed`` or
        ``abandoned``."""
        assert self.admits(now)
        self._probing = probe = self.state(now) is State.HALF_OPEN
        return Ticket(self._period, probe)

    def succeeded(self, ticket: Ticket, now: float) -> None:
        """The server has answered or, where it is a probe, begun to; if only that the request is wrong."""
        if ticket.period != self._period:
            return
        if ticket.probe:
            self._change(None)
        else:
            self._outcomes.append((now, True))

    def failed(self, ticket: Ticket, now: float, retry_after: float | None = None) -> None:
        """``retry_after``: seconds for which the server wants to be left alone, where it has said so."""
        if ticket.period != self._period:
            return
        if retry_after is not None and retry_after > 0:
            self._change(now + min(retry_after, LONGEST))
            return
        self._outcomes.append((now, False))
        if ticket.probe or self._too_many(now):
            self._change(now + self._pause)

    def abandoned(self, ticket: Ticket) -> None:
        """It tells nothing: nobody waits for the answer any more, say. After another end it changes nothing."""
        if ticket.probe and ticket.period == self._period:
            self._probing = False

    def _too_many(self, now: float) -> bool:
        while self._outcomes and self._outcomes[0][0] <= now - self._window:
            self._outcomes.popleft()
        failures = sum(not answered for _, answered in self._outcomes)
        return failures >= self._failures and failures >= SHARE * len(self._outcomes)

    def _change(self, open_until: float | None) -> None:
        self._open_until = open_until
        self._period += 1
        self._probing = False
        self._outcomes.clear()

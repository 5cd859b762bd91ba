"""Which failures are worth another try, and when, as pure code."""

from dataclasses import dataclass
from random import uniform

from roundhouse.errors import RoundhouseApiError, Unreachable

# Of HTTP: nothing was done, or the same request finds what was done.
STATUSES = frozenset({429, 502, 503, 504})
# As the last event of a stream, which has no status.
CODES = frozenset({"gateway_stopping", "database_unavailable"})
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


def passes(error: RoundhouseApiError) -> bool:
    """Whether the same request may well succeed later."""
    return error.may_repeat and (
        isinstance(error, Unreachable) or error.status in STATUSES or (error.status is None and error.code in CODES)
    )


def elsewhere(error: RoundhouseApiError) -> bool:
    """Whether another gateway may know better. How full a queue is, and who asks too often, they know alike."""
    return passes(error) and error.status != 429 and error.code != "queue_full"


@dataclass
class Trouble:
    """How long trouble has lasted that is borne for ``patience`` seconds at most, with ``gateways`` to turn to."""

    patience: float
    gateways: int = 1
    since: float | None = None
    count: int = 0

    def over(self) -> None:
        """Something went well."""
        self.since, self.count = None, 0

    def pause(self, error: RoundhouseApiError, now: float) -> float | None:
        """Seconds until the next try; None where there is to be none. ``now``: of a clock that only grows."""
        self.since = now if self.since is None else self.since
        self.count += 1
        if self.count % self.gateways and elsewhere(error):
            return 0.0
        left = self.since + self.patience - now
        if left <= 0 or (error.retry_after or 0) > left:
            return None
        doubled = FIRST_PAUSE * 2.0 ** min(self.count // self.gateways - 1, 10)
        pause = min(LONGEST_PAUSE, doubled) * uniform(0.5, 1.0)
        return max(min(pause, left), error.retry_after or 0.0)

"""How many jobs a model is likely to get in the hour ahead, from what it got in the same hours before.

The pattern is believed only where it would have predicted the last days better than the hour before each hour did: a
model without habits is not preloaded by accident.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

HOUR = 3600.0
DAY, WEEK = 24, 168
# The pattern has to be better than the recent rate by a tenth; fewer days than this tell no habit.
_MARGIN, _FEWEST_DAYS = 0.9, 3


@dataclass(frozen=True, slots=True)
class Forecast:
    """``jobs``: expected in the hour ``hour`` (hours since 1970 UTC). Errors: mean, in jobs per hour, over the window.

    ``trusted``: the pattern was better than the hour before.
    """

    hour: int
    jobs: float
    trusted: bool
    pattern_error: float
    recent_error: float

    @property
    def reason(self) -> str:
        """For the operator."""
        better = "better" if self.trusted else "no better"
        return (
            f"{self.jobs:.0f} jobs by the pattern, which was {better} than the hour before: "
            f"off by {self.pattern_error:.1f} against {self.recent_error:.1f} jobs an hour"
        )


def hour_of(seconds: float) -> int:
    """Which hour since 1970 a time in seconds since then lies in."""
    return floor(seconds / HOUR)


def forecast(usage: Mapping[int, float], hour: int, now: int, days: int = 7) -> Forecast:
    """Jobs in ``hour`` from ``usage``, jobs by hour before the hour ``now``; an hour not in it had none.

    ``days``: how far back habits are learnt from. History begins with the first hour in ``usage``.
    """
    if not usage:
        return Forecast(hour, 0.0, False, 0.0, 0.0)
    first = min(usage)
    jobs = _pattern(usage, hour, now, first, days)
    pattern_error = recent_error = 0.0
    judged = range(max(first + DAY, now - days * DAY), now)
    for past in judged:
        truth = usage.get(past, 0.0)
        pattern_error += abs(_pattern(usage, past, past, first, days) - truth)
        recent_error += abs(usage.get(past - 1, 0.0) - truth)
    count = max(1, len(judged))
    trusted = now - first >= _FEWEST_DAYS * DAY and pattern_error < _MARGIN * recent_error
    return Forecast(hour, jobs, trusted, pattern_error / count, recent_error / count)


def _pattern(usage: Mapping[int, float], hour: int, now: int, first: int, days: int) -> float:
    """The same hour of the week before and the same hours of all days known, half each; without a week the latter."""
    same_time = [usage.get(past, 0.0) for past in range(hour - days * DAY, hour, DAY) if first <= past < now]
    if not same_time:
        return 0.0
    daily = sum(same_time) / len(same_time)
    week_before = hour - WEEK
    if week_before < first or days * DAY < WEEK:
        return daily
    return (usage.get(week_before, 0.0) + daily) / 2.0

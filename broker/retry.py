"""How long it is waited before the next attempt."""

import random
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Seconds: whoever asks for longer asks for this.
_LONGEST = 1e9


def backoff(attempt: int, base: float, maximum: float, rng: random.Random | None = None) -> float:
    """Seconds before the attempt after ``attempt`` (1 for the first).

    Doubles from ``base`` up to ``maximum``; the upper half is drawn at random, so that jobs that failed together
    do not come back together («equal jitter» in AWS's «Exponential Backoff And Jitter»).
    """
    ceiling = min(maximum, base * 2.0 ** min(attempt - 1, 62))
    return ceiling * (rng or random).uniform(0.5, 1.0)


def asked_pause(retry_after: str | None) -> float | None:
    """Seconds for which a server wants to be left alone, from its ``Retry-After`` (RFC 9110 section 10.2.3): a number,
    of which some send fractions, or a date. None where it says no such thing."""
    given = (retry_after or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", given):
        return min(float(given), _LONGEST)
    try:
        at = parsedate_to_datetime(given)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())

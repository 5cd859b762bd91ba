"""How long a job waits before its next attempt."""

import random


def backoff(attempt: int, base: float, maximum: float, rng: random.Random | None = None) -> float:
    """Seconds before the attempt after ``attempt`` (1 for the first).

    Doubles from ``base`` up to ``maximum``; the upper half is drawn at random, so that jobs that failed together
    do not come back together («equal jitter» in AWS's «Exponential Backoff And Jitter»).
    """
    ceiling = min(maximum, base * 2.0 ** min(attempt - 1, 62))
    return ceiling * (rng or random).uniform(0.5, 1.0)

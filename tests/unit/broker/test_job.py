from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.job import LEGAL, TERMINAL, Failure, Priority, Status, after_failure, parse_job_id
from broker.numbers import NumberPool, free_numbers
from broker.registry import ModelState, Worker, first_available
from broker.retry import backoff


def test_terminal_is_forever() -> None:
    assert {status for status in Status if not LEGAL[status]} == set(TERMINAL)
    assert {status for status in Status if status.terminal} == {"completed", "failed", "timeout", "cancelled"}


def test_high_is_claimed_before_normal_before_low() -> None:
    assert [priority.level for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW)] == [0, 1, 2]


@given(st.integers(1, 50), st.integers(0, 20), st.booleans(), st.booleans())
def test_a_failure_is_retried_as_long_as_retries_are_left_unless_it_is_permanent(
    attempts: int, max_retries: int, permanent: bool, timeout: bool
) -> None:
    status = after_failure(attempts, max_retries, Failure("code", "message", permanent=permanent, timeout=timeout))
    if not permanent and attempts <= max_retries:
        assert status is Status.QUEUED
    else:
        assert status is (Status.TIMEOUT if timeout else Status.FAILED)


@pytest.mark.parametrize("text", ["", "x", "0" * 23, "g" * 24, "../../etc/passwd", "0" * 25])
def test_what_cannot_be_a_job_id_is_none(text: str) -> None:
    assert parse_job_id(text) is None


@given(st.integers(1, 10_000), st.floats(0.01, 10), st.floats(10, 100))
def test_backoff_stays_between_half_and_all_of_its_ceiling(attempt: int, base: float, maximum: float) -> None:
    ceiling = min(maximum, base * 2.0 ** min(attempt - 1, 62))
    assert ceiling / 2 <= backoff(attempt, base, maximum) <= ceiling


def test_backoff_doubles_up_to_the_maximum() -> None:
    ceilings = [backoff(attempt, 1.0, 8.0, rng=_Highest()) for attempt in range(1, 7)]
    assert ceilings == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert all(a <= b for a, b in pairwise(ceilings))


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    rng = Random(1)
    assert len({backoff(1, 1.0, 8.0, rng) for _ in range(20)}) == 20


class _Highest:
    def uniform(self, low: float, high: float) -> float:
        return high


@given(st.integers(0, 40), st.sets(st.integers(0, 60)))
def test_free_numbers_never_let_more_than_the_limit_in(limit: int, used: set[int]) -> None:
    free = free_numbers(limit, used)
    assert not set(free) & used
    assert all(0 <= number < limit for number in free)
    assert len(free) + len(used) <= max(limit, len(used))


def test_numbers_in_flight_are_not_offered_twice() -> None:
    pool = NumberPool()
    assert pool.refill(2, [])
    first = pool.take()
    assert first is not None
    assert pool.refill(2, [])
    assert pool.take() == 1 - first
    assert pool.take() is None
    pool.settle(first, unused=True)
    assert pool.take() == first


def _worker(*models: str, draining: bool = False, ready: bool = True) -> Worker:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    states = {model: ModelState(ready, "ready" if ready else "weights missing") for model in models}
    return Worker("w", "host", 1, now, now, draining, states)


def test_the_first_preference_that_a_worker_serves_is_the_default() -> None:
    assert first_available(["big", "small"], [_worker("small"), _worker("big", "small")]) == "big"
    assert first_available(["big", "small"], [_worker("small")]) == "small"


def test_a_model_whose_worker_drains_or_lacks_it_is_not_available() -> None:
    assert first_available(["big", "small"], [_worker("big", draining=True), _worker("small")]) == "small"
    assert first_available(["big", "small"], [_worker("big", ready=False), _worker("small")]) == "small"


def test_without_any_worker_the_most_modest_preference_waits_for_one() -> None:
    assert first_available(["big", "small"], []) == "small"


def test_a_model_that_is_loaded_on_demand_is_available() -> None:
    assert first_available(["big", "small"], [_worker("small")], {"big"}) == "big"


def test_without_any_preference_there_is_no_model() -> None:
    assert first_available([], []) is None

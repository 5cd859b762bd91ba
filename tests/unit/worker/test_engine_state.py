from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from worker.engine_state import MAX_STARTS, TRANSITIONS, EngineState, IllegalTransition, Lifecycle, backoff

S = EngineState
# A way to each state.
WAYS: dict[EngineState, list[EngineState]] = {
    S.STOPPED: [],
    S.STARTING: [S.STARTING],
    S.READY: [S.STARTING, S.READY],
    S.SLEEPING: [S.STARTING, S.READY, S.DRAINING, S.SLEEPING],
    S.DRAINING: [S.STARTING, S.READY, S.DRAINING],
    S.STOPPING: [S.STARTING, S.READY, S.STOPPING],
    S.FAILED: [S.STARTING, S.FAILED],
}
ALLOWED = {
    (S.STOPPED, S.STARTING),
    (S.STARTING, S.READY),
    (S.STARTING, S.STOPPING),
    (S.STARTING, S.STOPPED),
    (S.STARTING, S.FAILED),
    (S.READY, S.DRAINING),
    (S.READY, S.STOPPING),
    (S.READY, S.STOPPED),
    (S.SLEEPING, S.READY),
    (S.SLEEPING, S.STOPPING),
    (S.SLEEPING, S.STOPPED),
    (S.DRAINING, S.SLEEPING),
    (S.DRAINING, S.STOPPING),
    (S.DRAINING, S.STOPPED),
    (S.STOPPING, S.STOPPED),
    (S.FAILED, S.STOPPED),
}


def in_state(state: EngineState) -> Lifecycle:
    lifecycle = Lifecycle()
    for step in WAYS[state]:
        lifecycle.to(step)
    return lifecycle


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("to", S)
def test_each_transition_is_allowed_or_refused_as_the_contract_says(state: EngineState, to: EngineState) -> None:
    lifecycle = in_state(state)
    if (state, to) in ALLOWED:
        lifecycle.to(to, "because")
        assert (lifecycle.state, lifecycle.reason) == (to, "because")
    else:
        with pytest.raises(IllegalTransition, match=f"is {state} cannot become {to}"):
            lifecycle.to(to)
        assert lifecycle.state is state


def test_from_every_state_an_engine_can_be_stopped_and_started_again() -> None:
    for state in S:
        seen, reached = set(), {state}
        while reached - seen:
            seen |= reached
            reached = {after for before in reached for after in TRANSITIONS[before]}
        assert {S.STOPPED, S.STARTING, S.READY} <= seen


def test_the_time_of_the_last_change_is_kept() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    lifecycle = Lifecycle(clock=lambda: now)
    now += timedelta(seconds=5)
    lifecycle.to(S.STARTING)
    assert lifecycle.since == now


def test_failed_starts_wait_ever_longer_and_then_it_gives_up() -> None:
    lifecycle = Lifecycle()
    waits = []
    for _ in range(MAX_STARTS):
        lifecycle.to(S.STARTING)
        waits.append(lifecycle.start_failed("out of memory"))
    assert waits == [backoff(1), backoff(2), None]
    assert (lifecycle.state, lifecycle.reason, lifecycle.failures) == (S.FAILED, "out of memory", MAX_STARTS)


def test_an_operators_start_begins_the_count_anew() -> None:
    lifecycle = Lifecycle()
    for _ in range(MAX_STARTS):
        lifecycle.to(S.STARTING)
        lifecycle.start_failed("bad flag")
    lifecycle.to(S.STOPPED)
    lifecycle.to(S.STARTING)
    assert lifecycle.start_failed("bad flag") == backoff(1)


def test_an_engine_that_was_ready_has_no_failures_and_its_death_counts_for_none() -> None:
    lifecycle = Lifecycle()
    lifecycle.to(S.STARTING)
    lifecycle.start_failed("flaky")
    for _ in range(2 * MAX_STARTS):
        lifecycle.to(S.STARTING)
        lifecycle.to(S.READY)
        lifecycle.to(S.STOPPED, "killed by SIGKILL")
    assert (lifecycle.state, lifecycle.failures) == (S.STOPPED, 0)


def test_a_start_that_an_operator_stops_is_no_failure() -> None:
    lifecycle = in_state(S.STARTING)
    lifecycle.to(S.STOPPING)
    lifecycle.to(S.STOPPED)
    assert lifecycle.failures == 0


def test_only_a_start_can_fail_as_one() -> None:
    with pytest.raises(IllegalTransition):
        in_state(S.DRAINING).start_failed("no")
    lifecycle = Lifecycle()
    with pytest.raises(IllegalTransition):
        lifecycle.start_failed("no")
    assert lifecycle.failures == 0


def test_the_backoff_grows_and_is_bounded() -> None:
    waits = [backoff(failures) for failures in range(20)]
    assert waits[0] == 0
    assert all(before <= after for before, after in pairwise(waits))
    assert waits[-1] == 60

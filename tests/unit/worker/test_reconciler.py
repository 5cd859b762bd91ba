"""From what is desired of an engine and what it is to the next thing to do."""

from dataclasses import replace
from itertools import product

import pytest

from broker.desired import Desired, Wanted
from worker.engine_state import TRANSITIONS, EngineState
from worker.reconciler import Action, Actual, action_for

S, W, A = EngineState, Wanted, Action

# What each action makes of an engine, at once or when it is done.
LEADS_TO = {
    Action.START: S.STARTING,
    Action.DRAIN: S.DRAINING,
    Action.STOP: S.STOPPING,
    Action.SLEEP: S.SLEEPING,
    Action.WAKE: S.READY,
    Action.RESET: S.STOPPED,
}


def desired(wanted: Wanted | None, **more: object) -> Desired:
    return replace(Desired("m", wanted=wanted, version=1), **more)  # type: ignore[arg-type]


def actual(state: EngineState, **more: object) -> Actual:
    return replace(Actual(state, version=1, can_sleep=True, sleep_frees=True), **more)  # type: ignore[arg-type]


# The next step from each state, by what is wanted; of one that drains, when nothing runs on it any more.
STEPS: dict[EngineState, dict[Wanted, Action | None]] = {
    S.STOPPED: {W.RUNNING: A.START, W.SLEEPING: None, W.STOPPED: None},
    S.STARTING: {W.RUNNING: None, W.SLEEPING: None, W.STOPPED: A.STOP},
    S.READY: {W.RUNNING: None, W.SLEEPING: A.DRAIN, W.STOPPED: A.DRAIN},
    S.SLEEPING: {W.RUNNING: A.WAKE, W.SLEEPING: None, W.STOPPED: A.STOP},
    S.DRAINING: {W.RUNNING: A.STOP, W.SLEEPING: A.SLEEP, W.STOPPED: A.STOP},
    S.STOPPING: {W.RUNNING: None, W.SLEEPING: None, W.STOPPED: None},
    S.FAILED: {W.RUNNING: None, W.SLEEPING: None, W.STOPPED: None},
}
EVERY = [(state, wanted) for state, wanted in product(S, W)]


@pytest.mark.parametrize(("state", "order"), EVERY)
@pytest.mark.parametrize("operator", [None, W.RUNNING])
def test_an_order_is_carried_out_unless_an_operator_has_taken_the_model_away(
    state: EngineState, order: Wanted, operator: Wanted | None
) -> None:
    assert action_for(desired(operator), actual(state, idle=True), order) is STEPS[state][order]


@pytest.mark.parametrize(("state", "order"), EVERY)
@pytest.mark.parametrize("operator", [W.STOPPED, W.SLEEPING])
def test_what_an_operator_takes_away_no_order_brings_back(state: EngineState, order: Wanted, operator: Wanted) -> None:
    assert action_for(desired(operator), actual(state, idle=True), order) is STEPS[state][operator]


@pytest.mark.parametrize("operator", [None, W.RUNNING])
def test_without_orders_everything_runs(operator: Wanted | None) -> None:
    assert action_for(Desired("m", operator), Actual(S.STOPPED)) is Action.START


def test_a_stop_that_is_not_graceful_hurries_a_drain_too() -> None:
    at_once = desired(W.STOPPED, graceful=False)
    assert action_for(at_once, actual(S.READY)) is Action.STOP
    assert action_for(at_once, actual(S.DRAINING)) is Action.STOP
    assert action_for(at_once, actual(S.DRAINING, busy=True)) is Action.STOP


def test_the_plan_never_interrupts_a_job_even_after_an_operators_hard_stop() -> None:
    for operator, order in product((None, W.RUNNING), (W.STOPPED, W.SLEEPING)):
        word = desired(operator, graceful=False)
        assert action_for(word, actual(S.READY), order) is Action.DRAIN
        assert action_for(word, actual(S.DRAINING, overdue=True), order) is None


def test_an_operators_stop_waits_for_what_runs_only_so_long() -> None:
    assert action_for(desired(W.STOPPED), actual(S.DRAINING)) is None
    assert action_for(desired(W.STOPPED), actual(S.DRAINING, overdue=True)) is Action.STOP
    restart = desired(W.RUNNING, restarts=1)
    assert action_for(restart, actual(S.DRAINING)) is None
    assert action_for(restart, actual(S.DRAINING, overdue=True)) is Action.STOP


def test_nothing_is_put_to_sleep_while_anything_runs_on_it() -> None:
    for operator, order in ((W.SLEEPING, W.RUNNING), (None, W.SLEEPING)):
        assert action_for(desired(operator), actual(S.DRAINING, overdue=True), order) is None


def test_a_sleep_or_a_wake_under_way_is_not_begun_again_but_may_be_broken_off_by_a_stop() -> None:
    assert action_for(desired(W.SLEEPING), actual(S.DRAINING, idle=True, busy=True)) is None
    assert action_for(desired(None), actual(S.SLEEPING, busy=True), W.RUNNING) is None
    assert action_for(desired(None), actual(S.DRAINING, idle=True, busy=True), W.STOPPED) is Action.STOP
    assert action_for(desired(None), actual(S.SLEEPING, busy=True), W.STOPPED) is Action.STOP


def test_what_is_wanted_at_the_end_of_a_drain_counts() -> None:
    drained = actual(S.DRAINING, idle=True)
    assert action_for(desired(W.STOPPED), drained, W.SLEEPING) is Action.STOP
    assert action_for(desired(W.SLEEPING), drained, W.STOPPED) is Action.SLEEP
    assert action_for(desired(None, restarts=1), drained, W.SLEEPING) is Action.STOP


@pytest.mark.parametrize("order", W)
@pytest.mark.parametrize("operator", [None, *W])
def test_a_failed_engine_is_let_alone_until_an_operator_acts_and_then_it_is_stopped(
    operator: Wanted | None, order: Wanted
) -> None:
    assert action_for(desired(operator), actual(S.FAILED), order) is None
    assert action_for(desired(operator, version=2), actual(S.FAILED), order) is Action.RESET
    assert action_for(desired(operator, version=2), actual(S.FAILED, version=2), order) is None


@pytest.mark.parametrize(("state", "action"), [(S.STOPPED, A.START), (S.SLEEPING, A.WAKE)])
def test_a_start_or_a_wake_that_has_failed_waits_its_time_unless_an_operator_asks(
    state: EngineState, action: Action
) -> None:
    waiting = actual(state, waits=True)
    assert action_for(desired(W.RUNNING), waiting) is None
    assert action_for(desired(W.RUNNING, version=2), waiting) is action


def test_what_this_machine_cannot_run_is_not_started_whoever_asks() -> None:
    assert action_for(desired(W.RUNNING, version=2), actual(S.STOPPED, unable=True)) is None
    assert action_for(desired(None), actual(S.STOPPED, unable=True), W.RUNNING) is None


def test_an_engine_that_cannot_sleep_stays_awake_for_an_operator_but_stops_for_the_plan_that_needs_the_memory() -> None:
    assert action_for(desired(W.SLEEPING), actual(S.READY, can_sleep=False)) is None
    nothing_freed = {"can_sleep": True, "sleep_frees": False}
    assert action_for(desired(None), actual(S.READY, **nothing_freed), W.SLEEPING) is Action.DRAIN
    assert action_for(desired(None), actual(S.DRAINING, idle=True, **nothing_freed), W.SLEEPING) is Action.STOP


def test_an_operator_may_put_an_engine_to_sleep_that_frees_nothing_by_it() -> None:
    nothing_freed = {"can_sleep": True, "sleep_frees": False}
    assert action_for(desired(W.SLEEPING), actual(S.READY, **nothing_freed), W.RUNNING) is Action.DRAIN
    assert action_for(desired(W.SLEEPING), actual(S.DRAINING, idle=True, **nothing_freed)) is Action.SLEEP
    assert action_for(desired(W.SLEEPING), actual(S.SLEEPING, **nothing_freed)) is None


@pytest.mark.parametrize("newer", [{"restarts": 1}, {"resolution": "base"}])
def test_an_engine_started_under_something_else_is_drained_and_started_again(newer: dict[str, object]) -> None:
    wanted = desired(W.RUNNING, **newer)
    assert action_for(wanted, actual(S.READY, resolution="tiny")) is Action.DRAIN
    assert action_for(wanted, actual(S.DRAINING, resolution="tiny")) is None
    assert action_for(wanted, actual(S.DRAINING, resolution="tiny", idle=True)) is Action.STOP
    assert action_for(wanted, actual(S.STARTING, resolution="tiny")) is Action.STOP
    assert action_for(wanted, actual(S.SLEEPING, resolution="tiny")) is Action.STOP
    assert action_for(wanted, actual(S.STOPPED, resolution="tiny")) is Action.START
    assert action_for(wanted, actual(S.READY, restarts=1, resolution="base")) is None


def test_every_action_is_one_that_the_state_allows() -> None:
    flags = [(True, False)] * 8
    every = product(EngineState, (None, *Wanted), Wanted, (0, 2), (0, 1), (None, "base"), *flags)
    for state, operator, order, version, restarts, resolution, graceful, *now in every:
        want = Desired("m", operator, resolution=resolution, graceful=graceful, restarts=restarts, version=version)
        is_now = Actual(state, 1, 0, None, *now)
        action = action_for(want, is_now, order)
        assert action is None or LEADS_TO[action] in TRANSITIONS[state], f"{action} from {state}"

"""From what is desired of an engine and what it is to the next thing to do."""

from dataclasses import replace
from itertools import product

import pytest

from broker.desired import Desired, Wanted
from worker.engine_state import TRANSITIONS, EngineState
from worker.reconciler import Action, Actual, action_for

S, W = EngineState, Wanted

# What each action makes of an engine at once.
LEADS_TO = {
    Action.START: S.STARTING,
    Action.DRAIN: S.DRAINING,
    Action.STOP: S.STOPPING,
    Action.SLEEP: S.SLEEPING,
    Action.WAKE: S.READY,
}


def desired(wanted: Wanted | None, **more: object) -> Desired:
    return replace(Desired("m", wanted=wanted, version=1), **more)  # type: ignore[arg-type]


def actual(state: EngineState, **more: object) -> Actual:
    return replace(Actual(state, version=1, can_sleep=True), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "wanted", "action"),
    [
        (S.STOPPED, W.RUNNING, Action.START),
        (S.STOPPED, W.SLEEPING, None),
        (S.STOPPED, W.STOPPED, None),
        (S.STARTING, W.RUNNING, None),
        (S.STARTING, W.SLEEPING, None),
        (S.STARTING, W.STOPPED, Action.STOP),
        (S.READY, W.RUNNING, None),
        (S.READY, W.SLEEPING, Action.SLEEP),
        (S.READY, W.STOPPED, Action.DRAIN),
        (S.SLEEPING, W.RUNNING, Action.WAKE),
        (S.SLEEPING, W.SLEEPING, None),
        (S.SLEEPING, W.STOPPED, Action.STOP),
        (S.DRAINING, W.RUNNING, None),
        (S.DRAINING, W.STOPPED, None),
        (S.STOPPING, W.RUNNING, None),
        (S.STOPPING, W.STOPPED, None),
        (S.FAILED, W.RUNNING, None),
        (S.FAILED, W.SLEEPING, None),
        (S.FAILED, W.STOPPED, None),
    ],
)
def test_each_state_has_its_next_step_whoever_wants_it(
    state: EngineState, wanted: Wanted, action: Action | None
) -> None:
    assert action_for(desired(wanted), actual(state)) is action, "an operator wants it"
    assert action_for(desired(None), actual(state), automatic=wanted) is action, "the planner wants it"


def test_an_operator_goes_before_the_planner() -> None:
    assert action_for(desired(W.STOPPED), actual(S.READY), automatic=W.RUNNING) is Action.DRAIN
    assert action_for(desired(W.RUNNING), actual(S.READY), automatic=W.STOPPED) is None


def test_without_operator_and_planner_everything_runs() -> None:
    assert action_for(Desired("m"), Actual(S.STOPPED)) is Action.START


def test_a_stop_that_is_not_graceful_hurries_a_drain_too() -> None:
    at_once = desired(W.STOPPED, graceful=False)
    assert action_for(at_once, actual(S.READY)) is Action.STOP
    assert action_for(at_once, actual(S.DRAINING)) is Action.STOP


def test_the_planner_never_interrupts_a_job_even_after_an_operators_hard_stop() -> None:
    assert action_for(desired(None, graceful=False), actual(S.READY), automatic=W.STOPPED) is Action.DRAIN


def test_a_failed_engine_starts_again_only_when_an_operator_has_acted_since() -> None:
    asked_again = desired(W.RUNNING, version=2)
    assert action_for(asked_again, actual(S.FAILED)) is Action.START
    assert action_for(asked_again, actual(S.FAILED, version=2)) is None
    assert action_for(desired(W.STOPPED, version=2), actual(S.FAILED)) is Action.STOP
    assert action_for(desired(None, version=2), actual(S.FAILED), automatic=W.RUNNING) is Action.START


def test_a_start_that_has_failed_waits_its_time_unless_an_operator_asks() -> None:
    waiting = actual(S.STOPPED, backing_off=True)
    assert action_for(desired(W.RUNNING), waiting) is None
    assert action_for(desired(W.RUNNING, version=2), waiting) is Action.START


def test_an_engine_that_cannot_sleep_stays_awake() -> None:
    assert action_for(desired(W.SLEEPING), actual(S.READY, can_sleep=False)) is None


@pytest.mark.parametrize("newer", [{"restarts": 1}, {"resolution": "base"}])
def test_an_engine_started_under_something_else_is_drained_and_started_again(newer: dict[str, object]) -> None:
    wanted = desired(W.RUNNING, **newer)
    assert action_for(wanted, actual(S.READY, resolution="tiny")) is Action.DRAIN
    assert action_for(wanted, actual(S.DRAINING, resolution="tiny")) is None
    assert action_for(wanted, actual(S.STARTING, resolution="tiny")) is Action.STOP
    assert action_for(wanted, actual(S.SLEEPING, resolution="tiny")) is Action.STOP
    assert action_for(wanted, actual(S.STOPPED, resolution="tiny")) is Action.START
    assert action_for(wanted, actual(S.READY, restarts=1, resolution="base")) is None


def test_every_action_is_one_that_the_state_allows() -> None:
    every = product(EngineState, Wanted, (True, False), (0, 2), (0, 1), (None, "base"), (True, False), (True, False))
    for state, wanted, graceful, version, restarts, resolution, can_sleep, backing_off in every:
        want = Desired("m", wanted, resolution=resolution, graceful=graceful, restarts=restarts, version=version)
        action = action_for(want, Actual(state, version=1, can_sleep=can_sleep, backing_off=backing_off))
        # An engine that has failed has nothing to stop: it is simply stopped.
        allowed = TRANSITIONS[state] | ({S.STOPPING} if state is S.FAILED else set())
        assert action is None or LEADS_TO[action] in allowed, f"{action} from {state}"

"""Which server is asked, and which is left alone: as pure code."""

import math
import random
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.errors import (
    EngineError,
    EngineInputError,
    EngineUnavailable,
    UpstreamBusy,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from config.upstreams import Balance
from worker.backends.backend import Outcome, outcome_of
from worker.backends.breaker import LONGEST, SHARE, Breaker, State, Ticket
from worker.backends.choice import Candidate, Chooser
from worker.backends.pool import pause

NAMES = ("a", "b", "c", "d")


def test_servers_are_taken_in_turn() -> None:
    chooser = Chooser("round_robin")
    chosen = [chooser.choose([Candidate(name) for name in "abc"]) for _ in range(7)]
    assert "".join(chosen) == "abcabca"


def test_one_that_was_away_is_not_given_what_it_has_missed() -> None:
    chooser = Chooser("round_robin")
    for _ in range(50):
        chooser.choose([Candidate("a"), Candidate("b")])
    chosen = [chooser.choose([Candidate(name) for name in "abc"]) for _ in range(30)]
    assert Counter(chosen) == {"a": 10, "b": 10, "c": 10}


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_each_gets_its_share_by_weight_and_never_falls_a_whole_turn_behind(weights: list[int]) -> None:
    chooser = Chooser("weight")
    candidates = [Candidate(name, weight) for name, weight in zip(NAMES, weights, strict=False)]
    got: Counter[str] = Counter()
    for number in range(1, 4 * sum(weights) + 1):
        got[chooser.choose(candidates)] += 1
        for candidate in candidates:
            due = number * candidate.weight / sum(weights)
            # Start-time fair queueing's bound: by one request of each of the others.
            assert abs(got[candidate.name] - due) <= len(candidates)


def test_the_least_busy_is_taken_and_of_equals_the_next_in_turn() -> None:
    chooser = Chooser("least_busy")
    busy = [Candidate("a", running=2), Candidate("b", running=1), Candidate("c", running=1)]
    assert [chooser.choose(busy) for _ in range(4)] == ["b", "c", "b", "c"]


def test_the_quickest_is_taken_after_each_was_measured_once() -> None:
    chooser = Chooser("latency")
    assert chooser.choose([Candidate("a", latency=0.1), Candidate("b")]) == "b"
    # While the one is being measured, the others do not wait for what comes of it.
    assert chooser.choose([Candidate("a", latency=0.1), Candidate("b", running=1, measuring=True)]) == "a"
    # A long answer measures nothing any more.
    assert chooser.choose([Candidate("a", latency=0.1), Candidate("b", running=1)]) == "b"
    assert chooser.choose([Candidate("a", latency=0.1), Candidate("b", latency=0.05)]) == "b"


@given(
    st.sampled_from(get_args(Balance)),
    st.lists(
        st.lists(
            st.builds(
                Candidate,
                st.sampled_from(NAMES),
                st.floats(0.01, 100),
                st.integers(0, 5),
                st.none() | st.floats(0, 10) | st.just(math.inf),
                st.booleans(),
            ),
            min_size=1,
            max_size=4,
            unique_by=lambda one: one.name,
        ),
        max_size=30,
    ),
)
def test_somebody_who_is_there_is_always_chosen(balance: Balance, rounds: list[list[Candidate]]) -> None:
    chooser = Chooser(balance)
    for candidates in rounds:
        assert chooser.choose(candidates) in {candidate.name for candidate in candidates}


def test_pauses_grow_and_are_drawn_from_the_whole_range() -> None:
    drawn = [[pause(failures, random.Random(seed)) for seed in range(200)] for failures in (1, 2, 3, 20)]
    for pauses, most in zip(drawn, (0.1, 0.2, 0.4, 2.0), strict=True):
        assert max(pauses) <= most
        assert max(pauses) > 0.9 * most
        assert min(pauses) < 0.1 * most


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (EngineInputError("bad schema", status=400), Outcome.SOUND),
        (EngineInputError("too long", status=413), Outcome.SOUND),
        (EngineInputError("no key", code="upstream_refused_key"), Outcome.UNKNOWN),
        (UpstreamBusy("no money", status=402), Outcome.UNKNOWN),
        (EngineInputError("no such model", status=404), Outcome.UNKNOWN),
        (UpstreamBusy("moved", status=302), Outcome.FAILED),
        (UpstreamBusy("overloaded", status=429), Outcome.FAILED),
        (UpstreamBusy("gone", status=502), Outcome.FAILED),
        (UpstreamTimeout("silent"), Outcome.FAILED),
        (UpstreamUnreachable("away"), Outcome.FAILED),
        (EngineUnavailable("no stream"), Outcome.FAILED),
        (EngineError("no JSON", code="bad_answer"), Outcome.FAILED),
        (EngineError("no end", code="answer_cut_off"), Outcome.FAILED),
    ],
    ids=lambda value: getattr(value, "message", value),
)
def test_only_who_refuses_an_input_or_answers_it_is_sound(error: EngineError, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


def broken(breaker: Breaker, now: float, times: int) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin(now), now)


def test_failures_that_lie_further_back_than_the_window_are_forgotten() -> None:
    breaker = Breaker(3, window=10.0, pause=5.0)
    broken(breaker, 0.0, 2)
    broken(breaker, 10.0, 2)
    assert breaker.state(10.0) is State.CLOSED
    broken(breaker, 10.5, 1)
    assert breaker.state(10.5) is State.OPEN


def test_a_server_that_mostly_answers_is_not_left_alone() -> None:
    breaker = Breaker(3, window=10.0, pause=5.0)
    for _ in range(10):
        breaker.succeeded(breaker.begin(0.0), 0.0)
    broken(breaker, 0.0, 9)
    assert breaker.state(0.0) is State.CLOSED
    broken(breaker, 0.0, 1)
    assert breaker.state(0.0) is State.OPEN


def test_one_request_tries_whether_it_is_back() -> None:
    breaker = Breaker(1, window=10.0, pause=5.0)
    broken(breaker, 0.0, 1)
    assert (breaker.admits(4.9), breaker.retry_in(1.0)) == (False, 4.0)
    probe = breaker.begin(5.0)
    assert (probe.probe, breaker.state(5.0), breaker.admits(5.0)) == (True, State.HALF_OPEN, False)
    assert breaker.retry_in(5.0) == 0.0  # how long the probe takes nobody knows
    breaker.failed(probe, 6.0)
    assert breaker.retry_in(6.0) == 5.0
    probe = breaker.begin(11.0)
    breaker.succeeded(probe, 11.0)
    assert breaker.state(11.0) is State.CLOSED


def test_a_probe_that_nobody_waits_for_any_more_lets_another_one_try() -> None:
    breaker = Breaker(1, window=10.0, pause=5.0)
    broken(breaker, 0.0, 1)
    probe = breaker.begin(5.0)
    breaker.abandoned(probe)
    assert breaker.admits(5.0)
    again = breaker.begin(5.0)
    breaker.succeeded(probe, 5.0)  # of the same period: the server did answer
    breaker.abandoned(again)
    assert breaker.state(5.0) is State.CLOSED


@pytest.mark.parametrize(("asked", "pause"), [(3.0, 3.0), (10_000.0, LONGEST)])
def test_a_server_is_left_alone_for_as_long_as_it_asks(asked: float, pause: float) -> None:
    breaker = Breaker(100, window=10.0, pause=5.0)
    breaker.failed(breaker.begin(0.0), 0.0, retry_after=asked)
    assert breaker.retry_in(0.0) == pause


class BreakerMachine(RuleBasedStateMachine):
    """A breaker beside what it has promised, told in another way: by the list of all that happened."""

    FAILURES, WINDOW, PAUSE = 3, 10.0, 5.0

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(self.FAILURES, self.WINDOW, self.PAUSE)
        self.now = 0.0
        self.state = State.CLOSED
        self.until = 0.0
        self.period = 0
        self.out: list[tuple[int, Ticket]] = []  # requests under way, with the period in which they began
        self.probing = False
        self.outcomes: list[tuple[float, bool]] = []

    def change(self, state: State, until: float = 0.0) -> None:
        self.state, self.until, self.probing, self.outcomes = state, until, False, []
        self.period += 1

    def taken(self, number: int) -> tuple[int, Ticket]:
        return self.out.pop(number % len(self.out))

    @rule(seconds=st.sampled_from((0.1, 1.0, 4.9, 5.0, 9.9, 10.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.state is State.OPEN and self.now >= self.until:
            self.state = State.HALF_OPEN

    @precondition(lambda self: self.breaker.admits(self.now))
    @rule()
    def begin(self) -> None:
        ticket = self.breaker.begin(self.now)
        assert self.state is not State.OPEN, "a request went to a server that is left alone"
        assert not self.probing, "a second request tried whether it is back"
        assert ticket.probe == (self.state is State.HALF_OPEN)
        self.probing = ticket.probe
        self.out.append((self.period, ticket))

    @precondition(lambda self: self.out)
    @rule(number=st.integers(0, 9))
    def succeed(self, number: int) -> None:
        period, ticket = self.taken(number)
        self.breaker.succeeded(ticket, self.now)
        if period == self.period:
            self.outcomes.append((self.now, True))
            if ticket.probe:
                self.change(State.CLOSED)

    @precondition(lambda self: self.out)
    @rule(number=st.integers(0, 9), retry_after=st.sampled_from((None, None, 0.0, 7.0)))
    def fail(self, number: int, retry_after: float | None) -> None:
        period, ticket = self.taken(number)
        self.breaker.failed(ticket, self.now, retry_after)
        if period != self.period:
            return
        self.outcomes.append((self.now, False))
        recent = [good for at, good in self.outcomes if at > self.now - self.WINDOW]
        if retry_after:
            self.change(State.OPEN, self.now + retry_after)
        elif ticket.probe or (recent.count(False) >= self.FAILURES and recent.count(False) >= SHARE * len(recent)):
            self.change(State.OPEN, self.now + self.PAUSE)

    @precondition(lambda self: self.out)
    @rule(number=st.integers(0, 9))
    def abandon(self, number: int) -> None:
        period, ticket = self.taken(number)
        self.breaker.abandoned(ticket)
        if ticket.probe and period == self.period:
            self.probing = False

    @invariant()
    def it_is_as_promised(self) -> None:
        assert self.breaker.state(self.now) is self.state
        admits = self.state is State.CLOSED or (self.state is State.HALF_OPEN and not self.probing)
        assert self.breaker.admits(self.now) == admits
        # Nobody is shut out for ever: somebody may go there at a known time, or a probe is under way.
        assert self.breaker.retry_in(self.now) == (self.until - self.now if self.state is State.OPEN else 0.0)


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=200, stateful_step_count=60, deadline=None, derandomize=True)

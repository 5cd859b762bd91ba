"""What the planner is shown, and what becomes of its plan."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker.demand import Demand
from broker.desired import Desired, Wanted
from broker.devices import DeviceUse, Others
from broker.forecast import Forecast
from broker.measurements import Measurement
from broker.planner import plan
from broker.plans import Decision, Order
from broker.registry import DeviceState, ModelState, Worker
from broker.snapshot import (
    DRAINING,
    FAILED,
    READY,
    SLEEPING,
    STARTING,
    STOPPING,
    Action,
    Device,
    Model,
    Plan,
    Resident,
    Rules,
)
from broker.survey import Facts, orders_after, survey

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
GPU = "GPU-0"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def engine(state: str = "stopped", memory: int | None = None, *, need: int | None = 40, **of: Any) -> ModelState:
    gpus = () if state == "stopped" else (GPU,)
    told = {"gpus": gpus, "since": ago(600), "managed": True, "need_bytes": need, "memory_bytes": memory, **of}
    return ModelState(state == "ready", state, **told)


def worker(
    models: dict[str, ModelState], name: str = "w1", *, free: int = 80, total: int = 80, gpu: str = GPU, **of: Any
) -> Worker:
    about = {"host": "box", "pid": 7, "started_at": ago(3600), "last_seen": ago(1), "draining": False, **of}
    return Worker(name, models=models, devices=(DeviceState(gpu, total, free),), **about)


def order(wanted: Wanted, model: str = "a", at: float = 300, on: str = "w1", gpus: tuple[str, ...] = (GPU,)) -> Order:
    return Order(model, on, wanted, gpus, "so it was decided", ago(at))


RUN, SLEEP, STOP = (order(wanted) for wanted in (Wanted.RUNNING, Wanted.SLEEPING, Wanted.STOPPED))


def facts(*workers: Worker, models: str = "a", **of: Any) -> Facts:
    known = frozenset(worker.id for worker in workers)
    return Facts(NOW, tuple(models), workers, **{"known": known, **of})


def asked(wanted: Wanted | None, model: str = "a") -> dict[str, Desired]:
    return {model: Desired(model, wanted, version=3)}


def model_in(found: Facts, name: str = "a") -> Model:
    return next(model for model in survey(found).snapshot.models if model.name == name)


# Engines.


@pytest.mark.parametrize(
    ("told", "ordered", "seen", "memory"),
    [
        (engine(), None, None, 0),
        (engine(), STOP, None, 0),
        (engine(), SLEEP, None, 0),
        (engine(), RUN, STARTING, 40),  # the worker has not begun: what was promised to it is nobody else's
        (engine("starting", 7), RUN, STARTING, 40),
        (engine("starting", 50), RUN, STARTING, 50),
        (engine("starting"), STOP, STOPPING, 40),
        (engine("starting"), None, STARTING, 40),
        (engine("ready", 41), RUN, READY, 41),
        (engine("ready"), RUN, READY, 40),
        (engine("ready", 41), STOP, DRAINING, 41),
        (engine("ready", 41), SLEEP, DRAINING, 41),
        (engine("draining", 41), STOP, DRAINING, 41),
        (engine("draining", 41), RUN, STARTING, 41),  # an operator has it started anew: it will be back
        (engine("stopping", 41), RUN, STARTING, 41),
        (engine("stopping", 41), STOP, STOPPING, 41),
        (engine("sleeping", 3), SLEEP, SLEEPING, 3),
        (engine("sleeping"), SLEEP, SLEEPING, 0),
        (engine("sleeping", 3), RUN, STARTING, 40),  # it is about to be woken
        (engine("sleeping", 3), STOP, STOPPING, 40),
        (engine("failed", 9), RUN, FAILED, 0),
    ],
)
def test_an_engine_is_seen_as_it_is_about_to_be(
    told: ModelState, ordered: Order | None, seen: str | None, memory: int
) -> None:
    orders = () if ordered is None else (ordered,)
    residents = model_in(facts(worker({"a": told}), orders=orders)).residents
    loaded_for = 600.0 if seen == READY else 0.0
    assert residents == (() if seen is None else (Resident("w1", (GPU,), seen, memory, loaded_for=loaded_for),))


@pytest.mark.parametrize("wanted", [Wanted.STOPPED, Wanted.SLEEPING])
def test_what_an_operator_has_taken_away_is_still_promised_until_that_is_written_down(wanted: Wanted) -> None:
    found = facts(worker({"a": engine()}), orders=(RUN,), desired=asked(wanted))
    assert [resident.state for resident in model_in(found).residents] == [STOPPING]


def test_an_order_that_was_taken_back_may_have_been_begun_until_its_worker_is_heard_of_again() -> None:
    withdrawn = order(Wanted.STOPPED, at=3.0)
    for heard, since, there in ((4.0, 600, True), (2.5, 600, True), (1.5, 600, False), (4.0, 2, False)):
        told = worker({"a": engine(since=ago(since))}, last_seen=ago(heard))
        residents = model_in(facts(told, orders=(withdrawn,))).residents
        assert residents == ((Resident("w1", (GPU,), STOPPING, 40),) if there else ())


def test_an_engine_whose_need_nobody_knows_counts_with_all_of_its_device() -> None:
    starting = facts(worker({"a": engine("starting", need=None)}), orders=(RUN,))
    assert (model_in(starting).need, model_in(starting).residents[0].memory) == (None, 80)


def test_the_jobs_of_an_engine_are_those_of_its_worker() -> None:
    demand = Demand(queued=4, oldest_wait=9.0, rate=0.5, idle_for=0.0, running={"w1": 3}, still_waiting={"w1": 2})
    found = model_in(facts(worker({"a": engine("ready", 40)}), orders=(RUN,), demand={"a": demand}))
    assert (found.queued, found.oldest_wait, found.rate, found.idle_for) == (4, 9.0, 0.5, 0.0)
    assert (found.residents[0].running, found.residents[0].still_waiting) == (3, 2)


# Devices.


def memory(found: Facts) -> dict[str, int]:
    return {device.worker: device.memory for device in survey(found).snapshot.devices}


def test_models_may_fill_what_is_free_and_what_our_own_engines_hold() -> None:
    assert memory(facts(worker({"a": engine("ready", 40)}, free=30), orders=(RUN,))) == {"w1": 70}


def test_what_engines_of_other_workers_hold_on_a_device_is_ours_too() -> None:
    first = worker({"a": engine("ready", 40)}, free=30)
    second = worker({"a": engine()}, "w2", free=30)
    assert memory(facts(first, second, orders=(RUN,))) == {"w1": 70, "w2": 70}


def test_of_two_workers_the_one_that_was_heard_of_last_tells_what_is_free() -> None:
    loaded, stale = worker({"a": engine("ready", 40)}, free=40), worker({}, "w2", free=80, last_seen=ago(5))
    assert memory(facts(loaded, stale, orders=(RUN,))) == {"w1": 80, "w2": 80}


def test_what_a_loading_engine_has_taken_already_is_not_taken_for_that_of_others() -> None:
    """Nobody knows how much that is; what others held before it began is known."""
    for free, others in ((80, 0), (60, 0), (45, 0), (40, 0), (25, 15)):
        found = facts(worker({"a": engine("starting")}, free=free), orders=(RUN,), others={GPU: 0})
        assert memory(found) == {"w1": 80 - others}
    for free, others in ((55, 20), (30, 20), (20, 20), (15, 25)):
        found = facts(worker({"a": engine("starting")}, free=free), orders=(RUN,), others={GPU: 20})
        assert memory(found) == {"w1": 80 - others}
    unknown = facts(worker({"a": engine("starting")}, free=50), orders=(RUN,))
    assert memory(unknown) == {"w1": 50}, "who has not seen it before is on the safe side"


def test_what_others_hold_is_known_when_it_has_been_certain_for_longer_than_a_worker_is_silent() -> None:
    others = Others({GPU: 70})

    def note(second: int, held: int, *, certain: bool = True) -> dict[str, int]:
        others.note(ago(-second), {GPU: DeviceUse(GPU, "", 80, 80 - held, held, held, certain)})
        return dict(others.known())

    assert note(0, 20) == note(6, 20) == {GPU: 70}, "so it was when another one led"
    assert note(7, 5) == {GPU: 20}
    assert note(13, 5) == {GPU: 20}, "what it was 7 s ago may yet be right"
    assert note(14, 5) == {GPU: 5}
    assert note(600, 70, certain=False) == {GPU: 5}
    assert note(601, 30) == {GPU: 30}


def test_an_engine_that_has_died_unheard_of_does_not_make_others_look_smaller() -> None:
    dead = worker({"a": engine("ready", 40)}, free=60, last_seen=ago(1))
    assert memory(facts(dead, orders=(RUN,), others={GPU: 20})) == {"w1": 60}


def test_nothing_beyond_the_device_is_ever_there() -> None:
    assert memory(facts(worker({"a": engine("ready", 40)}, free=80), orders=(RUN,))) == {"w1": 80}


def test_workers_of_one_machine_share_the_memory_for_those_who_sleep() -> None:
    here = [worker({}, name, host_memory=100) for name in ("w1", "w2")]
    there = worker({}, "w3", host="other", host_memory=100)
    assert survey(facts(*here, there)).snapshot.host_memory == {"w1": 50, "w2": 50, "w3": 100}


# Places.


def test_a_worker_that_drains_is_no_place_and_what_it_holds_is_not_free_yet() -> None:
    leaving = worker({"a": engine("ready", 40)}, free=40, draining=True)
    staying = worker({"a": engine()}, "w2", free=40)
    found = survey(facts(leaving, staying, orders=(RUN,)))
    own, guest = found.snapshot.models
    assert (own.workers, own.residents) == (frozenset({"w2"}), ())
    assert guest.residents == (Resident("w1", (GPU,), DRAINING, 40),)
    assert (guest.workers, guest.wanted) == (frozenset(), "off")
    assert found.snapshot.devices == (Device("w2", GPU, 80),)


def test_what_was_ordered_just_before_a_worker_fell_silent_is_still_promised() -> None:
    staying = worker({"a": engine()}, "w2")
    for at, there in ((5, True), (60, False)):  # later on the driver tells whether it is there
        ordered = order(Wanted.RUNNING, at=at)
        found = survey(facts(staying, known=frozenset({"w1", "w2"}), orders=(ordered,)))
        own, *guests = found.snapshot.models
        assert own.residents == ()
        assert [guest.residents for guest in guests] == ([(Resident("w1", (GPU,), DRAINING, 40),)] if there else [])


def test_only_workers_that_could_serve_a_model_are_places_for_it() -> None:
    unable = ModelState(False, "the weights are missing", managed=True)
    found = facts(worker({"a": engine()}), worker({"a": unable}, "w2"), worker({}, "w3"))
    assert model_in(found).workers == {"w1"}


# Models.


def test_models_are_shown_in_the_order_of_the_config_with_what_operators_want() -> None:
    desired = {
        "a": Desired("a", pinned=True),
        "b": Desired("b", Wanted.RUNNING),
        "c": Desired("c", Wanted.STOPPED),
        "d": Desired("d", Wanted.SLEEPING),
    }
    box = worker(dict.fromkeys("abcd", engine()))
    models = survey(facts(box, models="dbca", desired=desired)).snapshot.models
    assert [(model.name, model.wanted, model.pinned) for model in models] == [
        ("d", "asleep", False),
        ("b", "on", False),
        ("c", "off", False),
        ("a", "auto", True),
    ]


def test_the_need_is_the_largest_that_a_worker_tells_else_what_was_measured() -> None:
    both = facts(worker({"a": engine(need=30)}), worker({"a": engine(need=40)}, "w2"))
    assert model_in(both).need == 40
    measured = {"a": Measurement(memory_bytes=33, host_bytes=22, load_seconds=44.0, wake_seconds=3.0)}
    found = model_in(facts(worker({"a": engine(need=None)}), measured=measured))
    assert (found.need, found.host_need, found.load, found.wake) == (33, 22, 44.0, 3.0)
    assert model_in(facts(worker({"a": engine(need=None)}))).need is None


def test_what_was_never_measured_is_as_the_planner_supposes() -> None:
    plain = Model("a", 40, frozenset({"w1"}))
    assert model_in(facts(worker({"a": engine()}))) == plain
    told = engine(load_seconds=12.0, wake_seconds=1.5, can_sleep=True, host_bytes=50, gpu_count=2)
    found = model_in(facts(worker({"a": told})))
    assert (found.load, found.wake, found.can_sleep, found.host_need, found.gpus) == (12.0, 1.5, True, 50, 2)


def test_a_pattern_counts_only_where_it_is_trusted() -> None:
    for trusted, expected in ((True, 7.0), (False, 0.0)):
        forecasts = {"a": Forecast(100, 7.0, trusted, 1.0, 2.0)}
        assert model_in(facts(worker({"a": engine()}), forecasts=forecasts)).expected == expected


def test_a_model_is_away_since_its_engine_has_gone() -> None:
    def away(told: ModelState, *orders: Order) -> float:
        return model_in(facts(worker({"a": told}), orders=orders)).away_for

    assert away(engine(), order(Wanted.STOPPED, at=300)) == 300.0
    assert away(engine(since=ago(20)), order(Wanted.STOPPED, at=300)) == 20.0, "it had work to finish"
    assert away(engine("draining"), order(Wanted.STOPPED, at=300)) == 300.0
    assert away(engine("sleeping", since=ago(40)), order(Wanted.SLEEPING, at=300)) == 40.0
    assert away(engine("ready"), RUN) == away(engine(since=ago(1))) == float("inf"), "a worker that has just begun"


def test_a_model_that_fits_nowhere_is_named_with_the_reason() -> None:
    gib = 2**30
    small = worker({"a": engine(need=40 * gib)}, total=32 * gib, free=24 * gib)
    assert survey(facts(small)).unfit == {
        "a": "it needs 40.0 GiB, and models may use at most 24.0 GiB of a device",
    }
    many = worker({"a": engine(gpu_count=2)})
    assert survey(facts(many)).unfit == {"a": "it needs 2 devices of one worker, and none has more than 1"}
    assert survey(facts(worker({"a": engine(need=None)}))).unfit == {}
    assert survey(facts(worker({"a": engine("ready", 80, need=80)}, free=0), orders=(RUN,))).unfit == {}


# Orders.


def after(found: Facts, *actions: Action) -> tuple[dict[tuple[str, str], Order], list[Decision]]:
    orders, decisions = orders_after(found, Plan(actions))
    assert len({(one.model, one.worker) for one in orders}) == len(orders)
    return {(one.model, one.worker): one for one in orders}, decisions


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("load", Wanted.RUNNING), ("wake", Wanted.RUNNING), ("sleep", Wanted.SLEEPING), ("stop", Wanted.STOPPED)],
)
def test_an_action_is_an_order_with_its_reason(kind: Any, wanted: Wanted) -> None:
    found = facts(worker({"a": engine()}))
    orders, decisions = after(found, Action(kind, "a", "w1", (GPU,), "because"))
    assert orders == {("a", "w1"): Order("a", "w1", wanted, (GPU,), "because", NOW)}
    assert decisions == [Decision(NOW, kind, "a", "w1", (GPU,), "because")]


def test_an_order_stands_until_it_is_changed() -> None:
    found = facts(worker({"a": engine("ready", 40)}), orders=(RUN,))
    assert after(found) == ({("a", "w1"): RUN}, [])
    assert after(found, Action("load", "a", "w1", (GPU,), "once more")) == ({("a", "w1"): RUN}, [])


def test_orders_go_with_their_worker_but_not_because_it_is_silent() -> None:
    elsewhere = replace(RUN, worker="w2")
    silent = facts(worker({"a": engine()}), known=frozenset({"w1", "w2"}), orders=(elsewhere,))
    assert after(silent)[0] == {("a", "w2"): elsewhere}
    gone = facts(worker({"a": engine()}), orders=(elsewhere,))
    assert after(gone) == ({}, [])


def test_nobody_tries_an_engine_again_that_has_failed_until_an_operator_acts() -> None:
    failed = facts(worker({"a": engine("failed", reason="out of memory")}), orders=(RUN,))
    orders, decisions = after(failed)
    assert [(one.wanted, one.reason) for one in orders.values()] == [
        (Wanted.STOPPED, "its engine failed: out of memory")
    ]
    assert len(decisions) == 1
    for wanted in (None, Wanted.RUNNING):
        # The worker has answered the operator by «stopped»: from here on it is a model like any other.
        withdrawn = replace(orders["a", "w1"], at=ago(60))
        reset = replace(failed, workers=(worker({"a": engine(version=3)}),), orders=(withdrawn,))
        again = replace(reset, desired=asked(wanted), demand={"a": Demand(queued=1)})
        assert [action.kind for action in plan(survey(again).snapshot).actions] == ["load"]


def test_an_order_that_its_worker_turns_out_to_be_unable_to_follow_is_withdrawn() -> None:
    """Else it would be followed at whatever time that changes, in memory that is somebody else's by then."""
    unable = ModelState(False, "the weights are missing", managed=True, need_bytes=40)
    found = facts(worker({"a": unable}), orders=(RUN,))
    assert [resident.state for resident in model_in(found).residents] == [STOPPING]
    orders, _ = after(found)
    assert (orders["a", "w1"].wanted, orders["a", "w1"].reason) == (
        Wanted.STOPPED,
        "the worker cannot run it: the weights are missing",
    )
    assert model_in(replace(found, orders=tuple(orders.values()))).residents == ()


def test_what_an_operator_takes_away_is_not_ordered_any_more() -> None:
    """Else the engine would be back at once when they hand it back, in memory that is somebody else's by then."""
    for told, wanted, ordered in (
        (engine("ready", 40), Wanted.STOPPED, Wanted.STOPPED),
        (engine(), Wanted.STOPPED, Wanted.STOPPED),
        (engine("ready", 40, can_sleep=True), Wanted.SLEEPING, Wanted.SLEEPING),
        (engine("ready", 40), Wanted.SLEEPING, Wanted.RUNNING),
        (engine("ready", 40), Wanted.RUNNING, Wanted.RUNNING),
    ):
        orders, _ = after(facts(worker({"a": told}), orders=(RUN,), desired=asked(wanted)))
        assert orders["a", "w1"].wanted is ordered


def test_an_engine_that_runs_without_an_order_goes_on() -> None:
    for state, wanted in (("ready", Wanted.RUNNING), ("starting", Wanted.RUNNING), ("sleeping", Wanted.SLEEPING)):
        orders, decisions = after(facts(worker({"a": engine(state, 40)})))
        assert (orders["a", "w1"].wanted, orders["a", "w1"].gpus) == (wanted, (GPU,))
        assert [decision.kind for decision in decisions] == ["keep"]
    assert after(facts(worker({"a": engine("ready", 40)}), desired=asked(Wanted.STOPPED))) == ({}, [])
    assert after(facts(worker({"a": engine("draining", 40)}))) == ({}, [])


def test_a_leader_that_takes_over_orders_nothing_twice() -> None:
    box = worker({"a": engine(), "b": engine()}, total=50, free=50)
    waiting = {"a": Demand(queued=3, oldest_wait=5.0), "b": Demand(queued=1, oldest_wait=9.0)}
    first = facts(box, models="ab", demand=waiting, rules=Rules(fill=False))
    orders, decisions = orders_after(first, plan(survey(first).snapshot))
    assert [(decision.kind, decision.model) for decision in decisions] == [("load", "a")]
    second = replace(first, orders=tuple(orders))
    planned = plan(survey(second).snapshot)
    assert planned.actions == ()
    assert orders_after(second, planned) == (orders, [])

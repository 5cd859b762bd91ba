"""Which models are loaded: rule by rule, and what holds whatever comes."""

from dataclasses import replace
from typing import Any

import pytest

from broker.planner import gate_open, patience, plan
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
    Snapshot,
)

GPU = Device("w1", "g1", 10)
OTHER = Device("w2", "g2", 10)
WORKERS = frozenset({"w1", "w2"})
# Fill has tests of its own.
RULES = Rules(fill=False)
FILL = Rules()
OFF = Rules(enabled=False)
LONG = 2 * RULES.max_swap_wait + 1


def resident(state: str = READY, memory: int = 10, **of: Any) -> Resident:
    """One that has been loaded for ten minutes and has claimed all that waited then."""
    return Resident(**{"worker": "w1", "devices": ("g1",), "state": state, "memory": memory, "loaded_for": 600.0, **of})


def model(name: str, need: int | None = 10, **of: Any) -> Model:
    return Model(name, need, **{"workers": WORKERS, **of})


def loaded(name: str, *, need: int = 10, state: str = READY, running: int = 0, **of: Any) -> Model:
    held = resident(state, need, running=running)
    return model(name, need, **{"residents": (held,), "idle_for": 0.0 if running else 60.0, **of})


def wanting(name: str, *, need: int = 10, jobs: int = 1, waits: float = 1.0, **of: Any) -> Model:
    return model(name, need, queued=jobs, oldest_wait=waits, **of)


def planned(*models: Model, devices: tuple[Device, ...] = (GPU,), host: int = 0, rules: Rules = RULES) -> Plan:
    return plan(Snapshot(models, devices, rules, {"w1": host, "w2": host}))


def did(found: Plan) -> list[str]:
    return [f"{action.kind} {action.model}" for action in found.actions]


# On demand.


def test_a_job_for_an_unloaded_model_gets_it_loaded_into_free_memory() -> None:
    [action] = planned(wanting("a", jobs=3, waits=2.0)).actions
    assert action == Action("load", "a", "w1", ("g1",), "3 jobs wait for it, the oldest for 2 s")


def test_nothing_is_done_where_nothing_waits() -> None:
    assert planned(loaded("a"), model("b", 10)) == Plan()


def test_a_model_that_is_starting_is_not_loaded_again() -> None:
    assert did(planned(loaded("a", state=STARTING, queued=5, oldest_wait=90.0))) == []


def test_an_idle_model_yields_at_once_to_one_with_work() -> None:
    assert did(planned(loaded("old"), wanting("new"))) == ["stop old"]


def test_the_room_that_it_leaves_is_used_only_when_it_is_free() -> None:
    going = loaded("old", state=STOPPING)
    found = planned(going, wanting("new"))
    assert did(found) == []
    assert found.waiting == {"new": "w1 is making room"}
    assert did(planned(replace(going, residents=()), wanting("new"))) == ["load new"]


def test_a_model_that_has_just_been_loaded_stays_for_a_while() -> None:
    young = replace(loaded("old"), idle_for=5.0, residents=(resident(loaded_for=RULES.min_residency - 1),))
    assert did(planned(young, wanting("new", waits=LONG))) == []


def test_a_model_that_nobody_has_used_since_its_load_yields_at_once() -> None:
    young = resident(loaded_for=RULES.min_residency - 1)
    unused = replace(loaded("old"), idle_for=RULES.min_residency, residents=(young,))
    assert did(planned(unused, wanting("new", waits=1.0))) == ["stop old"]
    assert did(planned(replace(unused, rate=1.0), wanting("new", waits=1.0))) == [], "its clients are about to come"


def test_the_gate_holds_until_all_that_waited_at_the_load_has_been_claimed() -> None:
    shut = resident(running=2, still_waiting=1)
    opened = replace(shut, still_waiting=0)
    late = wanting("new", waits=10 * LONG)
    assert did(planned(replace(loaded("busy", running=2, queued=5), residents=(shut,)), late)) == []
    assert did(planned(replace(loaded("busy", running=2, queued=5), residents=(opened,)), late)) == ["stop busy"]


def test_the_gate_holds_while_the_oldest_job_waits_for_more_than_a_share_of_the_time_since_the_load() -> None:
    here = resident(running=2, loaded_for=600.0)
    behind, level = loaded("a", queued=5, oldest_wait=61.0), loaded("a", queued=5, oldest_wait=60.0)
    assert (gate_open(behind, here, RULES), gate_open(level, here, RULES)) == (False, True)
    assert not gate_open(level, replace(here, still_waiting=1), RULES)
    assert gate_open(behind, replace(here, loaded_for=610.0), RULES)


def test_the_gate_opens_after_a_whole_turn_so_that_a_queue_without_end_holds_nobody_off() -> None:
    endless = resident(running=2, still_waiting=100_000, loaded_for=RULES.turn - 1)
    greedy = loaded("a", queued=200_000, oldest_wait=9e9)
    assert not gate_open(greedy, endless, RULES)
    assert gate_open(greedy, replace(endless, loaded_for=RULES.turn), RULES)


def test_a_model_that_drains_is_awaited() -> None:
    found = planned(loaded("old", state=DRAINING, running=1), wanting("new"))
    assert (did(found), found.waiting) == ([], {"new": "w1 is making room"})


def test_a_load_that_nobody_waits_for_any_more_is_given_up_for_one_that_somebody_waits_for() -> None:
    assert did(planned(loaded("old", state=STARTING), wanting("new"))) == ["stop old"]
    assert did(planned(loaded("old", state=STARTING, queued=1), wanting("new", waits=LONG))) == []
    assert did(planned(loaded("old", state=STARTING, pinned=True), wanting("new"))) == []


def test_a_model_that_is_going_does_not_take_its_room_back() -> None:
    going = loaded("old", state=DRAINING, running=1, queued=50, oldest_wait=900.0)
    found = planned(going, wanting("new", waits=LONG))
    assert found.waiting == {"new": "w1 is making room"}
    gone = replace(going, residents=(), away_for=1.0)
    assert did(planned(gone, wanting("new", waits=LONG))) == ["load new"]


def test_the_longest_queue_is_served_first_while_nobody_has_waited_too_long() -> None:
    few, many = wanting("few", jobs=1, waits=50.0), wanting("many", jobs=9, waits=5.0)
    assert did(planned(few, many)) == ["load many"]
    assert did(planned(replace(few, oldest_wait=LONG), many)) == ["load few"]


def test_the_one_with_the_lowest_rate_of_late_yields() -> None:
    room = Device("w1", "g1", 20)
    popular, rare = loaded("popular", rate=0.01), loaded("rare", rate=0.001)
    assert did(planned(popular, rare, wanting("new", jobs=5), devices=(room,))) == ["stop rare"]


def test_an_idle_model_yields_before_a_busy_one_whatever_their_rates() -> None:
    room = Device("w1", "g1", 20)
    models = loaded("busy", running=1), loaded("idle", rate=9.0, queued=0), wanting("new", waits=LONG)
    assert did(planned(*models, devices=(room,))) == ["stop idle"]


def test_one_job_does_not_take_the_memory_of_a_model_that_is_asked_for_all_the_time() -> None:
    popular = loaded("popular", rate=1.0)
    assert did(planned(popular, wanting("new", jobs=1, waits=10.0))) == []
    assert did(planned(popular, wanting("new", jobs=200, waits=10.0))) == ["stop popular"]
    assert did(planned(popular, wanting("new", jobs=1, waits=LONG))) == ["stop popular"]


def test_patience_is_never_more_than_the_bound_for_an_idle_model_and_twice_that_for_a_busy_one() -> None:
    popular, one = loaded("b", rate=1e9), wanting("a")
    assert patience(one, popular, resident(), RULES) <= RULES.max_swap_wait
    assert patience(one, popular, resident(running=1), RULES) <= 2 * RULES.max_swap_wait
    assert patience(wanting("a", jobs=50), loaded("b", queued=45), resident(running=5), RULES) == RULES.max_swap_wait


def test_a_busy_model_yields_sooner_to_many_jobs_than_to_few() -> None:
    busy = loaded("busy", running=4, queued=6, oldest_wait=3.0)
    for jobs, waits in ((10, 1.0), (5, 1.5), (1, 1.9)):
        assert did(planned(busy, wanting("new", jobs=jobs, waits=waits * RULES.max_swap_wait - 1))) == []
        assert did(planned(busy, wanting("new", jobs=jobs, waits=waits * RULES.max_swap_wait + 1))) == ["stop busy"]


def test_only_as_many_go_as_have_to() -> None:
    small, large = loaded("small", need=3), loaded("large", need=7, rate=0.001)
    assert did(planned(small, large, wanting("new", need=6, jobs=5))) == ["stop large"]


def test_a_large_model_keeps_the_room_that_becomes_free_once_it_is_overdue() -> None:
    shut = resident(memory=5, running=1, still_waiting=9)
    busy = replace(loaded("busy", need=5, running=1, queued=9), residents=(shut,))
    large, small = wanting("large", waits=LONG), wanting("small", need=5, jobs=99)
    assert did(planned(busy, large, small)) == []
    assert did(planned(busy, replace(large, oldest_wait=1.0), small)) == ["load small"]


def test_a_model_over_two_devices_is_loaded_where_both_have_room() -> None:
    devices = GPU, OTHER, Device("w2", "g3", 10)
    [action] = planned(wanting("wide", gpus=2), devices=devices).actions
    assert (action.worker, action.devices) == ("w2", ("g2", "g3"))


def test_a_model_whose_need_is_unknown_gets_a_device_of_its_own() -> None:
    devices = GPU, OTHER
    found = planned(loaded("small", need=1), model("new", None, queued=1), devices=devices)
    assert [(action.model, action.worker) for action in found.actions] == [("new", "w2")]


def test_a_model_that_fits_nowhere_is_named() -> None:
    found = planned(wanting("huge", need=11))
    assert (found.actions, found.waiting) == ((), {"huge": "it needs more memory than any worker has on one device"})


def test_a_model_whose_engine_failed_waits_for_an_operator() -> None:
    found = planned(loaded("bad", state=FAILED, need=0, queued=3))
    assert found.actions == ()
    assert "operator" in found.waiting["bad"]


def test_a_model_whose_engine_failed_on_one_worker_is_loaded_on_another() -> None:
    failed = loaded("bad", state=FAILED, need=0, queued=3)
    [action] = planned(replace(failed, need=10), devices=(GPU, OTHER)).actions
    assert (action.kind, action.worker) == ("load", "w2")


def test_jobs_without_any_worker_are_named() -> None:
    assert planned(wanting("a", workers=frozenset()), devices=()).waiting == {"a": "no worker can serve it"}
    told = planned(wanting("a", workers=frozenset({"w2"})), devices=(GPU,)).waiting
    assert told == {"a": "no worker that can serve it has a device to load it on"}


def test_a_model_is_loaded_only_where_it_can_be_served() -> None:
    only = wanting("a", workers=frozenset({"w2"}))
    [action] = planned(only, devices=(GPU, OTHER)).actions
    assert (action.worker, action.devices) == ("w2", ("g2",))
    assert did(planned(only, loaded("idle"))) == []


def test_memory_that_two_workers_can_use_is_there_only_once() -> None:
    shared = GPU, Device("w2", "g1", 10)
    assert did(planned(wanting("a"), wanting("b"), devices=shared)) == ["load a"]
    assert did(planned(loaded("old", running=1, queued=3), wanting("new"), devices=shared)) == []


def test_of_two_figures_for_one_device_the_smaller_one_counts() -> None:
    for devices in ((GPU, Device("w2", "g1", 9)), (Device("w2", "g1", 9), GPU)):
        assert did(planned(wanting("a"), devices=devices)) == []


def test_a_model_of_another_worker_yields_on_a_device_that_both_can_use() -> None:
    shared = GPU, Device("w2", "g1", 10)
    [action] = planned(loaded("old"), wanting("new", workers=frozenset({"w2"})), devices=shared).actions
    assert (action.kind, action.model, action.worker, action.devices) == ("stop", "old", "w1", ("g1",))


# Sleep.


def test_a_model_that_can_sleep_does_while_there_is_main_memory() -> None:
    old = loaded("old", can_sleep=True, host_need=4)
    assert did(planned(old, wanting("new"), host=4)) == ["sleep old"]
    assert did(planned(old, wanting("new"), host=3)) == ["stop old"]


def test_a_sleeping_model_is_woken_where_it_sleeps() -> None:
    asleep = loaded("a", state=SLEEPING, queued=1)
    devices = OTHER, GPU
    [action] = planned(replace(asleep, residents=(resident(SLEEPING, 1),)), devices=devices).actions
    assert (action.kind, action.worker) == ("wake", "w1")


def test_where_there_is_no_room_to_wake_it_a_sleeping_model_is_loaded_elsewhere() -> None:
    asleep = replace(loaded("a", queued=1), residents=(resident(SLEEPING, 1),))
    [action] = planned(asleep, loaded("busy", need=9, running=1, queued=1), devices=(GPU, OTHER)).actions
    assert (action.kind, action.worker) == ("load", "w2")


def test_a_model_that_sleeps_on_a_device_that_is_gone_is_loaded_elsewhere() -> None:
    asleep = replace(loaded("a", queued=1), residents=(resident(SLEEPING, 1, devices=("lost",)),))
    [action] = planned(asleep, devices=(GPU, OTHER)).actions
    assert (action.kind, action.worker) == ("load", "w2")


def test_a_model_is_not_woken_on_a_worker_that_cannot_serve_it_any_more() -> None:
    asleep = loaded("a", queued=1, workers=frozenset({"w2"}), residents=(resident(SLEEPING, 1),))
    [action] = planned(asleep, devices=(GPU, OTHER)).actions
    assert (action.kind, action.worker) == ("load", "w2")


def test_a_sleeping_model_that_holds_too_much_is_stopped() -> None:
    asleep = replace(loaded("asleep"), residents=(resident(SLEEPING, 2),))
    assert did(planned(asleep, wanting("new", need=9))) == ["stop asleep"]


def test_a_model_that_is_being_woken_does_not_yield_in_the_same_plan() -> None:
    asleep = replace(loaded("a", need=5, queued=9), residents=(resident(SLEEPING, 2),))
    assert did(planned(asleep, wanting("new", need=6))) == ["wake a"]


# Operators.


def test_a_pinned_model_is_loaded_without_work_and_never_yields() -> None:
    assert did(planned(model("a", 10, pinned=True))) == ["load a"]
    assert did(planned(loaded("a", pinned=True), wanting("new", waits=10 * LONG))) == []


def test_a_started_model_takes_the_room_of_others_but_not_of_pinned_ones() -> None:
    asked = model("asked", 10, wanted="on")
    assert did(planned(loaded("old", running=1), asked)) == ["stop old"]
    assert did(planned(loaded("old", pinned=True), asked)) == []


def test_a_stopped_model_stops_and_stays_away_though_jobs_wait() -> None:
    assert did(planned(loaded("a", wanted="off", running=1))) == ["stop a"]
    assert did(planned(loaded("a", wanted="off", pinned=True))) == ["stop a"]
    found = planned(wanting("a", wanted="off"), rules=FILL)
    assert (did(found), found.waiting) == ([], {"a": "an operator stopped it"})


def test_a_model_that_an_operator_put_to_sleep_is_left_alone() -> None:
    asleep = replace(loaded("a", wanted="asleep", queued=1, pinned=True), residents=(resident(SLEEPING, 3),))
    found = planned(asleep, wanting("new", need=8), rules=FILL)
    assert did(found) == []
    assert found.waiting["a"] == "an operator put it to sleep"
    assert did(planned(loaded("a", wanted="asleep"), wanting("new", waits=LONG))) == []
    assert did(planned(model("a", wanted="asleep", pinned=True), rules=FILL)) == []


def test_what_an_operator_refuses_holds_up_nobody_else() -> None:
    asleep = wanting("a", wanted="asleep")
    assert did(planned(asleep, model("b", expected=30.0))) == ["load b"]
    assert did(planned(asleep, model("b"), rules=FILL)) == ["load b"]


# Without automatic switching.


def test_without_automatic_switching_nobody_yields_to_demand() -> None:
    found = planned(loaded("old"), wanting("new", waits=LONG), rules=OFF)
    assert (did(found), found.waiting) == ([], {"new": "automatic switching is off"})


def test_without_automatic_switching_jobs_get_memory_that_is_free() -> None:
    assert did(planned(model("first"), wanting("a"), rules=OFF)) == ["load a"]


def test_without_automatic_switching_a_replica_yields_all_the_same() -> None:
    twice = loaded("twice", residents=(resident(), resident(worker="w2", devices=("g2",))))
    assert did(planned(twice, wanting("new"), rules=OFF, devices=(GPU, OTHER))) == ["stop twice"]


def test_without_automatic_switching_operators_get_what_they_ask_for() -> None:
    old = loaded("old")
    assert did(planned(old, model("new", wanted="on"), rules=OFF)) == ["stop old"]
    assert did(planned(old, model("new", pinned=True), rules=OFF)) == ["stop old"]
    assert did(planned(replace(old, wanted="off"), rules=OFF)) == ["stop old"]


def test_without_automatic_switching_nothing_is_loaded_by_pattern() -> None:
    old = replace(loaded("old", idle_for=1e6), residents=(resident(loaded_for=1e6),))
    assert did(planned(old, model("soon", expected=30.0), rules=OFF)) == []


def test_without_switching_and_fill_only_operators_load_anything() -> None:
    neither = Rules(enabled=False, fill=False)
    found = planned(wanting("a"), model("b"), rules=neither)
    assert (did(found), found.waiting) == ([], {"a": "automatic switching is off"})
    assert did(planned(wanting("a", wanted="on"), rules=neither)) == ["load a"]


# By pattern.


def test_what_is_expected_within_the_hour_is_loaded_into_free_memory() -> None:
    [action] = planned(model("a", 10, expected=30.0)).actions
    assert (action.kind, action.reason) == ("load", "about 30 jobs are expected within the hour, as a week ago")


def test_preloading_takes_only_memory_that_nobody_has_needed_for_long() -> None:
    soon = model("soon", 10, expected=30.0)
    old = replace(loaded("old"), residents=(resident(loaded_for=1e5),))
    assert did(planned(old, soon)) == []
    assert did(planned(replace(old, idle_for=1e4), soon)) == ["stop old"]
    assert did(planned(replace(old, idle_for=1e4, rate=0.01), soon)) == []
    assert did(planned(replace(old, idle_for=1e4, expected=25.0), soon)) == []


def test_nothing_is_preloaded_while_a_job_waits_for_its_model() -> None:
    busy = loaded("busy", need=5, running=1, queued=1)
    assert did(planned(busy, wanting("new"), model("soon", 5, expected=30.0))) == []


def test_what_was_just_evicted_is_not_preloaded() -> None:
    assert did(planned(model("a", 10, expected=30.0, away_for=RULES.cooldown - 1))) == []


def test_a_pinned_model_is_loaded_once_though_it_is_expected() -> None:
    assert did(planned(model("a", pinned=True, expected=30.0), devices=(GPU, OTHER))) == ["load a"]


def test_what_is_about_to_be_preloaded_keeps_its_room() -> None:
    going = loaded("old", need=6, state=STOPPING)
    assert did(planned(going, model("small", need=4), model("soon", expected=30.0), rules=FILL)) == []


def test_a_replica_that_is_idle_makes_room_for_what_is_expected() -> None:
    twice = loaded("twice", rate=1.0, residents=(resident(), resident(worker="w2", devices=("g2",))))
    soon = model("soon", expected=30.0)
    assert did(planned(twice, soon, devices=(GPU, OTHER))) == ["stop twice"]
    assert did(planned(replace(twice, queued=1), soon, devices=(GPU, OTHER))) == []


# With what is left.


def test_free_memory_is_filled_in_the_order_of_the_config() -> None:
    models = model("a", need=4), model("b", need=9), model("c", need=6), model("d", need=1)
    found = planned(*models, rules=FILL)
    assert did(found) == ["load a", "load c"]
    assert {action.reason for action in found.actions} == {"nobody waits for this memory"}


def test_fill_evicts_nobody() -> None:
    assert did(planned(model("a"), loaded("old", need=6, idle_for=1e6), rules=FILL)) == []


def test_models_that_are_loaded_nowhere_come_before_second_engines() -> None:
    both = GPU, OTHER
    assert did(planned(loaded("a"), model("b"), rules=FILL, devices=both)) == ["load b"]
    [action] = planned(loaded("a"), model("b", need=11), rules=FILL, devices=both).actions
    assert (action.kind, action.model, action.worker) == ("load", "a", "w2")


def test_a_model_has_one_engine_at_most_on_a_worker() -> None:
    assert did(planned(loaded("a"), rules=FILL, devices=(GPU, Device("w1", "g2", 10)))) == []


def test_fill_wakes_what_sleeps_where_there_is_room() -> None:
    assert did(planned(replace(loaded("a"), residents=(resident(SLEEPING, 1),)), rules=FILL)) == ["wake a"]


@pytest.mark.parametrize(
    "unwelcome",
    [
        model("a", wanted="off"),
        model("a", wanted="asleep"),
        model("a", away_for=RULES.cooldown - 1),
        model("a", workers=frozenset({"w2"})),
        loaded("a", state=FAILED, need=0),
        loaded("a", state=STOPPING, need=0),
    ],
    ids=["stopped", "asleep", "just evicted", "not to be served there", "failed there", "going"],
)
def test_nothing_is_filled_in_that_should_not_be_there(unwelcome: Model) -> None:
    assert did(planned(replace(unwelcome, need=10), rules=FILL)) == []


def test_a_second_engine_is_not_filled_in_while_one_is_going() -> None:
    assert did(planned(loaded("a", state=STOPPING), rules=FILL, devices=(GPU, OTHER))) == []


def test_nothing_is_filled_in_where_somebody_waits() -> None:
    busy = loaded("busy", need=5, running=1, queued=1)
    assert did(planned(busy, wanting("new"), model("small", need=5), rules=FILL)) == []
    going = loaded("back", need=5, state=DRAINING, running=1, queued=3)
    assert did(planned(going, model("small", need=5), rules=FILL)) == []


def test_somebody_who_waits_for_one_worker_does_not_hold_up_the_filling_of_another() -> None:
    here = frozenset({"w1"})
    waiting = loaded("busy", running=1, queued=1, workers=here), wanting("new", workers=here)
    assert did(planned(*waiting, model("a"), rules=FILL, devices=(GPU, OTHER))) == ["load a"]


def test_a_replica_yields_at_once_and_without_a_gate_but_its_model_stays_loaded() -> None:
    busy: dict[str, Any] = {"running": 5, "still_waiting": 9, "loaded_for": 1.0}
    pair = resident(**busy), resident(worker="w2", devices=("g2",), **busy)
    twice = loaded("twice", queued=50, rate=9.0, residents=pair)
    found = planned(twice, wanting("x", waits=0.1), wanting("y", waits=0.1), rules=FILL, devices=(GPU, OTHER))
    assert did(found) == ["stop twice"]
    assert found.waiting["y"] == "all that is loaded has work of its own to do first"
    held = replace(twice, pinned=True)
    assert did(planned(held, wanting("x"), wanting("y", waits=LONG), devices=(GPU, OTHER))) == ["stop twice"]


def test_a_replica_yields_before_an_idle_model_that_is_loaded_once() -> None:
    room = Device("w1", "g1", 20)
    twice = loaded("twice", rate=1.0, residents=(resident(running=1), resident(worker="w2", devices=("g2",))))
    assert did(planned(twice, loaded("once"), wanting("new"), devices=(room, OTHER))) == ["stop twice"]


def test_both_engines_of_a_model_are_not_evicted_for_one_that_needs_both_their_places() -> None:
    shared = GPU, Device("w1", "g2", 10), Device("w2", "g1", 10), Device("w2", "g2", 10)
    busy: dict[str, Any] = {"running": 1, "still_waiting": 1}
    twice = loaded("twice", residents=(resident(**busy), resident(worker="w2", devices=("g2",), **busy)))
    wide = wanting("wide", gpus=2, workers=WORKERS | {"w3"})
    third = Device("w3", "g1", 10), Device("w3", "g2", 10)
    assert did(planned(twice, wide, devices=(*shared, *third))) == []

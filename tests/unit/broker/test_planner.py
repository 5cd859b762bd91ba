"""Which models are loaded: rule by rule, and what holds whatever comes."""

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

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

GPU = Device("w1", 0, 10)
RULES = Rules()
LONG = RULES.max_swap_wait + 1


def resident(state: str = READY, memory: int = 10, **of: Any) -> Resident:
    """One that has been loaded for ten minutes and has claimed all that waited then."""
    return Resident(**{"worker": "w1", "devices": (0,), "state": state, "memory": memory, "loaded_for": 600.0, **of})


def loaded(name: str, *, need: int = 10, state: str = READY, running: int = 0, **of: Any) -> Model:
    held = resident(state, need, running=running)
    return Model(name, need, **{"residents": (held,), "idle_for": 0.0 if running else 60.0, **of})


def wanting(name: str, *, need: int = 10, jobs: int = 1, waits: float = 1.0, **of: Any) -> Model:
    return Model(name, need, queued=jobs, oldest_wait=waits, **of)


def planned(*models: Model, devices: tuple[Device, ...] = (GPU,), host: int = 0, rules: Rules = RULES) -> Plan:
    return plan(Snapshot(models, devices, rules, {"w1": host, "w2": host}))


def did(found: Plan) -> list[str]:
    return [f"{action.kind} {action.model}" for action in found.actions]


# On demand.


def test_a_job_for_an_unloaded_model_gets_it_loaded_into_free_memory() -> None:
    [action] = planned(wanting("a", jobs=3, waits=2.0)).actions
    assert action == Action("load", "a", "w1", (0,), "3 jobs wait for it, the oldest for 2 s")


def test_nothing_is_done_where_nothing_waits() -> None:
    assert planned(loaded("a"), Model("b", 10)) == Plan()


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
    young = replace(loaded("old"), residents=(resident(loaded_for=RULES.min_residency - 1),))
    assert did(planned(young, wanting("new", waits=LONG))) == []


def test_a_busy_model_goes_on_until_another_has_waited_too_long() -> None:
    busy = loaded("busy", running=2, queued=5, oldest_wait=3.0)
    assert did(planned(busy, wanting("new", waits=RULES.max_swap_wait - 1))) == []
    assert did(planned(busy, wanting("new", waits=LONG))) == ["drain busy"]


def test_the_gate_holds_until_all_that_waited_at_the_load_has_been_claimed() -> None:
    shut = resident(running=2, waiting_when_loaded=20, claimed_since_loaded=19)
    opened = replace(shut, claimed_since_loaded=20)
    late = wanting("new", waits=10 * LONG)
    assert did(planned(replace(loaded("busy", running=2, queued=5), residents=(shut,)), late)) == []
    assert did(planned(replace(loaded("busy", running=2, queued=5), residents=(opened,)), late)) == ["drain busy"]


def test_the_gate_opens_after_a_whole_turn_so_that_a_queue_without_end_holds_nobody_off() -> None:
    endless = resident(running=2, waiting_when_loaded=100_000, loaded_for=RULES.turn - 1)
    assert not gate_open(endless, RULES)
    assert gate_open(replace(endless, loaded_for=RULES.turn), RULES)


def test_a_drained_model_stops_and_one_with_work_in_flight_is_awaited() -> None:
    assert did(planned(loaded("old", state=DRAINING, running=1), wanting("new"))) == []
    assert did(planned(loaded("old", state=DRAINING), wanting("new"))) == ["stop old"]


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
    room = Device("w1", 0, 20)
    popular, rare = loaded("popular", rate=0.01), loaded("rare", rate=0.001)
    assert did(planned(popular, rare, wanting("new", jobs=5), devices=(room,))) == ["stop rare"]


def test_an_idle_model_yields_before_a_busy_one_whatever_their_rates() -> None:
    room = Device("w1", 0, 20)
    models = loaded("busy", running=1), loaded("idle", rate=9.0, queued=0), wanting("new", waits=LONG)
    assert did(planned(*models, devices=(room,))) == ["stop idle"]


def test_one_job_does_not_take_the_memory_of_a_model_that_is_asked_for_all_the_time() -> None:
    popular = loaded("popular", rate=1.0)
    assert did(planned(popular, wanting("new", jobs=1, waits=10.0))) == []
    assert did(planned(popular, wanting("new", jobs=200, waits=10.0))) == ["stop popular"]
    assert did(planned(popular, wanting("new", jobs=1, waits=LONG))) == ["stop popular"]


def test_patience_is_never_more_than_the_bound() -> None:
    assert patience(wanting("a", jobs=0), loaded("b", rate=1e9), RULES) <= RULES.max_swap_wait


def test_only_as_many_go_as_have_to() -> None:
    room = Device("w1", 0, 10)
    small, large = loaded("small", need=3), loaded("large", need=7, rate=0.001)
    assert did(planned(small, large, wanting("new", need=6, jobs=5), devices=(room,))) == ["stop large"]


def test_a_large_model_keeps_the_room_that_becomes_free_once_it_is_overdue() -> None:
    shut = resident(memory=5, running=1, waiting_when_loaded=9)
    busy = replace(loaded("busy", need=5, running=1, queued=9), residents=(shut,))
    large, small = wanting("large", waits=LONG), wanting("small", need=5, jobs=99)
    assert did(planned(busy, large, small)) == []
    assert did(planned(busy, replace(large, oldest_wait=1.0), small)) == ["load small"]


def test_a_model_over_two_devices_is_loaded_where_both_have_room() -> None:
    devices = Device("w1", 0, 10), Device("w2", 0, 10), Device("w2", 1, 10)
    [action] = planned(wanting("wide", gpus=2), devices=devices).actions
    assert (action.worker, action.devices) == ("w2", (0, 1))


def test_a_model_whose_need_is_unknown_gets_a_device_of_its_own() -> None:
    devices = Device("w1", 0, 10), Device("w2", 0, 10)
    found = planned(loaded("small", need=1), Model("new", None, queued=1), devices=devices)
    assert [(action.model, action.worker) for action in found.actions] == [("new", "w2")]


def test_a_model_that_fits_nowhere_is_named() -> None:
    found = planned(wanting("huge", need=11))
    assert (found.actions, found.waiting) == ((), {"huge": "it needs more memory than any worker has on one device"})


def test_a_model_whose_engine_failed_waits_for_an_operator() -> None:
    found = planned(loaded("bad", state=FAILED, need=0, queued=3))
    assert found.actions == ()
    assert "operator" in found.waiting["bad"]


def test_jobs_without_any_worker_are_named() -> None:
    assert planned(wanting("a"), devices=()).waiting == {"a": "no worker has a device to load it on"}


# Sleep.


def test_a_model_that_can_sleep_does_while_there_is_main_memory() -> None:
    old = loaded("old", can_sleep=True, host_need=4)
    assert did(planned(old, wanting("new"), host=4)) == ["sleep old"]
    assert did(planned(old, wanting("new"), host=3)) == ["stop old"]


def test_a_sleeping_model_is_woken_where_it_sleeps() -> None:
    asleep = loaded("a", state=SLEEPING, queued=1)
    devices = Device("w2", 0, 10), GPU
    [action] = planned(replace(asleep, residents=(resident(SLEEPING, 1),)), devices=devices).actions
    assert (action.kind, action.worker) == ("wake", "w1")


def test_a_sleeping_model_that_holds_too_much_is_stopped() -> None:
    asleep = replace(loaded("asleep"), residents=(resident(SLEEPING, 2),))
    assert did(planned(asleep, wanting("new", need=9))) == ["stop asleep"]


# Operators.


def test_a_pinned_model_is_loaded_without_work_and_never_yields() -> None:
    assert did(planned(Model("a", 10, pinned=True))) == ["load a"]
    assert did(planned(loaded("a", pinned=True), wanting("new", waits=10 * LONG))) == []


def test_a_started_model_takes_the_room_of_others_but_not_of_pinned_ones() -> None:
    asked = Model("asked", 10, wanted="on")
    assert did(planned(loaded("old", running=1), asked)) == ["drain old"]
    assert did(planned(loaded("old", pinned=True), asked)) == []


def test_a_stopped_model_drains_stops_and_stays_away_though_jobs_wait() -> None:
    assert did(planned(loaded("a", wanted="off", running=1))) == ["drain a"]
    assert did(planned(loaded("a", wanted="off"))) == ["stop a"]
    assert did(planned(wanting("a", wanted="off"))) == []


def test_without_auto_switch_only_operators_load_anything() -> None:
    off = Rules(enabled=False)
    assert did(planned(wanting("a"), rules=off)) == []
    assert did(planned(replace(wanting("a"), wanted="on"), rules=off)) == ["load a"]


# By pattern.


def test_what_is_expected_within_the_hour_is_loaded_into_free_memory() -> None:
    [action] = planned(Model("a", 10, expected=30.0)).actions
    assert (action.kind, action.reason) == ("load", "about 30 jobs are expected within the hour, as a week ago")


def test_preloading_takes_only_memory_that_nobody_has_needed_for_long() -> None:
    soon = Model("soon", 10, expected=30.0)
    old = replace(loaded("old"), residents=(resident(loaded_for=1e5),))
    assert did(planned(old, soon)) == []
    assert did(planned(replace(old, idle_for=1e4), soon)) == ["stop old"]
    assert did(planned(replace(old, idle_for=1e4, rate=0.01), soon)) == []
    assert did(planned(replace(old, idle_for=1e4, expected=25.0), soon)) == []


def test_nothing_is_preloaded_while_a_job_waits_for_its_model() -> None:
    busy = loaded("busy", need=5, running=1, queued=1)
    assert did(planned(busy, wanting("new"), Model("soon", 5, expected=30.0))) == []


def test_what_was_just_evicted_is_not_preloaded() -> None:
    assert did(planned(Model("a", 10, expected=30.0, away_for=RULES.cooldown - 1))) == []


# Whatever comes.


@dataclass
class World:
    """A machine that does what it is told, second by second."""

    random: Random
    devices: tuple[Device, ...]
    models: dict[str, Model]
    service: float = 20.0
    places: int = 4
    swaps: int = 0
    queues: dict[str, list[float]] = field(default_factory=dict)
    running: dict[str, list[float]] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    now: float = 0.0

    def submit(self, name: str) -> None:
        self.queues.setdefault(name, []).append(self.now)

    def tick(self, step: float) -> None:
        self.now += step
        for name, model in self.models.items():
            self.running[name] = [end for end in self.running.get(name, []) if end > self.now]
            self._advance(name, model, step)
        self.obey(plan(Snapshot(tuple(self.models.values()), self.devices)))

    def _advance(self, name: str, model: Model, step: float) -> None:
        queue, running = self.queues.setdefault(name, []), self.running[name]
        one = model.residents[0] if model.residents else None
        if one and one.state == STARTING and self.now >= self.due[name]:
            one = replace(one, state=READY, loaded_for=0.0, waiting_when_loaded=len(queue), claimed_since_loaded=0)
        elif one and one.state == READY:
            one = replace(one, loaded_for=one.loaded_for + step)
        while one and one.state == READY and queue and len(running) < self.places:
            queue.pop(0)
            running.append(self.now + self.random.expovariate(1 / self.service))
            one = replace(one, claimed_since_loaded=one.claimed_since_loaded + 1)
        busy = bool(queue or running)
        self.models[name] = replace(
            model,
            queued=len(queue),
            oldest_wait=self.now - queue[0] if queue else 0.0,
            idle_for=0.0 if busy else model.idle_for + step,
            away_for=model.away_for + step,
            residents=(replace(one, running=len(running)),) if one else (),
        )

    def obey(self, found: Plan) -> None:
        for action in found.actions:
            model = self.models[action.model]
            match action.kind:
                case "load":
                    assert not model.residents
                    self._start(model, action)
                case "drain":
                    assert not model.pinned
                    self._become(model, DRAINING)
                case _:
                    assert not model.pinned
                    assert not self.running[action.model], "evicted with work in flight"
                    self.models[action.model] = replace(model, residents=(), away_for=0.0)
        self.check_memory()

    def _start(self, model: Model, action: Action) -> None:
        self.swaps += 1
        self.due[model.name] = self.now + model.load
        new = Resident(action.worker, action.devices, STARTING, model.need or 0)
        self.models[model.name] = replace(model, residents=(new,))

    def _become(self, model: Model, state: str) -> None:
        self.models[model.name] = replace(model, residents=(replace(model.residents[0], state=state),))

    def check_memory(self) -> None:
        for device in self.devices:
            held = [
                one.memory
                for model in self.models.values()
                for one in model.residents
                if one.worker == device.worker and device.index in one.devices
            ]
            assert sum(held) <= device.memory, "memory was promised twice"


def worlds() -> st.SearchStrategy[World]:
    def built(seed: int, sizes: list[int], devices: int, pinned: bool) -> World:
        room = tuple(Device(f"w{number % 2}", number // 2, 10) for number in range(devices))
        models = {
            f"m{number}": Model(f"m{number}", min(10, abs(size)), gpus=2 if size < 0 and devices >= 3 else 1, load=20.0)
            for number, size in enumerate(sizes)
        }
        if pinned:
            models["pin"] = Model("pin", 2, pinned=True, load=20.0)
        return World(Random(seed), room, models)

    sizes = st.lists(st.integers(-8, 8).filter(bool), min_size=2, max_size=6)
    return st.builds(built, st.integers(0, 2**32), sizes, st.integers(1, 4), st.booleans())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(worlds(), st.floats(0.02, 0.6))
def test_no_work_in_flight_is_evicted_memory_is_kept_and_every_waiting_model_gets_its_turn(
    world: World, pressure: float
) -> None:
    seen: set[str] = set()
    names = [name for name in world.models if name != "pin"]
    for _ in range(400):
        for name in names:
            if world.random.random() < pressure:
                world.submit(name)
        world.tick(5.0)
        seen |= {name for name, model in world.models.items() if any(one.state == READY for one in model.residents)}
    for _ in range(3000):
        if not any(world.queues.values()):
            break
        world.tick(5.0)
        seen |= {name for name, model in world.models.items() if any(one.state == READY for one in model.residents)}
    assert not any(world.queues.values()), "somebody was never served"
    assert seen >= set(names) - {name for name in names if not world.running[name] and not world.queues[name]}
    if "pin" in world.models:
        assert world.models["pin"].residents, "a pinned model was evicted"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.floats(0.1, 0.9))
def test_two_models_on_room_for_one_swap_no_more_often_than_the_bound_allows(seed: int, pressure: float) -> None:
    world = World(Random(seed), (GPU,), {name: Model(name, 10, load=20.0, rate=1.0) for name in "ab"})
    for _ in range(2000):
        for name in "ab":
            if world.random.random() < pressure:
                world.submit(name)
        world.tick(2.0)
    assert world.swaps >= 2
    assert world.swaps <= 2 + world.now / (20.0 + RULES.min_residency)
    if pressure > 0.5:
        assert world.swaps <= 2 + world.now / RULES.max_swap_wait

"""What holds whatever comes: plans carried out second by second on machines that do what they are told."""

from dataclasses import dataclass, field, replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.planner import plan
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
    Resident,
    Rules,
    Snapshot,
)

RULES = Rules()
_ASLEEP, _LOAD = 1, 20.0
_Key = tuple[str, str]


@dataclass
class Engine:
    resident: Resident
    due: float = 0.0
    ready_at: float = 0.0
    ends: list[float] = field(default_factory=list)
    to_sleep: bool = False


@dataclass
class World:
    """Machines on which engines load, drain and sleep as workers make them, in steps of some seconds."""

    random: Random
    devices: tuple[Device, ...]
    models: dict[str, Model]
    rules: Rules = RULES
    engines: dict[_Key, Engine] = field(default_factory=dict)
    queues: dict[str, list[float]] = field(default_factory=dict)
    used_at: dict[str, float] = field(default_factory=dict)
    gone_at: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    swaps: int = 0

    def submit(self, name: str) -> None:
        self.queues.setdefault(name, []).append(self.now)

    def of(self, name: str) -> list[Engine]:
        return [engine for (model, _), engine in self.engines.items() if model == name]

    def tick(self, step: float) -> tuple[Action, ...]:
        self.now += step
        for key, engine in list(self.engines.items()):
            self.advance(key, engine)
        return self.obey()

    def advance(self, key: _Key, engine: Engine) -> None:
        name, queue = key[0], self.queues.setdefault(key[0], [])
        engine.ends = [end for end in engine.ends if end > self.now]
        state = engine.resident.state
        if state == STARTING and self.now >= engine.due:
            engine.ready_at = self.now
            self.become(engine, READY)
        elif state == READY and self.models[name].wanted in ("off", "asleep"):
            self.leave(key, engine, to_sleep=self.models[name].wanted == "asleep")
        elif state in (DRAINING, STOPPING) and not engine.ends:
            self.gone(key, engine)
        while engine.resident.state == READY and queue and len(engine.ends) < 4:
            queue.pop(0)
            engine.ends.append(self.now + self.random.expovariate(1 / 20.0))
        if engine.ends or queue:
            self.used_at[name] = self.now

    def become(self, engine: Engine, state: str, memory: int | None = None) -> None:
        held = engine.resident.memory if memory is None else memory
        engine.resident = replace(engine.resident, state=state, memory=held)

    def leave(self, key: _Key, engine: Engine, *, to_sleep: bool) -> None:
        engine.to_sleep = to_sleep
        self.become(engine, DRAINING if engine.ends else STOPPING)

    def gone(self, key: _Key, engine: Engine) -> None:
        self.gone_at[key[0]] = self.now
        if engine.to_sleep:
            self.become(engine, SLEEPING, _ASLEEP)
        else:
            del self.engines[key]

    def seen(self) -> Snapshot:
        models = tuple(self.model(name) for name in self.models)
        return Snapshot(models, self.devices, self.rules, {"w0": 2, "w1": 2})

    def model(self, name: str) -> Model:
        queue = self.queues.get(name, [])
        residents = tuple(
            replace(
                engine.resident,
                running=len(engine.ends),
                loaded_for=self.now - engine.ready_at if engine.resident.state == READY else 0.0,
                still_waiting=sum(at < engine.ready_at for at in queue),
            )
            for engine in self.of(name)
        )
        return replace(
            self.models[name],
            queued=len(queue),
            oldest_wait=self.now - queue[0] if queue else 0.0,
            idle_for=self.now - self.used_at.get(name, float("-inf")),
            away_for=self.now - self.gone_at.get(name, float("-inf")),
            residents=residents,
        )

    def obey(self) -> tuple[Action, ...]:
        found = plan(self.seen())
        leaving = {(action.model, action.worker) for action in found.actions if action.kind in ("sleep", "stop")}
        assert len({(action.model, action.worker) for action in found.actions}) == len(found.actions)
        for action in found.actions:
            if action.kind in ("load", "wake"):
                self.start(action)
            else:
                self.end(action, leaving)
        self.check_memory()
        return found.actions

    def start(self, action: Action) -> None:
        model, key = self.models[action.model], (action.model, action.worker)
        assert action.worker in model.workers
        assert model.wanted not in ("off", "asleep")
        assert {(action.worker, uuid) for uuid in action.devices} <= {(d.worker, d.uuid) for d in self.devices}
        assert len(set(action.devices)) == model.gpus
        if action.kind == "wake":
            assert self.engines[key].resident.state == SLEEPING
            assert self.engines[key].resident.devices == action.devices
        else:
            assert key not in self.engines, "a second engine of a model on one worker"
        self.swaps += 1
        new = Resident(action.worker, action.devices, STARTING, model.need or 0)
        self.engines[key] = Engine(new, due=self.now + model.load)

    def end(self, action: Action, leaving: set[_Key]) -> None:
        model, engine = self.models[action.model], self.engines[action.model, action.worker]
        stay = [
            other
            for (name, worker), other in self.engines.items()
            if name == model.name and (name, worker) not in leaving and other.resident.state == READY
        ]
        assert model.wanted != "asleep"
        assert not (model.pinned or model.wanted == "on") or stay or model.wanted == "off", "a held model was evicted"
        assert engine.resident.state in (READY, STARTING, SLEEPING)
        if not self.rules.enabled and model.wanted != "off":
            assert stay or any(m.pinned or m.wanted == "on" for m in self.models.values()), "evicted for demand"
        self.leave((action.model, action.worker), engine, to_sleep=action.kind == "sleep")

    def check_memory(self) -> None:
        for uuid, memory in {device.uuid: device.memory for device in self.devices}.items():
            held = [engine.resident.memory for engine in self.engines.values() if uuid in engine.resident.devices]
            assert sum(held) <= memory, "memory was promised twice"


def made(draw: st.DrawFn, rules: Rules) -> World:
    """Up to six models and four GPUs of two workers, each with its own or all with all; every model fits somewhere."""
    gpus = [f"g{number}" for number in range(draw(st.integers(1, 4)))]
    shared = draw(st.booleans())
    devices = tuple(
        Device(f"w{worker}", uuid, 10)
        for worker in (0, 1)
        for number, uuid in enumerate(gpus)
        if shared or number % 2 == worker
    )
    models = {}
    for number, size in enumerate(draw(st.lists(st.integers(-8, 8).filter(bool), min_size=2, max_size=6))):
        wide = size < 0 and sum(device.worker == "w0" for device in devices) >= 2
        workers = frozenset({"w0"} if draw(st.booleans()) else {"w0", "w1"})
        can_sleep = draw(st.booleans())
        name = f"m{number}"
        models[name] = Model(
            name, abs(size), workers, gpus=2 if wide else 1, load=_LOAD, can_sleep=can_sleep, host_need=1
        )
    return World(Random(draw(st.integers(0, 2**32))), devices, models, rules)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world = made(draw, Rules(fill=draw(st.booleans())))
    if draw(st.booleans()):
        world.models["pin"] = Model("pin", 2, frozenset({"w0", "w1"}), pinned=True, load=_LOAD)
    return world


@st.composite
def quiet_worlds(draw: st.DrawFn) -> World:
    """Nothing is queued; operators have asked for this and that, some engines have failed, some models have habits."""
    world = made(draw, Rules(enabled=draw(st.booleans())))
    for name, model in world.models.items():
        wanted = draw(st.sampled_from(["auto", "auto", "auto", "on", "off", "asleep"]))
        expected = draw(st.sampled_from([0.0, 0.0, 3.0, 30.0]))
        rate = draw(st.sampled_from([0.0, 0.0, 0.01]))
        pinned = draw(st.integers(0, 5)) == 0
        world.models[name] = replace(model, wanted=wanted, expected=expected, rate=rate, pinned=pinned)
        if draw(st.integers(0, 4)) == 0:
            world.engines[name, "w0"] = Engine(Resident("w0", (), FAILED, 0))
    return world


@settings(max_examples=30, derandomize=True)
@given(worlds(), st.floats(0.02, 0.6))
def test_memory_is_kept_held_models_stay_and_every_waiting_model_gets_its_turn(world: World, pressure: float) -> None:
    names = [name for name in world.models if name != "pin"]
    for _ in range(400):
        for name in names:
            if world.random.random() < pressure:
                world.submit(name)
        world.tick(5.0)
    for _ in range(3000):
        if not any(world.queues.values()):
            break
        world.tick(5.0)
    assert not any(world.queues.values()), "somebody was never served"
    if "pin" in world.models:
        assert any(engine.resident.state == READY for engine in world.of("pin")), "a pinned model was evicted"


@settings(max_examples=20, derandomize=True)
@given(st.integers(0, 2**32), st.floats(0.1, 0.9))
def test_two_models_on_room_for_one_swap_no_more_often_than_the_bound_allows(seed: int, pressure: float) -> None:
    workers = frozenset({"w0"})
    models = {name: Model(name, 10, workers, load=_LOAD, rate=1.0) for name in "ab"}
    world = World(Random(seed), (Device("w0", "g0", 10),), models)
    for _ in range(2000):
        for name in "ab":
            if world.random.random() < pressure:
                world.submit(name)
        world.tick(2.0)
    assert world.swaps >= 2
    assert world.swaps <= 2 + world.now / (_LOAD + RULES.min_residency)
    if pressure > 0.5:
        assert world.swaps <= 2 + world.now / RULES.max_swap_wait


@settings(max_examples=60, derandomize=True)
@given(quiet_worlds())
def test_with_nothing_queued_plans_come_to_rest_with_the_memory_filled(world: World) -> None:
    for _ in range(400):
        world.tick(20.0)
    rest = [world.tick(20.0) for _ in range(100)]
    assert not any(rest), "it goes on for ever"
    settled = world.seen()
    room = {device.uuid: device.memory for device in world.devices}
    for engine in world.engines.values():
        for uuid in engine.resident.devices:
            room[uuid] -= engine.resident.memory
    for model in settled.models:
        asleep = any(resident.state == SLEEPING for resident in model.residents)
        if plan(settled).waiting or model.wanted in ("off", "asleep") or asleep:
            continue
        for worker in model.workers - {resident.worker for resident in model.residents}:
            free = [d.uuid for d in world.devices if d.worker == worker and room[d.uuid] >= (model.need or 0)]
            assert len(free) < model.gpus, f"{model.name} would have fitted on {worker}"


@settings(max_examples=30, derandomize=True)
@given(worlds(), st.floats(0.02, 0.3))
def test_without_automatic_switching_only_replicas_yield(world: World, pressure: float) -> None:
    world.models.pop("pin", None)
    world.rules = Rules(enabled=False)
    for _ in range(200):
        for name in world.models:
            if world.random.random() < pressure:
                world.submit(name)
        loaded = {name for name, _ in world.engines}
        world.tick(5.0)
        assert loaded <= {name for name, _ in world.engines}

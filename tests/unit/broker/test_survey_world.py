"""Survey, planner and orders together against workers that hear late, begin late and tell late: whatever happens, and
whoever leads, no device is ever promised twice.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.demand import Demand
from broker.desired import Desired, Wanted
from broker.devices import Others
from broker.planner import plan
from broker.plans import Order
from broker.registry import DeviceState, ModelState, Worker
from broker.snapshot import Rules
from broker.survey import Facts, orders_after, survey

TOTAL = 10
NEEDS = {"a": 4, "b": 6, "c": 10, "d": 3}
DEVICE = {"w1": "shared", "w2": "shared", "w3": "own"}
ASLEEP = 1
# Seconds that a worker is silent at most.
BEAT = 5.0


@dataclass
class Engine:
    """``taken``: bytes that it holds by now."""

    state: str
    since: datetime
    device: str = ""
    taken: int = 0


@dataclass
class World:
    random: Random
    now: datetime = datetime(2026, 11, 21, tzinfo=UTC)
    engines: dict[tuple[str, str], Engine] = field(default_factory=dict)
    told: dict[str, Worker] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    desired: dict[str, Desired] = field(default_factory=dict)
    demand: dict[str, Demand] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    seen_of_others: Others = field(default_factory=lambda: Others({}))
    loads: int = 0

    def __post_init__(self) -> None:
        self.others = {device: self.random.choice((0, 0, 2)) for device in DEVICE.values()}
        self.engines = {(model, worker): Engine("stopped", self.now) for model in NEEDS for worker in DEVICE}
        for worker in DEVICE:
            self.beat(worker)

    # What may happen.

    def pass_time(self) -> None:
        """With a leader that plans each second or so."""
        for _ in range(self.random.randint(1, 20)):
            self.now += timedelta(seconds=self.random.uniform(0.1, BEAT / 3))
            for worker, told in self.told.items():
                if (self.now - told.last_seen).total_seconds() > BEAT / 2:
                    self.beat(worker)
            self.lead()

    def beat(self, worker: str | None = None) -> None:
        worker = worker or self.random.choice(list(DEVICE))
        device = DEVICE[worker]
        free = TOTAL - self.others[device] - sum(e.taken for e in self.engines.values() if e.device == device)
        states = {
            model: ModelState(
                engine.state == "ready",
                engine.state,
                since=engine.since,
                managed=True,
                gpus=(engine.device,) if engine.device else (),
                memory_bytes=engine.taken if engine.state in ("ready", "sleeping", "draining") else None,
                need_bytes=NEEDS[model],
                can_sleep=True,
            )
            for (model, there), engine in self.engines.items()
            if there == worker
        }
        devices = (DeviceState(device, TOTAL, free),)
        self.told[worker] = Worker(worker, worker, 7, self.now, self.now, False, states, devices, host_memory=3)

    def reconcile(self) -> None:
        worker = self.random.choice(list(DEVICE))
        orders = {order.model: order for order in self.orders if order.worker == worker}
        for (model, there), engine in self.engines.items():
            if there == worker:
                self.obey(model, engine, orders.get(model))

    def obey(self, model: str, engine: Engine, order: Order | None) -> None:
        wanted = Wanted.STOPPED if order is None else order.wanted
        asked = self.desired.get(model, Desired(model)).wanted
        if asked in (Wanted.STOPPED, Wanted.SLEEPING):
            wanted = asked
        match engine.state, wanted:
            case "stopped", Wanted.RUNNING:
                assert order is not None
                self.loads += 1
                self.to(engine, "starting", order.gpus[0])
            case "starting", Wanted.STOPPED:
                self.to(engine, "stopping")
            case "ready", Wanted.STOPPED | Wanted.SLEEPING:
                self.to(engine, "draining")
            case "sleeping", Wanted.STOPPED:
                self.to(engine, "stopping")
            case "sleeping", Wanted.RUNNING:
                engine.taken = NEEDS[model]
                self.to(engine, "ready")
            case "draining", Wanted.SLEEPING:
                engine.taken = ASLEEP
                self.to(engine, "sleeping")
            case "draining", _:
                self.to(engine, "stopping")

    def to(self, engine: Engine, state: str, device: str | None = None) -> None:
        engine.state, engine.since = state, self.now
        engine.device = engine.device if device is None else device

    def go_on(self) -> None:
        """Engines load, and let go of what they held, a little at a time."""
        for (model, worker), engine in self.engines.items():
            if engine.state == "starting":
                engine.taken = min(NEEDS[model], engine.taken + self.random.randint(1, 5))
                if engine.taken == NEEDS[model]:
                    self.to(engine, "ready")
            elif engine.state == "stopping":
                engine.taken = max(0, engine.taken - self.random.randint(1, 8))
                if not engine.taken:
                    self.to(engine, "stopped")
            else:
                continue
            if self.random.random() < 0.5:
                self.beat(worker)

    def crash(self) -> None:
        engine = self.random.choice(list(self.engines.values()))
        if engine.state in ("starting", "ready", "sleeping", "draining"):
            engine.taken = 0
            self.to(engine, "stopped")

    def ask(self) -> None:
        model = self.random.choice(list(NEEDS))
        wanted = self.random.choice((None, None, None, *Wanted))
        self.desired[model] = Desired(model, wanted, pinned=self.random.random() < 0.2)

    def submit(self) -> None:
        model = self.random.choice(list(NEEDS))
        jobs = self.random.choice((0, 0, 1, 5, 50))
        waits = self.random.uniform(0, 600) if jobs else 0.0
        self.demand[model] = Demand(jobs, waits, rate=jobs / 300, idle_for=0.0 if jobs else 4000.0)

    def lead(self) -> None:
        facts = Facts(
            now=self.now,
            models=tuple(NEEDS),
            workers=list(self.told.values()),
            known=frozenset(DEVICE),
            desired=dict(self.desired),
            orders=tuple(self.orders),
            demand=dict(self.demand),
            others=self.seen_of_others.known(),
            rules=Rules(min_residency=5.0, cooldown=20.0),
        )
        found = survey(facts)
        self.seen_of_others.note(self.now, found.devices)
        self.orders, _ = orders_after(facts, plan(found.snapshot))

    def change_of_leaders(self) -> None:
        self.seen_of_others = Others(self.seen_of_others.known())
        self.lead()

    # What has to hold.

    def promised(self, device: str) -> int:
        """What is on the device once everything that has been begun there is done."""
        return self.others[device] + sum(
            NEEDS[model] if engine.state in ("starting", "ready") else engine.taken
            for (model, _), engine in self.engines.items()
            if engine.device == device
        )


EVENTS = (
    *((World.lead,) * 4),
    *((World.reconcile,) * 4),
    *((World.go_on,) * 3),
    *((World.pass_time,) * 2),
    World.beat,
    World.crash,
    World.ask,
    World.submit,
    World.change_of_leaders,
)


@settings(max_examples=60, derandomize=True)
@given(st.integers(0, 2**32))
def test_no_device_is_ever_promised_twice(seed: int) -> None:
    world = World(Random(seed))
    for _ in range(150):
        event = world.random.choice(EVENTS)
        world.now += timedelta(milliseconds=1)
        event(world)
        for device in set(DEVICE.values()):
            assert world.promised(device) <= TOTAL, f"after {event.__name__}: {world.engines} {world.orders}"


def test_in_that_world_much_is_loaded() -> None:
    """Or the test above would be easy to pass."""
    world = World(Random(7))
    for _ in range(2000):
        world.random.choice(EVENTS)(world)
    assert world.loads > 40

"""The engines of a worker on a real broker: what operators want, what the plan orders, and what becomes of it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.broker import Broker
from broker.desired import Wanted
from broker.measurements import Measurement
from broker.parameters import Parameters
from broker.plans import Order
from broker.registry import ModelState
from config import Settings
from tests.conditions import eventually
from tests.deployments import default_config, make_settings, order
from tests.unit.worker.puppets import Puppet, Sleeper
from worker.engine_host import UNKNOWN
from worker.engine_state import MAX_STARTS, EngineState
from worker.engines.base import Engine, Footprint
from worker.fleet import Fleet
from worker.worker import new_identity

S = EngineState
PLAIN, BIG = "plain", "big"
FIRST, SECOND = ("GPU-1",), ("GPU-2",)


@pytest.fixture
def settings(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Settings:
    config = default_config()
    simulator = config["models"]["simulator"] | {"aliases": []}
    config["queue"] |= {"poll_interval": 0.1, "drain_timeout": 0.4}
    config["models"] = {PLAIN: simulator, BIG: simulator | {"memory": "1GB"}}
    config["defaults"] = {}
    return make_settings(tmp_path, mongod_uri, database.name, config)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_state._BACKOFF", 0.01)
    monkeypatch.setattr("worker.fleet.ABILITY", 0.1)
    monkeypatch.setattr("worker.fleet.HEALTH", 0.1)


class Site:
    """A fleet, what runs on its engines, and those who tell it what to do."""

    def __init__(self, broker: Broker, engines: Mapping[str, Engine]) -> None:
        self.broker = broker
        self.handed_back: list[str] = []
        self.running: set[str] = set()
        self.fleet = Fleet(broker, engines, self)

    def busy(self, model: str) -> bool:
        return model in self.running

    def hand_back(self, model: str) -> None:
        self.handed_back.append(model)
        self.running.discard(model)

    async def order(self, wanted: Wanted | None, gpus: tuple[str, ...] = FIRST) -> None:
        """``wanted`` None: no order stands any more."""
        assert self.broker.worker is not None
        orders = [] if wanted is None else [Order(BIG, self.broker.worker, wanted, gpus, "the test wants it")]
        await order(self.broker, *orders)

    def told(self, model: str = BIG) -> ModelState:
        return self.fleet.states()[model]

    async def becomes(self, state: EngineState, model: str = BIG) -> None:
        async def there() -> bool:
            return self.told(model).state == state

        await eventually(there, every=0.005)

    async def crashes(self, least: int) -> list[tuple[str, str, str]]:
        """Code, message and outcome, the oldest first."""

        async def there() -> bool:
            return len(await self.broker.crashes.newest()) >= least

        await eventually(there)
        entries = reversed(await self.broker.crashes.newest())
        return [(entry["code"], entry["message"], entry["outcome"]) for entry in entries]

    async def polls(self, times: int = 3) -> None:
        """The fleet has looked so many times more at what is wanted of it."""
        reads, orders_to = 0, self.broker.plans.orders_to

        async def counted(worker: str) -> Mapping[str, Order]:
            nonlocal reads
            found = await orders_to(worker)
            reads += 1
            return found

        async def enough() -> bool:
            return reads > times

        self.broker.plans.orders_to = counted  # type: ignore[method-assign]
        await eventually(enough)
        self.broker.plans.orders_to = orders_to  # type: ignore[method-assign]


@asynccontextmanager
async def fleet_on(settings: Settings, engine: Engine | None = None) -> AsyncIterator[Site]:
    broker = await Broker.open(settings, worker=new_identity())
    broker.start()
    await broker.ready.wait()
    site = Site(broker, {PLAIN: Puppet(), BIG: Sleeper() if engine is None else engine})
    running = asyncio.create_task(site.fleet.run())
    try:
        yield site
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await site.fleet.close()
        await broker.close()


async def test_what_takes_no_memory_runs_by_itself_and_what_does_only_by_order(settings: Settings) -> None:
    async with fleet_on(settings) as site:
        await site.becomes(S.READY, PLAIN)
        await site.becomes(S.STOPPED)
        await site.polls()
        assert (site.told().state, site.fleet.ready()) == ("stopped", [PLAIN])
        assert (site.told().managed, site.told(PLAIN).managed) == (True, False)


async def test_orders_are_carried_out_one_after_the_other(settings: Settings) -> None:
    engine = Sleeper()
    async with fleet_on(settings, engine) as site:
        for wanted, state in (
            (Wanted.RUNNING, S.READY),
            (Wanted.SLEEPING, S.SLEEPING),
            (Wanted.RUNNING, S.READY),
            (Wanted.STOPPED, S.STOPPED),
            (Wanted.RUNNING, S.READY),
            (None, S.STOPPED),
        ):
            await site.order(wanted)
            await site.becomes(state)
        assert engine.calls == ["start", "sleep", "wake", "stop", "start", "stop"]


async def test_an_engine_stays_on_its_gpus_and_takes_those_of_its_order_when_it_starts(settings: Settings) -> None:
    engine = Sleeper()
    async with fleet_on(settings, engine) as site:
        await site.order(Wanted.RUNNING, FIRST)
        await site.becomes(S.READY)
        await site.order(Wanted.RUNNING, SECOND)
        await site.polls()
        assert (engine.calls, tuple(engine.gpus), site.told().gpus) == (["start"], FIRST, FIRST)
        await site.order(None)
        await site.becomes(S.STOPPED)
        await site.order(Wanted.RUNNING, SECOND)
        await site.becomes(S.READY)
        assert (tuple(engine.gpus), site.told().gpus) == (SECOND, SECOND)


async def test_an_operators_word_goes_before_an_order_until_it_is_taken_back(settings: Settings) -> None:
    async with fleet_on(settings) as site:
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)
        stopped = await site.broker.desired.stop(BIG, "ann")
        await site.becomes(S.STOPPED)
        assert site.told().version == stopped.version
        await site.polls()
        assert site.told().state == "stopped"
        await site.broker.desired.automatic(BIG, "ann")
        await site.becomes(S.READY)
        await site.broker.desired.sleep(BIG, "ann")
        await site.becomes(S.SLEEPING)
        await site.broker.desired.wake(BIG, "ann")
        await site.becomes(S.READY)


async def test_an_operators_start_waits_for_the_order_that_says_where(settings: Settings) -> None:
    async with fleet_on(settings) as site:
        await site.becomes(S.STOPPED)
        started = await site.broker.desired.start(BIG, "ann")

        async def heard() -> bool:
            return site.told().version == started.version

        await eventually(heard)
        await site.polls()
        assert site.told().state == "stopped"
        await site.order(Wanted.RUNNING, SECOND)
        await site.becomes(S.READY)
        assert site.told().gpus == SECOND


@pytest.mark.parametrize(("wanted", "state"), [(Wanted.STOPPED, S.STOPPED), (Wanted.SLEEPING, S.SLEEPING)])
async def test_the_plan_waits_for_what_runs_however_long_that_takes(
    settings: Settings, wanted: Wanted, state: EngineState
) -> None:
    async with fleet_on(settings) as site:
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)
        site.running.add(BIG)
        await site.order(wanted)
        await site.becomes(S.DRAINING)
        await site.polls(8)  # twice the limit of an operator's stop
        assert (site.told().state, site.handed_back) == ("draining", [])
        site.running.discard(BIG)
        site.fleet.job_ended(BIG)
        await site.becomes(state)
        assert site.running == set()


async def test_an_operators_stop_waits_only_so_long(settings: Settings) -> None:
    async with fleet_on(settings) as site:
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)
        site.running.add(BIG)
        await site.broker.desired.stop(BIG, "ann")
        await site.becomes(S.DRAINING)
        assert site.handed_back == []
        await site.becomes(S.STOPPED)
        assert site.handed_back == [BIG]


async def test_a_restart_ends_in_another_start(settings: Settings) -> None:
    engine = Sleeper()
    async with fleet_on(settings, engine) as site:
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)
        await site.broker.desired.restart(BIG, "ann")

        async def again() -> bool:
            return engine.calls == ["start", "stop", "start"] and site.told().state == "ready"

        await eventually(again)


async def test_an_engine_that_dies_is_started_again_and_the_crash_log_says_why(settings: Settings) -> None:
    engine = Sleeper()
    async with fleet_on(settings, engine) as site:
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)
        engine.die("it was killed by SIGKILL")

        async def again() -> bool:
            return engine.calls == ["start", "start"] and site.told().state == "ready"

        await eventually(again)
        assert await site.crashes(1) == [("engine_died", "it was killed by SIGKILL", "restarted")]


async def test_an_engine_that_dies_asleep_stays_down_until_it_is_ordered_to_run(settings: Settings) -> None:
    engine = Sleeper()
    async with fleet_on(settings, engine) as site:
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)
        await site.order(Wanted.SLEEPING)
        await site.becomes(S.SLEEPING)
        engine.die("it was killed by SIGKILL")
        await site.becomes(S.STOPPED)
        await site.polls()
        assert site.told().reason == "it was killed by SIGKILL"
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)


async def test_a_wake_that_fails_becomes_a_start(settings: Settings) -> None:
    engine = Sleeper()
    async with fleet_on(settings, engine) as site:
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)
        await site.order(Wanted.SLEEPING)
        await site.becomes(S.SLEEPING)
        engine.failure = RuntimeError("the canary was not answered")
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)
        assert engine.calls == ["start", "sleep", "wake", "stop", "start"]


async def test_a_failed_engine_is_tried_again_only_when_an_operator_has_acted(settings: Settings) -> None:
    engine = Sleeper(fails=MAX_STARTS)
    async with fleet_on(settings, engine) as site:
        await site.order(Wanted.RUNNING)
        await site.becomes(S.FAILED)
        reason = "no GPU on this machine"
        crashes = [("engine_start_failed", reason, outcome) for outcome in ("retried", "retried", "failed")]
        assert await site.crashes(MAX_STARTS) == crashes
        await site.order(None)
        await site.order(Wanted.RUNNING, SECOND)
        await site.polls()
        assert (site.told().state, site.told().reason) == ("failed", reason)
        await site.broker.desired.start(BIG, "ann")
        await site.becomes(S.READY)


async def test_a_failed_engine_that_an_operator_touches_is_stopped_until_there_is_an_order(settings: Settings) -> None:
    async with fleet_on(settings, Sleeper(fails=MAX_STARTS)) as site:
        await site.order(Wanted.RUNNING)
        await site.becomes(S.FAILED)
        await site.order(None)
        await site.polls()
        await site.broker.desired.start(BIG, "ann")
        await site.becomes(S.STOPPED)
        await site.polls()
        assert site.told().state == "stopped"


async def test_a_model_whose_weights_arrive_becomes_able_without_a_restart(settings: Settings) -> None:
    engine = Sleeper()
    engine.inability = "weights missing"
    async with fleet_on(settings, engine) as site:
        assert site.told().state == UNKNOWN
        await site.order(Wanted.RUNNING)

        async def says_why() -> bool:
            return site.told().state == "weights missing"

        await eventually(says_why)
        await site.polls()
        assert (site.told().able, engine.calls) == (False, [])
        engine.inability = None
        await site.becomes(S.READY)


async def test_what_is_measured_is_told_and_known_to_the_next_worker(settings: Settings) -> None:
    engine = Sleeper()
    engine.holds = Footprint(5000, 10)
    async with fleet_on(settings, engine) as site:
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)
        await site.order(Wanted.SLEEPING)
        await site.becomes(S.SLEEPING)
        measurements = site.broker.measurements

        async def noted() -> bool:
            found = (await measurements.all()).get(BIG, Measurement())
            return (found.memory_bytes, found.host_bytes) == (5000, 700) and found.sleep_seconds is not None

        await eventually(noted)
    async with fleet_on(settings) as site:

        async def known() -> bool:
            return site.told().load_seconds is not None

        await eventually(known)
        assert (site.told().host_bytes, site.told().need_bytes) == (700, 2**30), "what is configured goes before"


async def test_each_start_is_for_as_many_runs_as_operators_want_now(settings: Settings) -> None:
    engine = Sleeper()
    async with fleet_on(settings, engine) as site:
        await site.broker.models.change(BIG, Parameters(max_concurrent=33), "ann")
        await site.order(Wanted.RUNNING)
        await site.becomes(S.READY)
        assert engine.max_concurrent == 33


async def test_a_worker_that_retires_starts_nothing_any_more(settings: Settings) -> None:
    async with fleet_on(settings) as site:
        await site.becomes(S.READY, PLAIN)
        site.fleet.retire()
        await site.order(Wanted.RUNNING)
        await site.polls()
        assert (site.told().state, site.told(PLAIN).state) == ("stopped", "ready")


async def test_a_machine_without_gpus_has_its_main_memory_for_a_device(settings: Settings) -> None:
    async with fleet_on(settings) as site:
        devices = await site.fleet.devices()
        if devices[0].uuid.startswith("GPU-"):
            pytest.skip("this machine has a GPU")
        (device,) = devices
        assert device.uuid.startswith("host:")
        assert 0 < device.free <= device.total == site.fleet.host_memory

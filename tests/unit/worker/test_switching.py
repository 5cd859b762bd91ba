"""Jobs of a worker whose engine is ordered to sleep or to stop: nothing is sent to an engine that does not run."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from broker.broker import Broker
from broker.desired import Wanted
from broker.plans import Order
from tests.conditions import eventually
from tests.deployments import order
from tests.unit.worker.puppets import Sleeper
from tests.unit.worker.workers import MODEL, Configure, ended, leased_to, submitted, working
from worker.engine_state import EngineState
from worker.engines.base import Chunk, Request, Result


class Drowsy(Sleeper):
    """Notes what is sent to it while it does not run, which would hang. Runs until it may end."""

    def __init__(self) -> None:
        super().__init__()
        self.awake = False
        self.sent_asleep = 0
        self.runs = asyncio.Event()
        self.may_end = asyncio.Event()

    async def start(self) -> None:
        await super().start()
        self.awake = True

    async def sleep(self) -> None:
        self.awake = False
        await super().sleep()

    async def wake(self) -> None:
        await super().wake()
        self.awake = True

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.sent_asleep += not self.awake
        self.runs.set()
        await self.may_end.wait()
        yield Result({"text": "done"})


async def told(broker: Broker, state: EngineState) -> None:
    """The worker has said that its engine is in that state."""

    async def there() -> bool:
        return [worker.models[MODEL].state for worker in await broker.registry.live_workers()] == [state]

    await eventually(there)


async def ordered(broker: Broker, wanted: Wanted) -> None:
    assert broker.worker is not None
    await order(broker, Order(MODEL, broker.worker, wanted))


async def test_a_job_that_is_claimed_while_its_engine_is_put_to_sleep_is_handed_back(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, claimed, may_go_on = Drowsy(), asyncio.Event(), asyncio.Event()
    engine.may_end.set()
    async with working(configure(lease=300.0), engine) as (broker, _):
        await ordered(broker, Wanted.RUNNING)
        await told(broker, EngineState.READY)
        claim = broker.queue.claim

        async def held(*asked: Any) -> Any:
            claims = await claim(*asked)
            if claims.jobs:
                claimed.set()
                await may_go_on.wait()
            return claims

        monkeypatch.setattr(broker.queue, "claim", held)
        job = await submitted(broker)
        await claimed.wait()
        await ordered(broker, Wanted.SLEEPING)
        await told(broker, EngineState.SLEEPING)
        may_go_on.set()

        async def back() -> bool:
            document = await broker.database.jobs_local.find_one({"_id": job.id}) or {}
            return (document["status"], document["attempts"]) == ("queued", 0)

        await eventually(back)
        await ordered(broker, Wanted.RUNNING)
        done = await ended(broker, job)
    assert (done.status, done.attempts, engine.sent_asleep) == ("completed", 1, 0)


async def test_what_is_leased_to_a_worker_whose_engine_sleeps_is_handed_back(configure: Configure) -> None:
    engine, settings = Drowsy(), configure(lease=300.0)
    engine.may_end.set()
    async with working(settings, engine) as (broker, worker):
        await ordered(broker, Wanted.RUNNING)
        await told(broker, EngineState.READY)
        await ordered(broker, Wanted.SLEEPING)
        await told(broker, EngineState.SLEEPING)
        job = await leased_to(worker, settings, broker)

        async def back() -> bool:
            document = await broker.database.jobs_local.find_one({"_id": job.id}) or {}
            return (document["status"], document["attempts"]) == ("queued", 0)

        await eventually(back)  # long before it would lapse
        await ordered(broker, Wanted.RUNNING)
        await ended(broker, job)
    assert engine.sent_asleep == 0


@pytest.mark.parametrize("wanted", [Wanted.SLEEPING, Wanted.STOPPED])
async def test_an_engine_that_the_plan_takes_away_first_ends_what_runs(configure: Configure, wanted: Wanted) -> None:
    engine = Drowsy()
    async with working(configure(lease=300.0), engine) as (broker, _):
        await ordered(broker, Wanted.RUNNING)
        job = await submitted(broker)
        await engine.runs.wait()
        await ordered(broker, wanted)
        await told(broker, EngineState.DRAINING)
        late = await submitted(broker)
        engine.may_end.set()
        done = await ended(broker, job)
        await told(broker, EngineState.SLEEPING if wanted is Wanted.SLEEPING else EngineState.STOPPED)
        waiting = await broker.reader.get(str(late.id), None)
        assert (done.status, done.attempts, waiting.status) == ("completed", 1, "queued")
        await ordered(broker, Wanted.RUNNING)
        assert (await ended(broker, late)).attempts == 1
    assert engine.sent_asleep == 0

"""One engine under a random course of orders, failures and deaths: it always ends up as it is wanted."""

import asyncio
import random

import pytest

from broker.desired import Desired, Wanted
from broker.errors import EngineError
from tests.unit.worker.puppets import Sleeper, kept
from worker.engine_state import EngineState
from worker.reconciler import Action, action_for

S = EngineState


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_state._BACKOFF", 0.01)


class Moody(Sleeper):
    """Does what it is told after a while, or fails, or dies, as the dice fall. Refuses what comes at a wrong time."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.dice = dice
        self.moody = True
        self.condition = "down"
        self.misused: list[str] = []

    async def _takes_its_time(self) -> None:
        for _ in range(self.dice.randrange(4)):
            await asyncio.sleep(0)
        if self.moody and self.dice.random() < 0.2:
            raise EngineError("a bad day")

    async def _step(self, needs: str, after: str) -> None:
        if self.condition != needs:
            self.misused.append(f"{after} when it was {self.condition}")
        self.condition = "changing"
        await self._takes_its_time()
        self.condition = after

    async def start(self) -> None:
        try:
            await self._step("down", "up")
        except BaseException:
            self.condition = "down"
            raise
        self._death = asyncio.get_running_loop().create_future()

    async def sleep(self) -> None:
        await self._step("up", "asleep")

    async def wake(self) -> None:
        await self._step("asleep", "up")

    async def stop(self) -> None:
        await asyncio.sleep(0)
        self.condition = "down"

    async def until_death(self) -> str:
        reason = await super().until_death()
        self.condition = "down"
        return reason

    def may_die(self) -> None:
        if self._death is not None and not self._death.done() and self.dice.random() < 0.1:
            self.die("it was killed")


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_is_wanted_and_whatever_happens_it_ends_up_as_it_is_wanted(seed: int) -> None:
    dice = random.Random(seed)
    engine, version, order, loop = Moody(dice), 0, Wanted.RUNNING, asyncio.get_running_loop()
    async with kept(engine) as it:
        host = it.host
        await host.look()
        do = {
            Action.START: lambda: host.start(Desired("model", version=version)),
            Action.DRAIN: host.drain,
            Action.STOP: host.stop,
            Action.SLEEP: host.sleep,
            Action.WAKE: host.wake,
            Action.RESET: host.reset,
        }

        def reconcile() -> None:
            desired = Desired("model", version=version)
            if action := action_for(desired, host.actual(idle=True), order):
                do[action]()
            host.version = version

        for _ in range(300):
            if dice.random() < 0.1:
                order = dice.choice(list(Wanted))
                version += dice.random() < 0.5
            engine.may_die()
            reconcile()
            await asyncio.sleep(0)
        engine.moody = False
        lasting = ((Wanted.RUNNING, S.READY), (Wanted.SLEEPING, S.SLEEPING), (Wanted.STOPPED, S.STOPPED))
        for order, state in lasting:  # noqa: B007 - ``reconcile`` goes by it
            version += 1
            deadline = loop.time() + 10
            while not (host.state is state and not host.busy):
                assert loop.time() < deadline, f"it is {host.state} and should be {state}"
                reconcile()
                await asyncio.sleep(0)
    assert engine.misused == []

"""What one process at a time does for all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from pymongo.errors import AutoReconnect

from broker.clockwork import Leadership
from broker.database import Database
from broker.duty import Duty
from tests.conditions import eventually

LONG = 3600.0


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks at the lease there are milliseconds."""
    monkeypatch.setattr("broker.duty.LEASE", 0.06)


class Steps:
    """A step that counts how often it was taken. ``pause``: what it returns; ``fails``: what it raises next."""

    def __init__(self, pause: float = LONG) -> None:
        self.taken = 0
        self.pause = pause
        self.fails: list[Exception] = []

    async def step(self) -> float:
        self.taken += 1
        if self.fails:
            raise self.fails.pop()
        return self.pause

    def reach(self, number: int) -> Callable[[], Awaitable[bool]]:
        async def reached() -> bool:
            return self.taken >= number

        return reached


@asynccontextmanager
async def on_duty(store: Database, step: Callable[[], Awaitable[float]], again: float = LONG) -> AsyncIterator[Duty]:
    duty = Duty(store, "sweeping", step, again)
    duty.start()
    try:
        yield duty
    finally:
        await duty.close()


async def test_the_first_step_is_taken_as_soon_as_the_lease_is_held(store: Database) -> None:
    steps = Steps()
    async with on_duty(store, steps.step):
        await eventually(steps.reach(1))
    assert steps.taken == 1


async def test_a_step_is_taken_again_after_the_pause_that_it_asks_for(store: Database) -> None:
    steps = Steps(pause=0.01)
    async with on_duty(store, steps.step):
        await eventually(steps.reach(5))


async def test_whoever_is_woken_does_not_wait_for_the_pause_to_end(store: Database) -> None:
    steps = Steps()
    async with on_duty(store, steps.step) as duty:
        await eventually(steps.reach(1))
        duty.wake()
        await eventually(steps.reach(2))


async def test_news_that_come_during_a_step_lead_to_another_one(store: Database) -> None:
    begun, go_on, taken = asyncio.Event(), asyncio.Event(), 0

    async def step() -> float:
        nonlocal taken
        taken += 1
        begun.set()
        await go_on.wait()
        return LONG

    async def twice() -> bool:
        return taken == 2

    async with on_duty(store, step) as duty:
        await begun.wait()
        duty.wake()
        assert taken == 1
        go_on.set()
        await eventually(twice)


async def test_only_who_holds_the_lease_acts(store: Database) -> None:
    mine, theirs = Steps(), Steps()
    async with on_duty(store, mine.step) as first:
        await eventually(mine.reach(1))
        async with on_duty(store, theirs.step) as second:
            second.wake()
            first.wake()
            await eventually(mine.reach(2))
            assert not second.leadership.held
            assert theirs.taken == 0


async def test_the_next_process_takes_over_at_once_when_the_first_is_closed(store: Database) -> None:
    mine, theirs = Steps(), Steps()
    async with on_duty(store, mine.step) as first:
        await eventually(mine.reach(1))
        async with on_duty(store, theirs.step) as second:
            await first.close()
            # It is free, and not in five seconds, or taken already.
            free = {"$lte": ["$expires_at", "$$NOW"]}
            taken = {"$gt": ["$epoch", first.leadership.epoch]}
            assert await store.locks.find_one({"_id": "sweeping", "$expr": {"$or": [free, taken]}}) is not None
            await eventually(theirs.reach(1))
            assert second.leadership.held
    assert mine.taken == 1


async def test_another_name_is_another_duty(store: Database) -> None:
    mine, theirs = Steps(), Steps()
    other = Duty(store, "dusting", theirs.step, LONG)
    async with on_duty(store, mine.step):
        other.start()
        await eventually(mine.reach(1))
        await eventually(theirs.reach(1))
        await other.close()


@pytest.mark.parametrize("fault", [AutoReconnect("connection closed"), ValueError("a mistake of ours")])
async def test_a_step_that_fails_is_tried_again(store: Database, fault: Exception) -> None:
    steps = Steps()
    steps.fails = [fault]
    async with on_duty(store, steps.step, again=0.01):
        await eventually(steps.reach(2))


@pytest.mark.parametrize("fault", [AutoReconnect("connection closed"), ValueError("a mistake of ours")])
async def test_nothing_is_done_while_the_lease_cannot_be_renewed(
    store: Database, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    steps = Steps(pause=0.01)
    async with on_duty(store, steps.step) as duty:
        await eventually(steps.reach(1))
        seek = Leadership.seek

        async def away(_: Leadership) -> bool:
            raise fault

        async def idle() -> bool:
            return not duty.leadership.held

        monkeypatch.setattr(Leadership, "seek", away)
        await eventually(idle)
        taken = steps.taken
        duty.wake()
        monkeypatch.setattr(Leadership, "seek", seek)
        await eventually(steps.reach(taken + 1))
        assert duty.leadership.held


async def test_closing_ends_a_step_under_way_and_gives_the_lease_back(store: Database) -> None:
    begun = asyncio.Event()

    async def endless() -> float:
        begun.set()
        await asyncio.Event().wait()
        return LONG

    async with on_duty(store, endless) as duty:
        await begun.wait()
        await duty.close()
    assert await Leadership(store, "sweeping").seek()


async def test_one_that_was_never_started_can_be_closed(store: Database) -> None:
    await Duty(store, "sweeping", Steps().step, LONG).close()

"""Two leaders at once: one that does not know yet that its time is over, and the next one."""

import asyncio
from collections.abc import Mapping
from typing import Any

from broker.clockwork import Leadership
from broker.database import Database
from broker.desired import Wanted
from broker.plans import Order, Overview, Plans

OLD, NEW = 1, 2


def load(model: str, worker: str = "w1") -> Order:
    return Order(model, worker, Wanted.RUNNING, ("GPU-0",), "jobs wait for it")


class Halted(Plans):
    """Stops before its write reaches the database, until it is let go on."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.halts, self.goes_on = asyncio.Event(), asyncio.Event()

    async def _set(self, changes: Mapping[str, Any], epoch: int) -> bool:
        self.halts.set()
        await self.goes_on.wait()
        return await super()._set(changes, epoch)


async def test_the_late_write_of_an_older_leader_changes_nothing_and_adds_nothing(store: Database) -> None:
    late, newer = Halted(store), Plans(store)
    await newer.write([load("standing")], Overview(), OLD)
    writing = asyncio.create_task(late.write([load("standing"), load("too late")], Overview(waiting={"a": "b"}), OLD))
    await late.halts.wait()
    assert await newer.take(NEW)
    seen = await newer.orders()
    late.goes_on.set()
    assert not await writing
    assert await newer.orders() == seen == (load("standing"),)
    assert (await newer.look()).overview == Overview()


async def test_what_an_older_leader_has_written_in_time_is_seen_by_the_next(store: Database) -> None:
    late, newer = Halted(store), Plans(store)
    writing = asyncio.create_task(late.write([load("in time")], Overview(), OLD))
    await late.halts.wait()
    late.goes_on.set()
    assert await writing
    assert await newer.take(NEW)
    assert await newer.orders() == (load("in time"),)


async def test_of_leaders_that_write_at_the_same_time_the_newest_one_s_plan_stands(store: Database) -> None:
    async def lead(epoch: int) -> list[bool]:
        plans = Plans(store)
        if not await plans.take(epoch):
            return []
        return [await plans.write([load(f"model of {epoch}")], Overview(), epoch) for _ in range(20)]

    written = await asyncio.gather(*(lead(epoch) for epoch in range(1, 9)))
    standing = await Plans(store).look()
    assert standing.epoch == 8
    assert written[7] == [True] * 20
    assert standing.orders == (load("model of 8"),)
    for outcomes in written:
        assert outcomes == sorted(outcomes, reverse=True), "who was shut out once has never written again"


async def test_two_that_begin_at_once_on_an_empty_database_leave_one_plan(store: Database) -> None:
    first, second = Plans(store), Plans(store)
    await asyncio.gather(first.take(1), second.take(2))
    assert await second.take(2)
    assert await store.plans.count_documents({}) == 1


async def test_each_change_of_holder_is_a_new_epoch_and_a_renewal_is_not(store: Database) -> None:
    first, second = Leadership(store), Leadership(store)
    await first.seek()
    assert await first.seek()
    assert await first.seek()
    assert not await second.seek()
    assert (first.held, first.epoch, second.held) == (True, 1, False)
    await first.resign()
    assert await second.seek()
    assert second.epoch == 2
    assert not await first.seek()
    assert (first.held, first.epoch) == (False, 1), "it plans with what it last knew to hold, and writes nothing"

"""Writes that wait for each other go in one command, and none waits for ever."""

import asyncio
from collections.abc import Sequence

import pytest
from pymongo.errors import AutoReconnect

from broker.group_commit import GroupCommit


class Table:
    """Writes what it is given, a batch for each ``let_go``."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.fault: BaseException | None = None
        self._turn = asyncio.Semaphore(0)

    def let_go(self) -> None:
        self._turn.release()

    async def write(self, items: Sequence[int]) -> list[int | Exception]:
        await self._turn.acquire()
        self.batches.append(list(items))
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        return [ValueError(item) if item < 0 else item * 2 for item in items]


async def put(commit: GroupCommit[int, int], *items: int) -> list[asyncio.Task[int]]:
    """Each of its own task, in this order."""
    tasks = [asyncio.create_task(commit.put(item)) for item in items]
    await asyncio.sleep(0)
    return tasks


async def test_what_comes_while_a_command_is_under_way_goes_in_the_next_one() -> None:
    table = Table()
    commit = GroupCommit(table.write, most=3)
    tasks = [*await put(commit, 1)]
    await asyncio.sleep(0)
    tasks += await put(commit, 2, 3, 4, 5)
    for _ in range(3):
        table.let_go()
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8, 10]
    assert table.batches == [[1], [2, 3, 4], [5]]


async def test_one_that_cannot_be_encoded_takes_no_other_with_it() -> None:
    async def write(items: Sequence[int]) -> list[int]:
        if 13 in items:
            raise OverflowError("not this one")
        return [item * 2 for item in items]

    one, bad, other = await put(GroupCommit(write), 1, 13, 2)
    assert (await one, await other) == (2, 4)
    with pytest.raises(OverflowError, match="not this one"):
        await bad


async def test_a_command_that_fails_is_not_sent_again_in_parts() -> None:
    table = Table()
    table.fault = AutoReconnect("away")
    table.let_go()
    tasks = await put(GroupCommit(table.write), 1, 2)
    assert [type(outcome) for outcome in await asyncio.gather(*tasks, return_exceptions=True)] == [AutoReconnect] * 2
    assert table.batches == [[1, 2]]


async def test_an_outcome_that_is_an_error_befalls_its_item_alone() -> None:
    table = Table()
    commit = GroupCommit(table.write)
    one, other = await put(commit, 1, -1)
    table.let_go()
    assert await one == 2
    with pytest.raises(ValueError, match="-1"):
        await other


@pytest.mark.parametrize(("fault", "told"), [(AutoReconnect("away"), "away"), (asyncio.CancelledError(), "broken off")])
async def test_a_command_that_fails_befalls_its_batch_and_not_those_that_come_after(
    fault: BaseException, told: str
) -> None:
    table = Table()
    commit = GroupCommit(table.write)
    table.fault = fault
    tasks = await put(commit, 1, 2)
    table.let_go()
    for task in tasks:
        with pytest.raises(AutoReconnect, match=told):
            await asyncio.wait_for(task, 5)
    (later,) = await put(commit, 3)
    table.let_go()
    assert await asyncio.wait_for(later, 5) == 6


async def test_who_is_cancelled_takes_no_write_back() -> None:
    table = Table()
    commit = GroupCommit(table.write)
    one, other = await put(commit, 1, 2)
    one.cancel()
    table.let_go()
    assert await other == 4
    assert table.batches == [[1, 2]]

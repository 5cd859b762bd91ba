"""Whose page is next."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from ocr.document import in_turn
from ocr.turns import PageTurns, next_turn


def test_the_document_with_the_fewest_pages_under_way_goes_first_then_the_oldest() -> None:
    assert next_turn([1, 2], {1: 2, 2: 1}) == 2
    assert next_turn([2, 1, 3], {1: 1, 2: 1}) == 3
    assert next_turn([2, 1], {}) == 2


def test_pages_that_were_begun_too_often_come_last_each_of_them_alone() -> None:
    assert in_turn([1, 2, 3, 4, 5], {2: 3, 3: 1, 4: 2}) == ([1, 3, 5], [4, 2])


class Document:
    def __init__(self, turns: PageTurns, log: list[str], name: str) -> None:
        self._turns, self._log, self._name = turns, log, name
        self.may_end = asyncio.Event()

    async def read(self) -> None:
        async with self._turns.take(self):
            self._log.append(self._name)
            await self.may_end.wait()


async def test_a_large_document_shuts_no_small_one_out() -> None:
    turns, log = PageTurns(2), list[str]()
    big, small = Document(turns, log, "big"), Document(turns, log, "small")
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(big.read())
        for _ in range(2):  # to ask for a turn, and to take it
            await asyncio.sleep(0)
        assert log == ["big", "big"]
        group.create_task(small.read())
        await asyncio.sleep(0)
        big.may_end.set()
        small.may_end.set()
    assert log == ["big", "big", "small", "big", "big", "big"]


async def test_who_gives_up_while_waiting_or_in_the_moment_of_its_turn_keeps_no_place() -> None:
    turns = PageTurns(1)
    documents = [object() for _ in range(3)]

    async def wait(document: object) -> None:
        async with turns.take(document):
            pytest.fail("it was cancelled before")

    async with AsyncExitStack() as first:
        await first.enter_async_context(turns.take(documents[0]))
        waiting = [asyncio.create_task(wait(document)) for document in documents[1:]]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.wait({waiting[1]})
    # Its turn has come, but it has not run since.
    waiting[0].cancel()
    await asyncio.wait(waiting)
    async with asyncio.timeout(5), turns.take(documents[0]):
        """The place is free."""

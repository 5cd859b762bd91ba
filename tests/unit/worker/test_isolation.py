"""Who may run beside whom on one engine."""

import asyncio

import pytest

from worker.isolation import Isolation, Visit


class Runs:
    """Runs that end when they are told to."""

    def __init__(self) -> None:
        self.isolation = Isolation()
        self.inside: list[str] = []
        self.visits: dict[str, Visit] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, name: str, *, alone: bool = False) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._run(name, alone))
        await self.settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await self.settle()

    async def give_up(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await self.settle()

    async def settle(self) -> None:
        """Lets everybody go on who can."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def _run(self, name: str, alone: bool) -> None:
        async with self.isolation.visit(alone=alone) as visit:
            self.visits[name] = visit
            self.inside.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.inside.remove(name)


@pytest.fixture
def runs() -> Runs:
    return Runs()


async def test_ordinary_jobs_run_side_by_side_and_know_it(runs: Runs) -> None:
    await runs.begin("first")
    assert not runs.visits["first"].accompanied
    await runs.begin("second")
    assert runs.inside == ["first", "second"]
    assert runs.visits["first"].accompanied
    assert runs.visits["second"].accompanied


async def test_one_after_the_other_is_no_company(runs: Runs) -> None:
    await runs.begin("first")
    await runs.end("first")
    await runs.begin("second")
    assert not runs.visits["first"].accompanied
    assert not runs.visits["second"].accompanied


async def test_a_suspect_waits_until_the_engine_is_empty_and_keeps_everybody_out(runs: Runs) -> None:
    await runs.begin("ordinary")
    await runs.begin("suspect", alone=True)
    assert runs.inside == ["ordinary"]
    await runs.end("ordinary")
    assert runs.inside == ["suspect"]
    await runs.begin("late")
    assert runs.inside == ["suspect"]
    await runs.end("suspect")
    assert runs.inside == ["late"]
    assert not runs.visits["suspect"].accompanied


async def test_ordinary_jobs_do_not_keep_a_suspect_out_for_ever(runs: Runs) -> None:
    await runs.begin("ordinary")
    await runs.begin("suspect", alone=True)
    await runs.begin("late")
    assert runs.inside == ["ordinary"]
    await runs.end("ordinary")
    assert runs.inside == ["suspect"]


async def test_suspects_run_one_after_the_other(runs: Runs) -> None:
    await runs.begin("one", alone=True)
    await runs.begin("two", alone=True)
    await runs.begin("ordinary")
    assert runs.inside == ["one"]
    await runs.end("one")
    assert runs.inside == ["two"]
    await runs.end("two")
    assert runs.inside == ["ordinary"]


async def test_a_suspect_that_gives_up_waiting_opens_the_engine_again(runs: Runs) -> None:
    await runs.begin("ordinary")
    await runs.begin("suspect", alone=True)
    await runs.begin("late")
    await runs.give_up("suspect")
    assert runs.inside == ["ordinary", "late"]


async def test_a_suspect_that_fails_opens_the_engine_again(runs: Runs) -> None:
    await runs.begin("suspect", alone=True)
    await runs.begin("late")
    await runs.give_up("suspect")
    assert runs.inside == ["late"]

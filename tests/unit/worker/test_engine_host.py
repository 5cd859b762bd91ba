"""An engine that is kept as it is wanted, with engines that do what a test tells them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.errors import EngineUnavailable
from tests.conditions import eventually
from worker.engine_host import EngineHost
from worker.engine_state import MAX_STARTS, EngineState
from worker.engines.base import Chunk, Request


class Puppet:
    """Starts as often as it may, and dies when it is told to."""

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails
        self.starts = 0
        self.stops = 0
        self._death: asyncio.Future[str] | None = None

    def die(self, reason: str) -> None:
        assert self._death is not None
        self._death.set_result(reason)

    async def start(self) -> None:
        self.starts += 1
        if self.fails:
            self.fails -= 1
            raise EngineUnavailable("no GPU on this machine")
        self._death = asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        self.stops += 1

    async def until_death(self) -> str:
        assert self._death is not None
        return await self._death

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise NotImplementedError


class Kept:
    def __init__(self, engine: Puppet) -> None:
        self.states: list[EngineState] = []
        self.deaths: list[tuple[str, str]] = []
        self.engine = engine
        self.host = EngineHost("model", engine, self._note, self._bury)

    def _note(self) -> None:
        self.states.append(self.host.state)

    async def _bury(self, model: str, reason: str) -> None:
        self.deaths.append((model, reason))

    async def becomes(self, state: EngineState) -> None:
        async def there() -> bool:
            return self.host.state is state

        await eventually(there)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_state._BACKOFF", 0.01)


@asynccontextmanager
async def kept(engine: Puppet) -> AsyncIterator[Kept]:
    kept = Kept(engine)
    keeping = asyncio.create_task(kept.host.keep())
    yield kept
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


S = EngineState


async def test_an_engine_that_dies_is_started_again_at_once_and_its_death_is_told() -> None:
    async with kept(Puppet()) as it:
        await it.becomes(S.READY)
        it.engine.die("it was killed by SIGKILL")
        await eventually(lambda: _is(it.engine.starts, 2))
        await it.becomes(S.READY)
    assert it.states == [S.STARTING, S.READY, S.STOPPED, S.STARTING, S.READY]
    assert it.deaths == [("model", "it was killed by SIGKILL")]


async def test_a_start_that_fails_is_tried_again_and_then_given_up_with_its_reason() -> None:
    async with kept(Puppet(fails=MAX_STARTS)) as it:
        await it.becomes(S.FAILED)
        assert (it.engine.starts, it.host.reason) == (MAX_STARTS, "no GPU on this machine")


async def test_a_start_that_failed_once_is_forgotten_when_the_next_succeeds() -> None:
    async with kept(Puppet(fails=MAX_STARTS - 1)) as it:
        await it.becomes(S.READY)
        assert (it.engine.starts, it.host.reason) == (MAX_STARTS, "")


async def test_an_operator_has_a_failed_engine_tried_again() -> None:
    async with kept(Puppet(fails=MAX_STARTS)) as it:
        await it.becomes(S.FAILED)
        it.host.want(True)
        await it.becomes(S.READY)


async def test_an_engine_that_is_no_more_wanted_is_stopped_and_starts_when_it_is_wanted_again() -> None:
    async with kept(Puppet()) as it:
        await it.becomes(S.READY)
        it.host.want(False)
        await it.becomes(S.STOPPED)
        assert (it.engine.starts, it.engine.stops) == (1, 1)
        it.host.want(True)
        await it.becomes(S.READY)
    assert it.deaths == []


async def test_a_word_that_changes_nothing_changes_nothing() -> None:
    async with kept(Puppet()) as it:
        await it.becomes(S.READY)
        it.host.want(True)
        it.engine.die("it was killed")
        await eventually(lambda: _is(it.engine.starts, 2))
    assert it.engine.stops == 0


async def _is(one: int, other: int) -> bool:
    return one == other

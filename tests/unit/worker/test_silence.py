"""When an engine counts as one that hangs."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from worker.engines.access import Access, Server
from worker.engines.base import Chunk, Delta
from worker.engines.silence import Silence
from worker.engines.upstream import Upstream

LIMIT = 0.1


@pytest.fixture
def silence(tmp_path: Path) -> Silence:
    return Silence(Upstream(Server("It", "http://engine/v1", Access(1.0, socket=tmp_path / "socket"))))


async def mute(pieces: int) -> AsyncGenerator[Chunk, None]:
    """Says nothing any more after some pieces."""
    for _ in range(pieces):
        yield Delta([])
    await asyncio.Event().wait()


async def hangs(silence: Silence, within: float) -> bool:
    try:
        await asyncio.wait_for(silence.lasts(LIMIT), within)
    except TimeoutError:
        return False
    return True


async def test_an_engine_of_which_nothing_is_wanted_does_not_hang(silence: Silence) -> None:
    assert not await hangs(silence, 3 * LIMIT)


async def test_one_that_owes_somebody_a_word_does(silence: Silence) -> None:
    async def ask() -> Any:
        async for _ in silence.counted(mute(1)):
            """There will be no more."""

    asking = asyncio.create_task(ask())
    assert await hangs(silence, 60)
    assert silence.runs == 1
    asking.cancel()
    await asyncio.wait({asking})
    assert silence.runs == 0


async def test_one_whose_word_nobody_takes_does_not(silence: Silence) -> None:
    """The database is away, say."""
    chunks = silence.counted(mute(1))
    await anext(chunks)
    assert not await hangs(silence, 3 * LIMIT)
    waiting = asyncio.ensure_future(anext(chunks))
    assert await hangs(silence, 60)
    waiting.cancel()
    await asyncio.wait({waiting})
    await chunks.aclose()

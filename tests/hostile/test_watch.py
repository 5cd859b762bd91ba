"""The watch of the decoder's memory, that the limits of the corpus are judged by."""

import asyncio
import sys

from tests.conditions import eventually
from tests.hostile.case import memory_watched

SIZE = 200_000_000
HOLDING = f"held = b'x' * {SIZE}; print('held', flush=True); input()"


async def holding() -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDING, stdin=pipe, stdout=pipe)
    assert process.stdout
    assert await process.stdout.readline() == b"held\n"
    return process


async def test_what_is_started_is_counted_and_what_was_there_before_is_not() -> None:
    before = await holding()
    async with memory_watched() as memory:
        meanwhile = await holding()

        async def seen() -> bool:
            return memory.peak >= SIZE

        await eventually(seen)
        await meanwhile.communicate(b"\n")
    await before.communicate(b"\n")
    assert memory.peak < 2 * SIZE

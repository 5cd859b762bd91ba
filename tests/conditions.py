"""Waiting for a condition, never for a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def eventually(condition: Callable[[], Awaitable[bool]], within: float = 20.0, every: float = 0.02) -> None:
    """Returns as soon as ``condition`` holds; fails the test when it does not within ``within`` seconds."""
    deadline = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < deadline, f"{condition.__name__} did not come true within {within} s"
        await asyncio.sleep(every)

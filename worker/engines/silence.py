"""How long an engine has said nothing although somebody waits for it to: the sign of one that hangs."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import monotonic

from worker.engines.base import Chunk
from worker.engines.upstream import Upstream


class Silence:
    """Of the engine that ``upstream`` asks, over all its requests together: one may wait long for its turn while others
    are answered."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self.runs = 0
        """Requests that are under way."""
        # Of them, those whose last piece has yet to be taken: as long as the database is away, say, nobody reads on.
        self._untaken = 0

    async def counted(self, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
        """``chunks``, as those of a request that is under way."""
        if not self.runs:
            self._upstream.heard = monotonic()
        self.runs += 1
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._untaken += 1
                    try:
                        yield chunk
                    finally:
                        self._untaken -= 1
                        self._upstream.heard = monotonic()
        finally:
            self.runs -= 1

    async def lasts(self, seconds: float) -> None:
        """Returns once it has lasted for so long."""
        while True:
            silent = monotonic() - self._upstream.heard if self.runs > self._untaken else 0.0
            if silent >= seconds:
                return
            await asyncio.sleep(seconds - silent)

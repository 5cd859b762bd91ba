"""Who runs beside whom on one engine: a job that may have killed it runs alone the next time.

An engine that dies takes all its jobs with it, and only one of them may be to blame. None is charged; each runs again
with the engine to itself, and the one that kills it then has nobody else to blame.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Visit:
    """One run. ``accompanied``: another one was there at some time of it."""

    def __init__(self) -> None:
        self.accompanied = False


class Isolation:
    """The runs of one engine: many at once, or one that is alone. Those who want to be alone go first."""

    def __init__(self) -> None:
        self._inside: set[Visit] = set()
        self._closed = False
        self._wanting_alone = 0
        self.waiting = 0
        """How many wait to be let in."""
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def visit(self, *, alone: bool) -> AsyncIterator[Visit]:
        """Enters when it may; waits until then."""
        self.waiting += 1
        try:
            await (self._until_empty() if alone else self._until_open())
        finally:
            self.waiting -= 1
        self._closed = alone
        visit = Visit()
        if self._inside:
            for each in (visit, *self._inside):
                each.accompanied = True
        self._inside.add(visit)
        try:
            yield visit
        finally:
            self._inside.discard(visit)
            if alone:
                self._closed = False
            self._tell()

    async def _until_empty(self) -> None:
        self._wanting_alone += 1
        try:
            while self._inside:
                await self._changed.wait()
        finally:
            self._wanting_alone -= 1
            self._tell()

    async def _until_open(self) -> None:
        while self._closed or self._wanting_alone:
            await self._changed.wait()

    def _tell(self) -> None:
        """Wakes all who wait; each looks for itself, and no other comes in between."""
        self._changed.set()
        self._changed = asyncio.Event()

"""Free numbers under a unique index: how the bounds on places and slots are kept exact.

A model with 10 + 10 places has the place numbers 0 to 19. An open job holds one in its own document, where a unique
partial index lets no other job of the model have it, and loses it in the very write that ends the job: no counter
can drift, and no crash can leak a place. Slots (``max_concurrent``) are numbers of the same kind, held while a worker
holds the job.

This module only remembers, per process, which numbers are worth trying. It may be wrong at any time; the index
decides.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Iterable

from broker.database import PLACE_INDEX, SLOT_INDEX, Database


def free_numbers(limit: int, used: Iterable[int]) -> list[int]:
    """The numbers below ``limit`` that may be taken so that at most ``limit`` are in use.

    Numbers at or above the limit (it was lowered) count too, so that the bound holds at once.
    """
    taken = set(used)
    room = max(0, limit - len(taken))
    return [number for number in range(limit) if number not in taken][:room]


# A bound of more than so many numbers is not searched again at once after next to nothing was found.
LARGE = 2_000
PAUSE = 0.25


class NumberPool:
    """The numbers of one model that this process believes to be free."""

    def __init__(self) -> None:
        self._free: dict[int, None] = {}
        self._in_flight: set[int] = set()
        self._pause_until = 0.0

    @property
    def empty(self) -> bool:
        return not self._free

    def worth_refilling(self, limit: int) -> bool:
        """Whether to ask the database. A large bound that was just found full is left alone for PAUSE seconds.

        Searching 100,000 numbers takes 100 ms, and a client that is refused comes back after seconds anyhow.
        """
        return limit <= LARGE or time.monotonic() >= self._pause_until

    def refill(self, limit: int, used: Iterable[int]) -> bool:
        """Takes over what the database says. False where nothing is free.

        Numbers that are being written right now count as used. The rest begins at a random one, so that several
        processes seldom try the same.
        """
        free = free_numbers(limit, self._in_flight.union(used))
        start = random.randrange(len(free)) if free else 0
        self._free = dict.fromkeys(free[start:] + free[:start])
        if len(free) < limit // 100:
            self._pause_until = time.monotonic() + PAUSE
        return bool(free)

    def take(self) -> int | None:
        """A number to try. Whoever takes one gives it back by ``settle``, whatever came of it."""
        if not self._free:
            return None
        number, _ = self._free.popitem()
        self._in_flight.add(number)
        return number

    def settle(self, number: int, *, unused: bool = False) -> None:
        """The write with this number has ended: the database knows about it from now on. ``unused``: it is free."""
        self._in_flight.discard(number)
        if unused:
            self._free[number] = None


_INDEX_OF = {"place": PLACE_INDEX, "slot": SLOT_INDEX}


class Numbers:
    """The pools of one kind, ``place`` or ``slot``, filled from the database when they are empty."""

    def __init__(self, database: Database, kind: str) -> None:
        self._jobs = database.jobs_local
        self._kind = kind
        self._pools: defaultdict[str, NumberPool] = defaultdict(NumberPool)
        self._refills: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def available(self, model: str, limit: int) -> bool:
        """Whether a number is believed to be free; the database is asked only where none is, as its answer is dear."""
        pool = self._pools[model]
        if not pool.empty:
            return True
        async with self._refills[model]:
            if not pool.empty:
                return True
            if not pool.worth_refilling(limit):
                return False
            cursor = self._jobs.find({"model": model, self._kind: {"$gte": 0}}, {"_id": 0, self._kind: 1})
            used = [document[self._kind] async for document in cursor.hint(_INDEX_OF[self._kind])]
            return pool.refill(limit, used)

    async def take(self, model: str, limit: int, most: int = 1) -> list[int]:
        """Up to ``most`` numbers to try; none where none is free. Each is given back by ``settle``."""
        pool = self._pools[model]
        taken: list[int] = []
        while len(taken) < most:
            if (number := pool.take()) is not None:
                taken.append(number)
            elif taken or not await self.available(model, limit):
                break
        return taken

    def settle(self, model: str, number: int, *, unused: bool = False) -> None:
        """See ``NumberPool.settle``."""
        self._pools[model].settle(number, unused=unused)

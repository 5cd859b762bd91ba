"""Reads that do not go back in time when the database has got a new primary.

A majority read shows what a member knows to be committed, and a new primary learns that late: only when the first
write of its own term has a majority does it know that everything before is committed, too. Until then a job that was
acknowledged a moment ago would not be found, and one that was seen completed would be processing again. A linearizable
read waits for just that, so one is made before the first read from each new primary.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pymongo.read_concern import ReadConcern

from broker.database import Database

T = TypeVar("T")

# Milliseconds after which a primary that has no majority is given up.
_PATIENCE = 5000


class Barrier:
    def __init__(self, database: Database) -> None:
        self._client = database.client
        self._probe = database.locks.with_options(read_concern=ReadConcern("linearizable"))
        # No term is equal to it: the first read waits.
        self._passed: Any = object()
        self._gate = asyncio.Lock()

    async def read(self, query: Callable[[], Awaitable[T]]) -> T:
        """What ``query``, which may be repeated, reads with majority. Raises PyMongoError."""
        while True:
            await self._pass()
            term = self._passed
            result = await query()
            if self._term() == term:
                return result

    async def _pass(self) -> None:
        async with self._gate:
            while self._passed != (term := self._term()):
                await self._probe.find_one({"_id": "barrier"}, max_time_ms=_PATIENCE)
                if self._term() == term:
                    self._passed = term

    def _term(self) -> Any:
        """Who the driver holds to be primary, and by which election; None: nobody, or behind a router."""
        servers = self._client.topology_description.server_descriptions().values()
        primaries = (server for server in servers if server.server_type_name == "RSPrimary")
        return next(((server.address, server.election_id) for server in primaries), None)

"""Doubles that hold a process up, or take an answer from it, at a chosen point. What they write is written."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from pymongo.errors import AutoReconnect

from broker.database import Collection, Database
from broker.lanes import Lanes, Resolutions


class PausedLanes(Lanes):
    """Holds a claimer up between its read and its write."""

    def __init__(self, database: Database, aging: float) -> None:
        super().__init__(database, {}, aging)
        self._has_read = asyncio.Event()
        self.may_write = asyncio.Event()

    async def has_read(self) -> None:
        """Returns when the claimer stands there."""
        async with asyncio.timeout(20):
            await self._has_read.wait()

    async def next_jobs(
        self, model: str, most: int, resolutions: Resolutions = None
    ) -> tuple[list[dict[str, Any]], bool]:
        found = await super().next_jobs(model, most, resolutions)
        self._has_read.set()
        await self.may_write.wait()
        return found


class _Unreliable:
    def __init__(self, collection: Collection, lost: list[str]) -> None:
        self._collection = collection
        self._lost = lost

    def with_options(self, **options: Any) -> "_Unreliable":
        return _Unreliable(self._collection.with_options(**options), self._lost)

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = getattr(self._collection, name)
        if name not in self._lost:
            return method

        async def without_answer(*args: Any, **kwargs: Any) -> None:
            await method(*args, **kwargs)
            self._lost.remove(name)
            raise AutoReconnect("connection closed")

        return without_answer


@dataclass(frozen=True)
class UnreliableDatabase(Database):
    """Takes the answer of the next call of each method of ``jobs`` in ``lost`` away, after the write was made."""

    lost: list[str] = field(default_factory=list)

    @property
    def jobs(self) -> Collection:
        return cast(Collection, _Unreliable(self._collection("jobs"), self.lost))

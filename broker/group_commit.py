"""Group commit: writes that wait at the same time go to the database in one command.

A lone write goes at once, so nothing is slower when idle; under load each command carries all that came while the one
before was under way, and the cost of a durable write is shared.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from pymongo.errors import AutoReconnect, PyMongoError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class GroupCommit(Generic[Item, Outcome]):
    """``write`` takes up to ``most`` items and returns an outcome for each, in order.

    An outcome that is an exception is raised where its item was put. What the database has against a command befalls
    its whole batch; after another error of ``write``, of a value that cannot be encoded say, each is written alone.
    ``lanes``: how many commands may be under way at once.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        most: int = 500,
        lanes: int = 1,
    ) -> None:
        self._write = write
        self._most = most
        self._lanes = lanes
        self._waiting: list[tuple[Item, asyncio.Future[Outcome]]] = []
        self._busy = 0
        self._writers: set[asyncio.Task[None]] = set()

    async def put(self, item: Item) -> Outcome:
        """Writes ``item`` along with others; its outcome. Cancelling the caller does not take the write back."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._busy < self._lanes:
            self._busy += 1
            writer = asyncio.create_task(self._run())
            self._writers.add(writer)  # the event loop alone would let it be collected
            writer.add_done_callback(self._writers.discard)
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            try:
                outcomes = await self._outcomes([item for item, _ in batch])
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise  # the event loop comes to its end
                # By nobody: a timer of the driver's, say. Its callers, and all after them, would wait for ever.
                outcomes = [AutoReconnect("the write was broken off")] * len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                _settle(future, outcome)
        # Here and not when the task is done: what is put in between would find no writer.
        self._busy -= 1

    async def _outcomes(self, items: Sequence[Item]) -> Sequence[Outcome | Exception]:
        try:
            return await self._write(items)
        except PyMongoError as error:
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001 - raised again where each item was put
            if len(items) == 1:
                return [error]
        # One of them cannot be written, and the others are not to suffer for it.
        return [outcome for item in items for outcome in await self._outcomes([item])]


def _settle(future: asyncio.Future[Outcome], outcome: Outcome | Exception) -> None:
    if future.done():  # its caller has gone
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)

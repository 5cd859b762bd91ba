"""What one process at a time does for all, beside the clockwork: it may take long, and has to begin at once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pymongo.errors import PyMongoError

from broker.cancellation import cancel_all
from broker.clockwork import LEASE, Leadership
from broker.database import Database, farewell

log = logging.getLogger(__name__)


class Duty:
    """Calls ``step`` again and again in the process that holds the lease ``name``, and in no other.

    ``step`` returns the seconds after which there may be more to do; ``wake`` calls it sooner. Two processes may act
    for a moment, when one of them has hung: every write of a step has to bear that. ``again``: seconds after which a
    step is tried again that met the database away, or has failed.
    """

    def __init__(self, database: Database, name: str, step: Callable[[], Awaitable[float]], again: float) -> None:
        self.leadership = Leadership(database, name)
        self._name = name
        self._step = step
        self._again = again
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Needs a running event loop and the database's schema."""
        self._tasks = [asyncio.create_task(self._hold()), asyncio.create_task(self._work())]

    def wake(self) -> None:
        """There may be something to do."""
        self._news.set()

    async def _hold(self) -> None:
        # Where nobody ever had the lease there is none to take: the first try makes it.
        await self._seek()
        while True:
            await self._seek()
            await asyncio.sleep(LEASE / 3)

    async def _seek(self) -> None:
        held = self.leadership.held
        try:
            if await self.leadership.seek() and not held:
                self.wake()
        except PyMongoError as error:
            log.warning("the lease of %s is not renewed: %s", self._name, error)
            self.leadership.held = False
        except Exception:
            # Whoever stops to seek believes for ever in what it had.
            log.exception("the lease of %s is not renewed", self._name)
            self.leadership.held = False

    async def _work(self) -> None:
        while True:
            self._news.clear()
            pause = LEASE
            if self.leadership.held:
                try:
                    pause = await self._step()
                except PyMongoError as error:
                    log.warning("%s waits for the database: %s", self._name, error)
                    pause = self._again
                except Exception:
                    # Whoever holds the lease and does nothing keeps all others from it.
                    log.exception("a step of %s has failed", self._name)
                    pause = self._again
            try:
                async with asyncio.timeout(pause):
                    await self._news.wait()
            except TimeoutError:
                """Time to look again."""

    async def close(self) -> None:
        """Ends the work where it is, and lets the next process take over at once."""
        await cancel_all(self._tasks)
        if self.leadership.held:
            try:
                with farewell():
                    await self.leadership.resign()
            except PyMongoError as error:
                log.warning("the lease of %s is not given back: %s", self._name, error)

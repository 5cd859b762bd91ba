"""Database calls that wait for the database."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pymongo.errors import PyMongoError

log = logging.getLogger(__name__)
T = TypeVar("T")


async def persist(write: Callable[[], Awaitable[T]]) -> T:
    """Repeats a database call until the database answers: what an engine has worked out is not thrown away.

    Safe for the fenced writes of an attempt, which may be repeated. Backs off to two seconds.
    """
    delay = 0.1
    while True:
        try:
            return await write()
        except PyMongoError as error:
            log.warning("the database does not answer, trying again in %.1f s: %s", delay, error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)

"""Database calls that wait for the database."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pymongo.errors import OperationFailure, PyMongoError

log = logging.getLogger(__name__)
T = TypeVar("T")
# BadValue, FailedToParse, TypeMismatch, Overflow, InvalidBSON, BSONObjectTooLarge: what the database will never take.
_REFUSALS = frozenset({2, 9, 14, 15, 22, 10334})


async def persist(write: Callable[[], Awaitable[T]]) -> T:
    """Repeats a database call until the database answers: what an engine has worked out is not thrown away.

    Safe for the fenced writes of an attempt, which may be repeated. Backs off to two seconds. Raises OperationFailure
    where the database has understood and refuses for good.
    """
    delay = 0.1
    while True:
        try:
            return await write()
        except PyMongoError as error:
            if isinstance(error, OperationFailure) and error.code in _REFUSALS:
                raise
            log.warning("the database does not answer, trying again in %.1f s: %s", delay, error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)

"""Logging, alike in every process."""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from pymongo.errors import BulkWriteError, PyMongoError

_ADDED = re.compile(r" \(configured timeouts|, Timeout: |, full error: ")


def configure() -> None:
    """One line an event on standard error; of libraries only what went wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(shorten)
    for library in ("apscheduler", "httpx", "pymongo"):
        logging.getLogger(library).setLevel(logging.WARNING)


def failures_to(log: logging.Logger, message: str) -> Callable[[asyncio.Task[Any]], None]:
    """For ``add_done_callback`` of background work that nobody waits for before the end: an error that breaks it would
    be lost until then."""

    def report(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(message, exc_info=error)

    return report


def shorten(record: logging.LogRecord) -> bool:
    """A filter that keeps every record, and of the driver's errors in it what is wrong."""
    if isinstance(record.args, tuple):
        record.args = tuple(in_short(value) if isinstance(value, PyMongoError) else value for value in record.args)
    return True


def in_short(error: Exception) -> str:
    """Without the settings, the whole topology and the raw answer that PyMongo adds. Of many writes, the first's."""
    return _ADDED.split(_first_cause(error) or str(error), maxsplit=1)[0]


def _first_cause(error: Exception) -> str | None:
    """Of many writes PyMongo says no more than that some have failed."""
    if not isinstance(error, BulkWriteError):
        return None
    # That a majority may not have them says more than that one place was taken.
    faults = error.details.get("writeConcernErrors") or error.details.get("writeErrors")
    return faults[0].get("errmsg") if faults else None

"""Logging, alike in every process."""

import logging
import re

from pymongo.errors import PyMongoError

_ADDED = re.compile(r" \(configured timeouts|, Timeout: |, full error: ")


def configure() -> None:
    """One line an event on standard error; of libraries only what went wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(shorten)
    for library in ("apscheduler", "httpx", "pymongo"):
        logging.getLogger(library).setLevel(logging.WARNING)


def shorten(record: logging.LogRecord) -> bool:
    """A filter that keeps every record, and of the driver's errors in it what is wrong."""
    if isinstance(record.args, tuple):
        record.args = tuple(in_short(value) if isinstance(value, PyMongoError) else value for value in record.args)
    return True


def in_short(error: Exception) -> str:
    """Without the settings, the whole topology and the raw answer that PyMongo adds."""
    return _ADDED.split(str(error), maxsplit=1)[0]

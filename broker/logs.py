"""Logging, alike in every process."""

import logging


def configure() -> None:
    """One line an event on standard error; of libraries only what went wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in ("apscheduler", "httpx", "pymongo"):
        logging.getLogger(library).setLevel(logging.WARNING)

"""Results that answer the same question again: the same bytes, to the same model, with the same options."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from broker.clock import DatabaseClock
from broker.database import REUSE_INDEX, Database
from broker.job import Job

# Part of its retention after which a result is reused no more: it is not to go while somebody begins to share it.
YOUNG = 0.9
HOW_IT_RUNS = frozenset(
    {
        "aliases",
        "allowed_models",
        "balance",
        "breaker",
        "cache",
        "connect_timeout",
        "description",
        "fallbacks",
        "max_concurrent",
        "max_retries",
        "max_waiting",
        "on_disconnect",
        "read_timeout",
        "timeout",
    }
)
"""What an entry of the configuration says of how a model runs, and not of what it makes of its input."""


def fingerprint(document: bytes, model: str, settings: Mapping[str, Any], payload: Mapping[str, Any]) -> str:
    """A digest of all that a result depends on. ``settings``: the model's entry as plain data."""
    asked = json.dumps([model, settings, payload], sort_keys=True, default=str).encode()
    return hashlib.sha256(hashlib.sha256(document).digest() + asked).hexdigest()


class Reuse:
    """Finds results that may be used again. ``retention`` in seconds."""

    def __init__(self, database: Database, retention: float) -> None:
        self._jobs = database.jobs
        self._clock = DatabaseClock(database)
        self._retention = retention

    async def find(self, subject: str, fingerprint: str) -> Job | None:
        """The newest of the subject's own jobs with that fingerprint that were completed in full.

        Others' are not used: how long an answer takes would tell who has sent which document.
        """
        since = await self._clock.ago(self._retention * YOUNG)
        wanted = {"subject": subject, "reusable": fingerprint, "finished_at": {"$gte": since}}
        found = await self._jobs.find_one(wanted, sort=[("finished_at", -1)], hint=REUSE_INDEX)
        return None if found is None else Job.from_document(found)

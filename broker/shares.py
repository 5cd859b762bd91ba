"""What each client has been given of a model: the virtual times behind the fair order, one document per model.

Written with ``w:1``: a lost charge makes one client's next job come a little too early, once.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pymongo.errors import DuplicateKeyError

from broker.database import Database
from broker.fairness import Clock

# Seconds for which a clock that favours nobody is believed while only one client waits.
TRUST = 1.0


class Shares:
    """``weights``: share of each subject, 1 where it has none."""

    def __init__(self, database: Database, weights: Mapping[str, float]) -> None:
        self._shares = database.shares
        self._weights = weights
        self._even_until: dict[str, float] = {}

    async def clock(self, model: str, *, alone: bool) -> Clock | None:
        """The model's clock. None where it need not be read: one client waits alone, and nobody is ahead."""
        if alone and time.monotonic() < self._even_until.get(model, 0.0):
            return None
        document = await self._shares.find_one({"_id": model}) or {}
        spent = {bytes.fromhex(key).decode(): value for key, value in document.get("spent", {}).items()}
        clock = Clock(document.get("now", 0.0), spent)
        if clock.even:
            self._even_until[model] = time.monotonic() + TRUST
        return None if alone and clock.even else clock

    async def charge(self, model: str, now: float, claims: Mapping[str, int]) -> None:
        """Charges each subject for its claims, and forgets those who are no longer ahead of ``now``."""
        keys = {subject: f"spent.{subject.encode().hex()}" for subject in claims}
        before = {key: {"$max": [{"$ifNull": [f"${key}", 0.0]}, "$now"]} for key in keys.values()}
        charges: dict[str, Any] = {
            keys[subject]: {"$add": [before[keys[subject]], count / self._weights.get(subject, 1.0)]}
            for subject, count in claims.items()
        }
        ahead = {
            "$filter": {"input": {"$objectToArray": {"$ifNull": ["$spent", {}]}}, "cond": {"$gt": ["$$this.v", "$now"]}}
        }
        update = [
            {"$set": {"now": {"$max": ["$now", now]}}},
            {"$set": charges},
            {"$set": {"spent": {"$arrayToObject": ahead}}},
        ]
        with suppress(DuplicateKeyError):  # two made the first document at once: one charge is lost, once
            await self._shares.update_one({"_id": model}, update, upsert=True)

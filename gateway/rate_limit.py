"""Rate limits that hold over any number of gateway processes: GCRA, kept in MongoDB.

The generic cell rate algorithm (ITU-T I.371) keeps one number for each subject: the time at which its bucket
will be full again. It is moved by one atomic update, on the database's clock, so that neither the number of
processes nor their clocks change what is admitted.
"""

import math
from dataclasses import dataclass
from typing import Any

from pymongo import ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError

from broker.database import CODEC, HEALED, Collection
from gateway.problems import Problem

COLLECTION = "rate_limits"
# Seconds that a document outlives its use: it says nothing any more once its time has passed.
_IDLE = 60


@dataclass(frozen=True, slots=True)
class Limit:
    """``burst`` requests at once, and ``requests_per_minute`` in the long run."""

    requests_per_minute: float
    burst: int

    @property
    def interval(self) -> float:
        """Milliseconds after which one more request is allowed."""
        return 60_000 / self.requests_per_minute

    @property
    def depth(self) -> float:
        """Milliseconds that the full bucket takes to fill."""
        return self.burst * self.interval


@dataclass(frozen=True, slots=True)
class Decision:
    """``limit`` and ``remaining`` count requests that may come at once.

    ``reset_after``: seconds until all of ``limit`` are free again. ``retry_after``: seconds until the next
    request is allowed, 0 where this one was.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_after: float
    retry_after: float

    def headers(self) -> dict[str, str]:
        """The headers of OpenAI's API, and Retry-After (whole seconds) on a refusal."""
        headers = {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{round(self.reset_after, 3):g}s",
        }
        if not self.allowed:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        return headers


def rate_limited(decision: Decision) -> Problem:
    seconds = max(1, math.ceil(decision.retry_after))
    return Problem(
        "rate_limited",
        f"Too many requests: {decision.limit} may come at once; try again in {seconds} s.",
        headers=decision.headers(),
        retry_after=seconds,
    )


def decide(full_at: float, now: float, allowed: bool, limit: Limit) -> Decision:
    """What the stored time means. ``full_at`` (after the request was counted) and ``now`` in milliseconds."""
    owed = max(0.0, full_at - now)
    # The tolerance, a thousandth of a request, keeps a sum of fractions from costing a whole one.
    remaining = math.floor((limit.depth - owed) / limit.interval + 1e-3)
    wait = 0.0 if allowed else max(0.0, owed + limit.interval - limit.depth)
    return Decision(allowed, limit.burst, max(0, remaining), owed / 1000, wait / 1000)


class RateLimiter:
    """Counts requests by subject, under a name of its own (``submit``, ``login``).

    Written with ``w: 1``: if a failover loses the last updates, a subject gets back what they had cost it,
    once, and the next request writes the truth again; waiting for a majority would double a submit's latency.
    """

    def __init__(self, database: AsyncDatabase[dict[str, Any]], name: str, limit: Limit) -> None:
        self.name = name
        self.limit = limit
        self._collection = _collection(database)

    async def acquire(self, subject: str) -> Decision:
        """Counts one request of ``subject``, unless it is one too many."""
        key, update = self._key(subject), _update(self.limit)
        while True:
            try:
                found = await self._collection.find_one_and_update(
                    {"_id": key}, update, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                # Two processes saw no document and both inserted it: the loser finds it at its next try.
                continue
            assert found is not None  # an upsert that returns the document as it is afterwards
            return decide(found["full_at"], found["now"], found["allowed"], self.limit)

    async def forget(self, subject: str) -> None:
        """Fills the bucket of ``subject`` again."""
        await self._collection.delete_one({"_id": self._key(subject)})

    def _key(self, subject: str) -> str:
        return f"{self.name}:{subject}"


async def ensure_rate_limit_schema(database: AsyncDatabase[dict[str, Any]]) -> None:
    """The TTL index that drops idle subjects. Safe to run in many processes at once."""
    collection = _collection(database)
    await collection.create_index([("expires_at", 1)], name="ttl_expires_at", expireAfterSeconds=_IDLE)


def _collection(database: AsyncDatabase[dict[str, Any]]) -> Collection:
    return database.get_collection(COLLECTION, codec_options=CODEC, write_concern=HEALED)


def _update(limit: Limit) -> list[dict[str, Any]]:
    """The update that admits or refuses. A missing ``full_at`` counts as full by now, as ``$max`` skips it.

    Times are doubles: an interval of 60 000 / 7 ms, rounded, would drift by more than the promised 5 %.
    """
    tolerance = limit.interval / 1000
    return [
        {"$set": {"now": {"$toDouble": {"$toLong": "$$NOW"}}}},
        {"$set": {"next": {"$add": [{"$max": ["$full_at", "$now"]}, limit.interval]}}},
        {"$set": {"allowed": {"$lte": [{"$subtract": ["$next", "$now"]}, limit.depth + tolerance]}}},
        {"$set": {"full_at": {"$cond": ["$allowed", "$next", {"$max": ["$full_at", "$now"]}]}}},
        {"$set": {"expires_at": {"$toDate": "$full_at"}}},
        {"$unset": "next"},
    ]

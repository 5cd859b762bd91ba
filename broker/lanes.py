"""Which waiting jobs come next: reads the heads of the lanes and asks ``fairness`` for their order.

Finding the heads is one distinct scan of the claim index, so it costs by the number of lanes and stays flat in the
queue's depth. (MongoDB makes no distinct scan of a partial index; that is why the claim index is none.)
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from bson import Timestamp

from broker.database import CLAIM_INDEX, Database
from broker.fairness import Clock, Lane, Waiting, in_order
from broker.shares import Shares

Document = dict[str, Any]
Key = TypeVar("Key")

# Up to so many lanes are read to the depth that a claim may need; of more, one job each is enough for a round.
FEW_LANES = 4


def lane_name(level: int, subject: str) -> str:
    """The value of the field ``lane``: sorts by level, then by subject."""
    return f"{level}:{subject}"


def lane_expression() -> Document:
    """The same as an aggregation expression over a job document."""
    return {"$concat": [{"$toString": "$level"}, ":", "$subject"]}


class Lanes:
    """``weights``: share of each subject, 1 where it has none. ``aging``: seconds per level risen."""

    def __init__(self, database: Database, weights: Mapping[str, float], aging: float) -> None:
        self._jobs = database.jobs_local
        self._shares = Shares(database, weights)
        self._alone: dict[str, str] = {}
        self.weights = weights
        self.aging = aging

    async def next_jobs(self, model: str, most: int) -> tuple[list[Document], bool]:
        """Up to ``most`` documents in the order in which they are to be claimed; charges their subjects.

        True where others wait, or may, that another look would find. Who claims them may find some taken.
        """
        heads, depth, lanes = await self._look(model, most)
        if not heads:
            return [], False
        entries = [_lane(jobs, heads[0]["now"].timestamp(), len(jobs) >= depth) for jobs in lanes]
        documents = {job["_id"]: job for jobs in lanes for job in jobs}
        clock = await self._shares.clock(model, alone=len({entry.subject for entry in entries}) == 1)
        chosen = [documents[key] for key in in_order(entries, clock or Clock(), self.weights, self.aging, most)]
        if clock is not None:
            await self._shares.charge(model, clock.now, Counter(job["subject"] for job in chosen))
        return chosen, len(chosen) < len(documents) or any(entry.more for entry in entries)

    async def _look(self, model: str, most: int) -> tuple[list[Document], int, list[list[Document]]]:
        """The heads of all lanes, and each lane to a depth that is enough for a claim of ``most`` or for a start."""
        # Mostly one client waits, and mostly the same as a moment ago: then its jobs come with the same round trip.
        guess = self._alone.get(model)
        if guess is None:
            heads, guessed = await self.heads(model), list[Document]()
        else:
            heads, guessed = await asyncio.gather(self.heads(model), self._depth(model, guess, most))
        if len(heads) != 1:
            self._alone.pop(model, None)
        else:
            self._alone[model] = heads[0]["lane"]
        if not heads or len(heads) > FEW_LANES:
            return heads, 1, [[head] for head in heads]
        depth = most if len(heads) == 1 else most // len(heads) + 1
        if len(heads) == 1 and guessed and guess == heads[0]["lane"]:
            return heads, depth, [guessed]
        lanes = await asyncio.gather(*(self._depth(model, head["lane"], depth) for head in heads))
        return heads, depth, [jobs for jobs in lanes if jobs]

    async def heads(self, model: str) -> list[Document]:
        """The first job of each lane, with the database's time as ``now``."""
        heads = await self._jobs.aggregate(
            [
                {"$match": {"model": model, "lane": {"$gte": ""}}},
                {"$sort": {"model": 1, "lane": 1, "seq": 1}},
                {"$group": {"_id": "$lane", "job": {"$first": "$$ROOT"}}},
                {"$replaceWith": {"$mergeObjects": ["$job", {"now": "$$NOW"}]}},
            ],
            hint=CLAIM_INDEX,
        )
        return [head async for head in heads]

    async def clock(self, model: str) -> Clock:
        """The model's virtual time as it is now."""
        return await self._shares.clock(model, alone=False) or Clock()

    async def _depth(self, model: str, lane: str, depth: int) -> list[Document]:
        found = self._jobs.find({"model": model, "lane": lane}).sort("seq", 1).limit(depth)
        return await found.hint(CLAIM_INDEX).to_list()


def _lane(jobs: Sequence[Document], now: float, more: bool) -> Lane[Any]:
    entries = [waiting_entry(job["_id"], job["seq"], now) for job in jobs]
    return Lane(jobs[0]["subject"], jobs[0]["level"], entries, more)


def waiting_entry(key: Key, seq: Timestamp, now: float) -> Waiting[Key]:
    """A job as ``fairness`` sees it: waiting since the database took it in. ``now`` in seconds since 1970."""
    return Waiting(key, (seq.time, seq.inc), now - seq.time)

"""Which waiting jobs come next: reads the heads of the lanes and asks ``fairness`` for their order.

Finding the heads is one distinct scan of the claim index, so it costs by the number of lanes and stays flat in the
queue's depth. (MongoDB makes no distinct scan of a partial index; that is why the claim index is none.)
"""

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
        self.weights = weights
        self.aging = aging

    async def next_jobs(self, model: str, most: int) -> list[Document]:
        """Up to ``most`` documents in the order in which they are to be claimed; charges their subjects.

        Fewer than there are where more would take another look at the lanes. Who claims them may find some taken.
        """
        heads = await self.heads(model)
        if not heads:
            return []
        if len(heads) == 1 and most == 1:
            lanes = [[heads[0]]]
        elif len(heads) <= FEW_LANES:
            depth = most if len(heads) == 1 else most // len(heads) + 1
            lanes = [await self._depth(head, depth) for head in heads]
        else:
            lanes = [[head] for head in heads]
        return await self._ordered(model, lanes, heads[0]["now"], most)

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

    async def _depth(self, head: Document, depth: int) -> list[Document]:
        lane = {"model": head["model"], "lane": head["lane"]}
        return await self._jobs.find(lane).sort("seq", 1).limit(depth).hint(CLAIM_INDEX).to_list()

    async def _ordered(self, model: str, lanes: Sequence[Sequence[Document]], now: Any, most: int) -> list[Document]:
        filled = [lane for lane in lanes if lane]
        entries = [_lane(lane, now.timestamp()) for lane in filled]
        clock = await self._shares.clock(model, alone=len({entry.subject for entry in entries}) == 1)
        documents = {job["_id"]: job for lane in filled for job in lane}
        if clock is None:
            return [documents[key] for key in in_order(entries, Clock(), self.weights, self.aging, most)]
        chosen = [documents[key] for key in in_order(entries, clock, self.weights, self.aging, most)]
        await self._shares.charge(model, clock.now, Counter(job["subject"] for job in chosen))
        return chosen


def _lane(jobs: Sequence[Document], now: float) -> Lane[Any]:
    entries = [waiting_entry(job["_id"], job["seq"], now) for job in jobs]
    return Lane(jobs[0]["subject"], jobs[0]["level"], entries, more=True)


def waiting_entry(key: Key, seq: Timestamp, now: float) -> Waiting[Key]:
    """A job as ``fairness`` sees it: waiting since the database took it in. ``now`` in seconds since 1970."""
    return Waiting(key, (seq.time, seq.inc), now - seq.time)

"""Which waiting jobs come next: reads the heads of the lanes and asks ``fairness`` for their order.

Where more waits than a claim takes, the heads are found by one distinct scan of the claim index, which costs by the
number of lanes and stays flat in the queue's depth.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias, TypeVar

from bson import Timestamp

from broker.clock import DatabaseClock
from broker.database import CLAIM_INDEX, Database
from broker.fairness import Clock, Lane, Waiting, in_order
from broker.shares import Shares

Document = dict[str, Any]
Key = TypeVar("Key")

Resolutions: TypeAlias = Sequence[str | None] | None

_RESOLUTION = "payload.options.resolution"
# Up to so many lanes are read to the depth that a claim may need; of more, one job each is enough for a round.
FEW_LANES = 4


def lane_name(level: int, subject: str) -> str:
    """The value of the field ``lane``: sorts by level, then by subject."""
    return f"{level}:{subject}"


def lane_expression() -> Document:
    """The same as an aggregation expression over a job document."""
    return {"$concat": [{"$toString": "$level"}, ":", "$subject"]}


def _claimable(model: str, resolutions: Resolutions = None) -> Document:
    """Matches the jobs of the model that could be claimed."""
    claimable: Document = {"model": model, "lane": {"$gte": ""}}
    return claimable if resolutions is None else claimable | {_RESOLUTION: {"$in": list(resolutions)}}


class Lanes:
    """``weights``: share of each subject, 1 where it has none. ``aging``: seconds per level risen."""

    def __init__(self, database: Database, weights: Mapping[str, float], aging: float) -> None:
        self._jobs = database.jobs_local
        self._shares = Shares(database, weights)
        self.time = DatabaseClock(database)
        self.weights = weights
        self.aging = aging

    async def next_jobs(self, model: str, most: int, resolutions: Resolutions = None) -> tuple[list[Document], bool]:
        """Up to ``most`` documents in the order in which they are to be claimed; charges their subjects.

        ``resolutions``: those that the jobs may ask for, with None in it those that ask for none, too.

        True where others wait, or may, that another look would find. Who claims them may find some taken.
        """
        lanes = await self._look(_claimable(model, resolutions), most)
        documents = {job["_id"]: job for lane in lanes for job in lane.jobs}
        if len(lanes) <= 1:
            jobs = list(documents.values())
            # A lane that was emptied while we looked leaves the other one read to a greater depth than was asked for.
            return jobs[:most], len(jobs) > most or any(lane.more for lane in lanes)
        now = await self.time.now()
        entries = [lane.entry(now) for lane in lanes]
        clock = await self._shares.clock(model, alone=len({entry.subject for entry in entries}) == 1)
        chosen = [documents[key] for key in in_order(entries, clock or Clock(), self.weights, self.aging, most)]
        if clock is not None:
            await self._shares.charge(model, clock.now, Counter(job["subject"] for job in chosen))
        return chosen, len(chosen) < len(documents) or any(lane.more for lane in lanes)

    async def _look(self, claimable: Document, most: int) -> list["_Jobs"]:
        """The lanes, each to a depth that is enough for a claim of ``most`` or for the start of one.

        What waits is mostly little, or mostly one client's: then the first ``most`` jobs, lane by lane, tell it all.
        """
        first = await self._first(claimable, most)
        lanes = [list(jobs) for _, jobs in groupby(first, key=itemgetter("lane"))]
        if len(first) < most:
            return [_Jobs(jobs, more=False) for jobs in lanes]
        if len(lanes) == 1 and not await self._any_beyond(claimable, lanes[0][0]["lane"]):
            return [_Jobs(lanes[0], more=True)]
        heads = await self._heads(claimable)
        if len(heads) > FEW_LANES:
            return [_Jobs([head], more=True) for head in heads]
        depth = most // max(1, len(heads)) + 1
        found = await asyncio.gather(*(self._depth(claimable, head["lane"], depth) for head in heads))
        return [_Jobs(jobs, more=len(jobs) == depth) for jobs in found if jobs]

    async def _first(self, claimable: Document, most: int) -> list[Document]:
        found = self._jobs.find(claimable).sort([("lane", 1), ("seq", 1)]).limit(most)
        return await found.hint(CLAIM_INDEX).to_list()

    async def _any_beyond(self, claimable: Document, lane: str) -> bool:
        beyond = claimable | {"lane": {"$gt": lane}}
        return await self._jobs.find_one(beyond, {"_id": 0, "lane": 1}, hint=CLAIM_INDEX) is not None

    async def heads(self, model: str) -> list[Document]:
        """The first job of each lane."""
        return await self._heads(_claimable(model))

    async def anybody(self, model: str, resolutions: Resolutions = None) -> bool:
        """Whether there is a job that could be claimed now."""
        waiting = _claimable(model, resolutions)
        return await self._jobs.find_one(waiting, {"_id": 1}, hint=CLAIM_INDEX) is not None

    async def resolutions(self, model: str) -> dict[str | None, float]:
        """The resolutions that waiting jobs ask for, and the seconds that the first of those has waited."""
        now = await self.time.now()
        asked = await self._jobs.aggregate(
            [
                {"$match": _claimable(model)},
                {"$group": {"_id": f"${_RESOLUTION}", "first": {"$min": "$seq"}}},
            ],
            hint=CLAIM_INDEX,
        )
        return {group["_id"]: now - group["first"].time async for group in asked}

    async def _heads(self, claimable: Document) -> list[Document]:
        heads = await self._jobs.aggregate(
            [
                {"$match": claimable},
                {"$sort": {"model": 1, "lane": 1, "seq": 1}},
                {"$group": {"_id": "$lane", "job": {"$first": "$$ROOT"}}},
                {"$replaceWith": "$job"},
            ],
            hint=CLAIM_INDEX,
        )
        return [head async for head in heads]

    async def clock(self, model: str) -> Clock:
        """The model's virtual time as it is now."""
        return await self._shares.clock(model, alone=False) or Clock()

    async def _depth(self, claimable: Document, lane: str, depth: int) -> list[Document]:
        found = self._jobs.find(claimable | {"lane": lane}).sort("seq", 1).limit(depth)
        return await found.hint(CLAIM_INDEX).to_list()


@dataclass(frozen=True, slots=True)
class _Jobs:
    """The first jobs of a lane; ``more``: there may be others."""

    jobs: list[Document]
    more: bool

    def entry(self, now: float) -> Lane[Any]:
        first = self.jobs[0]
        waiting = [waiting_entry(job["_id"], job["seq"], now) for job in self.jobs]
        return Lane(first["subject"], first["level"], waiting, self.more)


def waiting_entry(key: Key, seq: Timestamp, now: float) -> Waiting[Key]:
    """A job as ``fairness`` sees it: waiting since the database took it in. ``now`` in seconds since 1970."""
    return Waiting(key, (seq.time, seq.inc), now - seq.time)

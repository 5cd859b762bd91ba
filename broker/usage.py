"""What each model was asked for and did in each hour: rolled up from its jobs, and kept longer than they are.

The roll-up of an hour is worked out anew each time, so that running it twice, or by two, changes nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId

from broker.clock import DatabaseClock
from broker.database import Database
from broker.forecast import DAY, WEEK, hour_of
from broker.job import TERMINAL

HOUR = timedelta(hours=1)
# The jobs of an hour have all been stored so long after its end.
_LATEST = timedelta(minutes=2)


class Usage:
    """Documents ``{_id: {model, hour}, model, hour, submitted, completed, failed, timeout, cancelled, seconds}``.

    ``hour``: its beginning, UTC. ``submitted``: jobs that came in it; the others are of the jobs that ended in it.
    ``seconds``: of processing, over their last attempts.
    """

    def __init__(self, database: Database) -> None:
        self._jobs = database.jobs_local
        self._usage = database.usage
        self._clock = DatabaseClock(database)
        self._submitted_until: datetime | None = None

    async def roll_up(self) -> int:
        """Rolls up the hour that runs and the one before; returns how many documents there are of them."""
        now = await self._clock.ago(0.0)
        hour = now.replace(minute=0, second=0, microsecond=0)
        ended = await self._ended(hour - HOUR)
        for row in ended:
            await self._put(row, {"$set": {name: row[name] for name in _SUMS}, "$setOnInsert": {"submitted": 0}})
        # How many came in the hour before is known for good once it has been asked after its end.
        since = hour if self._submitted_until == hour else hour - HOUR
        submitted = await self._submitted(since)
        for row in submitted:
            # Jobs may have gone since they were counted: more cannot have come.
            await self._put(row, {"$max": {"submitted": row["submitted"]}, "$setOnInsert": dict.fromkeys(_SUMS, 0)})
        if now - hour > _LATEST:
            self._submitted_until = hour
        return len({(row["_id"]["model"], row["_id"]["hour"]) for row in (*ended, *submitted)})

    async def _put(self, row: Mapping[str, Any], update: dict[str, dict[str, Any]]) -> None:
        update["$setOnInsert"] |= {"model": row["_id"]["model"], "hour": row["_id"]["hour"]}
        await self._usage.update_one({"_id": row["_id"]}, update, upsert=True)

    async def _ended(self, since: datetime) -> list[dict[str, Any]]:
        pipeline: list[dict[str, Any]] = [
            {"$match": {"finished_at": {"$gte": since}}},
            {"$group": {"_id": _model_and_hour("$finished_at"), **_SUMS}},
        ]
        return await (await self._jobs.aggregate(pipeline, hint="ttl_finished_at")).to_list()

    async def _submitted(self, since: datetime) -> list[dict[str, Any]]:
        """By their ids, which hold the second of their making."""
        pipeline: list[dict[str, Any]] = [
            {"$match": {"_id": {"$gte": ObjectId.from_datetime(since)}}},
            {"$group": {"_id": _model_and_hour("$_id"), "submitted": {"$sum": 1}}},
        ]
        return await (await self._jobs.aggregate(pipeline, hint="_id_")).to_list()

    async def of(self, model: str, since: datetime) -> list[Mapping[str, Any]]:
        """The hours of a model from ``since`` on, oldest first."""
        found = self._usage.find({"model": model, "hour": {"$gte": since}}, {"_id": 0}).sort("hour", 1)
        return [row async for row in found]

    async def submitted(self, models: Sequence[str], hour: int, days: int) -> Mapping[str, Mapping[int, float]]:
        """``{model: {hour: jobs that came in it}}`` before ``hour`` (hours since 1970 UTC), as many of them as a
        forecast needs which judges by the last ``days``."""
        end = datetime.fromtimestamp(hour * HOUR.total_seconds(), UTC)
        since = end - timedelta(seconds=habits(days))
        asked = {"hour": {"$gte": since, "$lt": end}, "model": {"$in": list(models)}}
        found: defaultdict[str, dict[int, float]] = defaultdict(dict)
        async for row in self._usage.find(asked, {"_id": 0}).hint("ttl_hour"):
            # An older release has counted only those that ended, mostly in the same hour.
            ended = sum(row.get(status.value, 0) for status in TERMINAL)
            found[row["model"]][hour_of(row["hour"].timestamp())] = float(row.get("submitted", ended))
        return found


def habits(days: int) -> float:
    """Seconds of usage that a forecast needs which judges by the last ``days``, and the first of these by a week."""
    return (days * DAY + WEEK) * HOUR.total_seconds()


def _model_and_hour(date: str) -> Mapping[str, Any]:
    return {"model": "$model", "hour": {"$dateTrunc": {"date": date, "unit": "hour"}}}


_SECONDS = {"$dateDiff": {"startDate": "$started_at", "endDate": "$finished_at", "unit": "millisecond"}}
_SUMS: Mapping[str, Any] = {
    **{status.value: {"$sum": {"$cond": [{"$eq": ["$status", status.value]}, 1, 0]}} for status in TERMINAL},
    "seconds": {"$sum": {"$divide": [{"$ifNull": [_SECONDS, 0]}, 1000]}},
}

"""What each model did in each hour: rolled up from the ended jobs, kept as long as they are.

The roll-up of an hour is worked out anew each time, so that running it twice, or by two, changes nothing.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from broker.clock import DatabaseClock
from broker.database import Database
from broker.job import TERMINAL

HOUR = 3600.0


class Usage:
    """Documents ``{_id: {model, hour}, model, hour, completed, failed, timeout, cancelled, seconds}``.

    ``hour``: its beginning, UTC. ``seconds``: of processing, over the last attempts of all jobs that ended in it.
    """

    def __init__(self, database: Database) -> None:
        self._jobs = database.jobs_local
        self._usage = database.usage
        self._clock = DatabaseClock(database)

    async def roll_up(self) -> int:
        """Rolls up the hour that runs and the one before; returns how many documents there are of them."""
        hour = (await self._clock.ago(0.0)).replace(minute=0, second=0, microsecond=0)
        since = datetime.fromtimestamp(hour.timestamp() - HOUR, hour.tzinfo)
        grouped = await self._jobs.aggregate(
            [
                {"$match": {"finished_at": {"$gte": since}}},
                {"$group": {"_id": _MODEL_AND_HOUR, **_SUMS}},
                {"$set": {"model": "$_id.model", "hour": "$_id.hour"}},
            ],
            hint="ttl_finished_at",
        )
        rows = [row async for row in grouped]
        for row in rows:
            await self._usage.replace_one({"_id": row["_id"]}, row, upsert=True)
        return len(rows)

    async def of(self, model: str, since: datetime) -> list[Mapping[str, Any]]:
        """The hours of a model from ``since`` on, oldest first."""
        found = self._usage.find({"model": model, "hour": {"$gte": since}}, {"_id": 0}).sort("hour", 1)
        return [row async for row in found]


_MODEL_AND_HOUR = {"model": "$model", "hour": {"$dateTrunc": {"date": "$finished_at", "unit": "hour"}}}
_SECONDS = {"$dateDiff": {"startDate": "$started_at", "endDate": "$finished_at", "unit": "millisecond"}}
_SUMS: Mapping[str, Any] = {
    **{status.value: {"$sum": {"$cond": [{"$eq": ["$status", status.value]}, 1, 0]}} for status in TERMINAL},
    "seconds": {"$sum": {"$divide": [{"$ifNull": [_SECONDS, 0]}, 1000]}},
}

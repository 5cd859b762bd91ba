"""The database's clock, as far as it can be known without asking each time.

For comparisons that must be exact the database compares itself (``$$NOW``); this is for what is decided here.
"""

import math
import time
from datetime import UTC, datetime

from broker.database import Database

# Seconds for which our own clock carries the database's on.
TRUST = 30.0


def to_the_millisecond(moment: datetime) -> datetime:
    """As MongoDB keeps times, so that what was not read from there says the same."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


class DatabaseClock:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked = -math.inf
        self._offset = 0.0

    async def now(self) -> float:
        """Seconds since 1970."""
        if time.monotonic() - self._asked > TRUST:
            told = await self._database.client.admin.command("hello")
            self._asked = time.monotonic()
            self._offset = told["localTime"].timestamp() - self._asked
        return time.monotonic() + self._offset

    async def ago(self, seconds: float) -> datetime:
        """The aware UTC time ``seconds`` ago."""
        return datetime.fromtimestamp(await self.now() - seconds, UTC)

"""A broker's parts on a fresh database, and short leases."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.clock import DatabaseClock
from broker.database import Database, ensure_schema
from broker.job import NewJob, Priority
from broker.queue import JobQueue
from broker.reader import JobReader
from config import QueueSettings, SimulatorSettings

MODELS = {
    "alpha": SimulatorSettings(task="chat", engine="simulator", max_concurrent=2, max_waiting=2, max_retries=2),
    "beta": SimulatorSettings(task="chat", engine="simulator", max_concurrent=10, max_waiting=10),
}
SETTINGS = QueueSettings(lease=0.3, poll_interval=0.05, retry_backoff=0.02, retry_backoff_max=0.04)


@pytest.fixture
async def store(database: AsyncDatabase[dict[str, Any]]) -> Database:
    store = Database(database.client, database)
    await ensure_schema(store, retention=3600.0)
    return store


@pytest.fixture
def queue(store: Database) -> JobQueue:
    return JobQueue(store, MODELS, SETTINGS)


@pytest.fixture
def reader(store: Database) -> JobReader:
    return JobReader(store)


@pytest.fixture
def new_job() -> Callable[..., NewJob]:
    def make(model: str = "alpha", *, subject: str = "ann", priority: str = "normal", **payload: Any) -> NewJob:
        return NewJob("chat", model, subject, payload, priority=Priority(priority))

    return make


@pytest.fixture
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """Where the database's clock stands still, for no hour to end meanwhile."""
    now = datetime.now(UTC)

    async def stands_still(_: DatabaseClock) -> float:
        return now.timestamp()

    monkeypatch.setattr(DatabaseClock, "now", stands_still)
    return now

"""Parts of several processes on one fresh database, with leases and backoffs of an hour.

Nothing ends by itself here: a test sets back what is to have ended, so that it alone decides what comes first.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.database import Database, ensure_schema
from broker.job import Idempotency, Job, NewJob, Priority
from broker.queue import JobQueue
from config import QueueSettings, SimulatorSettings

HOUR = 3600.0
MODELS = {
    "alpha": SimulatorSettings(task="chat", engine="simulator", max_concurrent=3, max_waiting=3, max_retries=1),
}
SETTINGS = QueueSettings(lease=HOUR, poll_interval=0.02, retry_backoff=HOUR, retry_backoff_max=HOUR)

Make = Callable[..., NewJob]
PutBack = Callable[[Job, str], Awaitable[None]]
Stored = Callable[[Job], Awaitable[dict[str, Any]]]


@pytest.fixture
async def store(database: AsyncDatabase[dict[str, Any]]) -> Database:
    store = Database(database.client, database)
    await ensure_schema(store, retention=HOUR)
    return store


@pytest.fixture
def queue(store: Database) -> JobQueue:
    return JobQueue(store, MODELS, SETTINGS)


@pytest.fixture
def rival(store: Database) -> JobQueue:
    """The queue of another process."""
    return JobQueue(store, MODELS, SETTINGS)


@pytest.fixture
def new_job() -> Make:
    def make(subject: str = "ann", priority: str = "normal", idempotency: Idempotency | None = None) -> NewJob:
        return NewJob("chat", "alpha", subject, {}, priority=Priority(priority), idempotency=idempotency)

    return make


@pytest.fixture
def stored(store: Database) -> Stored:
    """The document of a job as it is this moment; a majority read is one behind the weaker writes."""

    async def read(job: Job) -> dict[str, Any]:
        document = await store.jobs_local.find_one({"_id": job.id})
        assert document is not None
        return document

    return read


@pytest.fixture
def put_back(store: Database) -> PutBack:
    """Lets the time of ``lease_expires_at`` or ``not_before`` of a job have come a second ago."""

    async def put(job: Job, name: str) -> None:
        past = {"$dateSubtract": {"startDate": "$$NOW", "unit": "second", "amount": 1}}
        written = await store.jobs.update_one({"_id": job.id, name: {"$exists": True}}, [{"$set": {name: past}}])
        assert written.modified_count == 1

    return put

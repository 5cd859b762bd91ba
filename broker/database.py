"""The connection to MongoDB, the collections, and their indexes."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC
from typing import Any, TypeVar

import pymongo
import pymongo.lock
from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure
from pymongo.read_concern import ReadConcern

from config.errors import ConfigError

log = logging.getLogger(__name__)

_UNAUTHORIZED = 13
# Seconds for what is said to a database before parting. Nothing depends on it.
_FAREWELL = 2.0

T = TypeVar("T")

Collection = AsyncCollection[dict[str, Any]]

# What was promised to somebody (accepted, finished, cancelled) survives a kill -9 of mongod and a failover.
DURABLE = WriteConcern("majority", j=True)
# For writes whose loss is healed by what comes after them. Each user says by what.
HEALED = WriteConcern(w=1, j=False)

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Database:
    """A client and the collections that Roundhouse keeps.

    ``jobs`` reads and writes with majority; weaker handles are derived where a write's loss is healed.
    """

    client: AsyncMongoClient[dict[str, Any]]
    handle: AsyncDatabase[dict[str, Any]]

    def _collection(self, name: str) -> Collection:
        return self.handle.get_collection(
            name, codec_options=CODEC, write_concern=DURABLE, read_concern=ReadConcern("majority")
        )

    def _light(self, name: str) -> Collection:
        """For what is said again soon: written and read without waiting for a majority."""
        return self._collection(name).with_options(write_concern=HEALED, read_concern=ReadConcern("local"))

    @property
    def jobs(self) -> Collection:
        return self._collection("jobs")

    @property
    def jobs_local(self) -> Collection:
        """Jobs as this very moment has them, for those who decide and then write under a fence."""
        return self._light("jobs")

    @property
    def pages(self) -> Collection:
        return self._collection("pages")

    @property
    def pages_light(self) -> Collection:
        return self._light("pages")

    @property
    def chunks(self) -> Collection:
        """Pieces of answers, as they are generated."""
        return self._collection("chunks")

    @property
    def answers(self) -> Collection:
        """Which jobs have answers that are used again."""
        return self._light("answers")

    @property
    def answer_counts(self) -> Collection:
        return self._light("answer_counts")

    @property
    def uploads(self) -> Collection:
        """Files that clients have sent, and those that were made for them."""
        return self._collection("uploads")

    @property
    def batches(self) -> Collection:
        return self._collection("batches")

    @property
    def hops(self) -> Collection:
        """How often jobs went from one model to another."""
        return self._light("hops")

    @property
    def deliveries(self) -> Collection:
        """What is told of jobs that have ended, read as this very moment has it by the one who tells it."""
        return self._collection("deliveries").with_options(read_concern=ReadConcern("local"))

    @property
    def usage(self) -> Collection:
        return self._light("usage")

    @property
    def shares(self) -> Collection:
        return self._light("shares")

    @property
    def workers(self) -> Collection:
        return self._light("workers")

    @property
    def crashes(self) -> Collection:
        return self._collection("crashes")

    @property
    def missing_models(self) -> Collection:
        return self._light("missing_models")

    @property
    def models(self) -> Collection:
        """What operators want of each model."""
        return self._collection("models")

    @property
    def plans(self) -> Collection:
        """What the planner has decided, and orders."""
        return self._collection("plans")

    @property
    def locks(self) -> Collection:
        return self._collection("locks")

    async def close(self) -> None:
        with farewell():
            await self.client.close()


def farewell() -> AbstractContextManager[None]:
    """What is said in it to a database raises PyMongoError when that takes longer than two seconds in all."""
    return pymongo.timeout(_FAREWELL)


async def _wait_for(work: Awaitable[T], timeout: float | None) -> T:
    async with asyncio.timeout(timeout):
        return await work


if sys.version_info < (3, 12):
    # There asyncio.wait_for runs what it waits for in a task of its own, and the driver lets it wait for a condition.
    # A cancellation in the moment in which that task takes the lock back would leave it locked: nothing could be asked
    # of the database any more, nor its client be closed. In another moment the cancellation would be lost.
    pymongo.lock.wait_for = _wait_for  # type: ignore[assignment, attr-defined]


def connect(uri: str, name: str) -> Database:
    """A client for ``uri``. Connects lazily: nothing is awaited. Raises ConfigError for a URI that cannot be used.

    A server that is away is noticed within five seconds, so that a request is answered 503 rather than hanging. One
    that has vanished without a word, too: the driver asks it every two seconds and waits three for the answer.
    """
    try:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            uri,
            appname="roundhouse",
            serverSelectionTimeoutMS=5000,
            connectTimeoutMS=3000,
            heartbeatFrequencyMS=2000,
            tz_aware=True,
            tzinfo=UTC,
        )
    except (ConfigurationError, ValueError, OSError) as error:
        # Not with its cause, whose words may hold parts of the password.
        raise ConfigError(f"MONGODB_URI cannot be used: {fault_of_uri(error)}.") from None
    return Database(client, client.get_database(name, codec_options=CODEC))


def fault_of_uri(error: ConfigurationError | ValueError | OSError) -> str:
    """What is wrong with a URI of which the driver says ``error``, without any part of a password in it."""
    match error:
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return f"it names a file that cannot be read: {where}{error.strerror or error}"
        case InvalidURI() | ValueError():
            return "its hosts, password or options cannot be understood; signs in a password are written as %XX"
        case _:
            return f"{error}".rstrip(".")


# Each index costs every write, so there are no more than these. All but ``owner`` are narrowed down to open or to ended
# jobs, by being partial or by their fields: claim, admission and reaping stay flat however long the history is.
# ``lane`` is there only while a job can be claimed.
CLAIM_INDEX = "claimable"
PLACE_INDEX = "place"
SLOT_INDEX = "slot"
BACKOFF_INDEX = "backoff"
IDEMPOTENCY_INDEX = "idempotency"
ENDED_INDEX = "ended"
REUSE_INDEX = "reuse"
PAGES_OF_INDEX = "pages_of"
WEBHOOK_INDEX = "webhook"
DUE_INDEX = "due_by_lane"
BATCH_INDEX = "batch"
BATCH_PLACE_INDEX = "batch_place"
_JOB_INDEXES: Mapping[str, tuple[list[tuple[str, int]], dict[str, Any]]] = {
    CLAIM_INDEX: (
        [("model", 1), ("lane", 1), ("seq", 1)],
        {"partialFilterExpression": {"lane": {"$gte": ""}}},
    ),
    PLACE_INDEX: (
        [("model", 1), ("place", 1)],
        {"unique": True, "partialFilterExpression": {"place": {"$gte": 0}}},
    ),
    SLOT_INDEX: (
        [("model", 1), ("slot", 1)],
        {"unique": True, "partialFilterExpression": {"slot": {"$gte": 0}}},
    ),
    BACKOFF_INDEX: ([("not_before", 1)], {"sparse": True}),
    ENDED_INDEX: (
        [("model", 1), ("status", 1), ("finished_at", -1)],
        {"partialFilterExpression": {"finished_at": {"$exists": True}}},
    ),
    "owner": ([("subject", 1), ("_id", -1)], {}),
    REUSE_INDEX: (
        [("subject", 1), ("reusable", 1), ("finished_at", -1)],
        {"partialFilterExpression": {"reusable": {"$exists": True}}},
    ),
    PAGES_OF_INDEX: ([("pages_of", 1)], {"partialFilterExpression": {"pages_of": {"$exists": True}}}),
    BATCH_INDEX: (
        [("batch.id", 1), ("batch.line", 1), ("status", 1)],
        {"partialFilterExpression": {"batch.id": {"$exists": True}}},
    ),
    # Of the jobs of batches only those that hold a place.
    BATCH_PLACE_INDEX: (
        [("model", 1), ("place", 1), ("batch.id", 1), ("batch.line", 1)],
        {"partialFilterExpression": {"batch.id": {"$exists": True}, "place": {"$gte": 0}}},
    ),
    WEBHOOK_INDEX: ([("finished_at", 1)], {"partialFilterExpression": {"webhook_due": {"$exists": True}}}),
    IDEMPOTENCY_INDEX: (
        [("subject", 1), ("idempotency.key", 1)],
        {"unique": True, "partialFilterExpression": {"idempotency.key": {"$exists": True}}},
    ),
}


# TTL indexes delete a day later than the cleaner, which does it more gently.
TTL_MARGIN = 86_400.0


async def ensure_schema(database: Database, retention: float, habits: float = 0.0) -> None:
    """Creates what is missing. Safe to run in many processes at once.

    In seconds: ``retention`` of what has ended, and ``habits``, how long usage is kept at least.
    """
    net = retention + TTL_MARGIN
    for name, (keys, options) in _JOB_INDEXES.items():
        await database.jobs.create_index(keys, name=name, **options)
    await database.pages.create_index([("job", 1), ("number", 1)], name="page", unique=True)
    await _ensure_ttl(database.jobs, "finished_at", net)
    await _ensure_ttl(database.chunks, "expires_at", 0.0)
    await _ensure_ttl(database.answers, "expires_at", 0.0)
    await database.answers.create_index([("used_at", 1)], name="used")
    await database.deliveries.create_index(
        [("subject", 1), ("host", 1), ("next_at", 1)],
        name=DUE_INDEX,
        partialFilterExpression={"next_at": {"$exists": True}},
    )
    await database.deliveries.create_index([("job", 1)], name="job")
    # As their jobs, but not before they have been tried for a day.
    await _ensure_ttl(database.deliveries, "created_at", net)
    await database.crashes.create_index([("model", 1), ("at", -1)], name="model")
    # As GridFS has them, whose own clients make them with their first file.
    await database.handle["files.chunks"].create_index([("files_id", 1), ("n", 1)], unique=True)
    await database.handle["files.files"].create_index([("filename", 1), ("uploadDate", 1)])
    await database.uploads.create_index([("subject", 1), ("_id", -1)], name="owner")
    await database.uploads.create_index([("created_at", 1)], name="created")
    await database.batches.create_index([("subject", 1), ("_id", -1)], name="owner")
    await database.batches.create_index(
        [("subject", 1), ("idempotency.key", 1)],
        name=IDEMPOTENCY_INDEX,
        unique=True,
        partialFilterExpression={"idempotency.key": {"$exists": True}},
    )
    await database.batches.create_index([("open", 1)], name="open", sparse=True)
    await database.batches.create_index([("files", 1)], name="files")
    await database.batches.create_index([("ended_at", 1)], name="ended", sparse=True)
    await _ensure_ttl(database.crashes, "at", net)
    await _ensure_ttl(database.usage, "hour", max(net, habits + TTL_MARGIN))
    await _ensure_ttl(database.workers, "last_seen", net)
    await _ensure_ttl(database.missing_models, "last_seen", net)


async def _ensure_ttl(collection: Collection, field: str, seconds: float) -> None:
    """A TTL index with today's retention: MongoDB refuses to create one anew with another lifetime."""
    name = f"ttl_{field}"
    existing = await collection.index_information()
    if name in existing and existing[name].get("expireAfterSeconds") != int(seconds):
        await _change_ttl(collection, name, int(seconds))
    else:
        await collection.create_index([(field, 1)], name=name, expireAfterSeconds=int(seconds), sparse=True)


async def _change_ttl(collection: Collection, index: str, seconds: int) -> None:
    change = {"collMod": collection.name, "index": {"name": index, "expireAfterSeconds": seconds}}
    try:
        await collection.database.command(change)
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise
        # The database's user may not have the role for it (dbAdmin). Nothing but the old lifetime comes of that.
        log.warning("the retention of %s cannot be changed: %s", collection.name, error)

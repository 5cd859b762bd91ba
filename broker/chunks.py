"""The pieces of answers that clients follow while they are generated, stored as they come.

Each attempt has its own, under its token: two samples are never spliced. Whoever reads takes those of the token that
the job has, and knows by ``Job.chunks`` when there are no more. They are gone an hour after their job's end, or a
little later: by then the result tells all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from pymongo.errors import AutoReconnect, BulkWriteError

from broker.clock import DatabaseClock
from broker.database import Database
from broker.job import Document, Job
from broker.job_updates import DUPLICATE_KEY
from broker.logs import in_short

# Seconds for which they are kept after the end of their job.
KEPT = 3600.0
# Documents, and characters, that are read back at a time.
_AT_ONCE = 100
_MUCH = 256 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """Events of one attempt in a row. ``first``: the number of the first of them, from 0.

    An event is the JSON text of the ``choices`` of one chunk of OpenAI's chat or completions API, without their
    ``finish_reason``: only the job's end says that, and is told with it.
    """

    job: ObjectId
    token: str
    first: int
    events: Sequence[str]

    @property
    def end(self) -> int:
        """The number of the event after the last."""
        return self.first + len(self.events)

    def after(self, number: int) -> "Chunk":
        """What is left of it from event ``number`` on."""
        return self if number <= self.first else Chunk(self.job, self.token, number, self.events[number - self.first :])

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Chunk":
        key, events = document["_id"], document["events"]
        return cls(key["job"], key["token"], key["last"] + 1 - len(events), events)


class Chunks:
    """All methods raise ``pymongo.errors.PyMongoError`` where the database cannot be reached."""

    def __init__(self, database: Database) -> None:
        self._chunks = database.chunks
        self._clock = DatabaseClock(database)

    async def add(self, chunks: Sequence[tuple[Job, Chunk]]) -> None:
        """Stores chunks, of all jobs of a worker in one command. May be repeated.

        With a majority and the journal, like what was promised: a notice of anything less comes a tenth of a second
        late.
        """
        now = await self._clock.now()
        documents = [_document(chunk, now + job.timeout + KEPT) for job, chunk in chunks]
        try:
            await self._chunks.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            if error.details["writeConcernErrors"]:
                # Written, perhaps, but a primary that goes away before a majority has it may take it back.
                raise AutoReconnect(f"It is unclear what is stored of answers: {in_short(error)}") from error
            if any(fault["code"] != DUPLICATE_KEY for fault in error.details["writeErrors"]):
                raise

    async def read(self, job: ObjectId, token: str, first: int) -> list[Chunk]:
        """The next ones, from event ``first`` on: not all of them where there is much, and none after a gap. The early
        ones of an answer are gone sooner than its late ones."""
        # Known by their last events, so that the first one found has event ``first`` in it.
        wanted = {"_id": {"$gte": _key(job, token, first), "$lte": _key(job, token, 2**31)}}
        found: list[Chunk] = []
        size = 0
        async with self._chunks.find(wanted).sort("_id", 1).limit(_AT_ONCE) as cursor:
            async for document in cursor:
                chunk = Chunk.from_document(document).after(first)
                if chunk.first > first:
                    break
                found.append(chunk)
                first = chunk.end
                size += sum(map(len, chunk.events))
                if size > _MUCH:
                    break
        return found


def _key(job: ObjectId, token: str, last: int) -> Document:
    return {"job": job, "token": token, "last": last}


def _document(chunk: Chunk, expires_at: float) -> Document:
    key = _key(chunk.job, chunk.token, chunk.end - 1)
    return {"_id": key, "events": list(chunk.events), "expires_at": datetime.fromtimestamp(expires_at, UTC)}

"""Pieces of answers on their way into a real database, on which trouble can be called down."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import AutoReconnect

from broker.chunks import Chunk, Chunks
from broker.database import Database, ensure_schema
from broker.errors import EngineError
from broker.job import Job, NewJob
from broker.job_updates import new_document
from config import SimulatorSettings
from tests.conditions import eventually
from worker import chunk_writer
from worker.chunk_writer import ChunkWriter

MODEL = SimulatorSettings(task="chat", engine="simulator")


@dataclass
class Watched(Chunks):
    """Notes each write. While ``open`` is not set, writes wait; ``lost`` answers of writes are lost, ``away`` times the
    database is not even reached. Jobs in ``spoilt`` have what cannot be written as a document."""

    database: Database
    writes: list[tuple[float, list[Chunk]]] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    lost: int = 0
    away: int = 0
    spoilt: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__init__(self.database)
        self.open.set()

    async def add(self, chunks: Sequence[tuple[Job, Chunk]]) -> None:
        self.writes.append((asyncio.get_running_loop().time(), [chunk for _, chunk in chunks]))
        await self.open.wait()
        if self.away:
            self.away -= 1
            raise AutoReconnect("no primary")
        # An integer of more than 8 bytes is none to BSON.
        bad = [replace(chunk, events=[2**80]) if str(job.id) in self.spoilt else chunk for job, chunk in chunks]  # type: ignore[list-item]
        await super().add([(job, chunk) for (job, _), chunk in zip(chunks, bad, strict=True)])
        if self.lost:
            self.lost -= 1
            raise AutoReconnect("connection closed")


@pytest.fixture
async def chunks(database: AsyncDatabase[dict[str, Any]]) -> Watched:
    store = Database(database.client, database)
    await ensure_schema(store, retention=3600.0)
    chunks = Watched(store)
    # The first command of a connection takes longer.
    await Chunks.add(chunks, [(new_job(), Chunk(new_job().id, "warm", 0, ["up"]))])
    return chunks


@pytest.fixture
async def writer(chunks: Watched) -> AsyncIterator[ChunkWriter]:
    writer = ChunkWriter(chunks)
    yield writer
    await writer.close()


def new_job() -> Job:
    new = NewJob("chat", "simulator", "ann", {}, stream=True)
    return replace(Job.from_document(new_document(new, MODEL)), token=uuid4().hex)


async def stored(chunks: Chunks, job: Job) -> list[str]:
    assert job.token is not None
    events: list[str] = []
    while found := await chunks.read(job.id, job.token, len(events)):
        events += [event for chunk in found for event in chunk.events]
    return events


def contains(chunks: Chunks, job: Job, count: int) -> Callable[[], Any]:
    async def has_come() -> bool:
        return len(await stored(chunks, job)) == count

    return has_come


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gathered at all is gathered for longer than a test waits."""
    monkeypatch.setattr(chunk_writer, "GATHER", 600.0)


@pytest.mark.usefixtures("patient")
async def test_the_beginning_of_an_answer_is_written_at_once(chunks: Watched) -> None:
    writer = ChunkWriter(chunks)
    stream = writer.open(new_job())
    for piece, text in enumerate(("who speaks", "the first word"), 1):
        await stream.put(text)
        await eventually(contains(chunks, stream.job, piece), every=0.001)
    await writer.close()


async def test_what_comes_within_40_ms_of_a_write_goes_in_one_insert(chunks: Watched, writer: ChunkWriter) -> None:
    stream = writer.open(new_job())
    for _ in range(2):
        await stream.put("the beginning")
    await eventually(contains(chunks, stream.job, 2), every=0.001)
    for number in range(20):
        await stream.put(str(number))
    await eventually(contains(chunks, stream.job, 22), every=0.001)
    assert [len(some[0].events) for _, some in chunks.writes] == [2, 20]
    (before, _), (after, _) = chunks.writes
    assert chunk_writer.GATHER <= 0.04
    assert after - before >= chunk_writer.GATHER - 0.002


async def test_the_pieces_of_all_jobs_go_in_one_insert(chunks: Watched, writer: ChunkWriter) -> None:
    streams = [writer.open(new_job()) for _ in range(50)]
    for stream in streams:
        await stream.put("one")
        await stream.put("two")
    await asyncio.gather(*(stream.flush() for stream in streams))
    assert [len(some) for _, some in chunks.writes] == [50]
    for stream in streams:
        assert await stored(chunks, stream.job) == ["one", "two"]


@pytest.mark.usefixtures("patient")
async def test_a_first_piece_does_not_wait_for_what_others_gather(chunks: Watched, writer: ChunkWriter) -> None:
    talker, newcomer = writer.open(new_job()), writer.open(new_job())
    for event in ("0", "1"):
        await talker.put(event)
    await talker.flush()
    await talker.put("2")
    await newcomer.put("first")
    await eventually(contains(chunks, newcomer.job, 1), every=0.001)
    assert await stored(chunks, talker.job) == ["0", "1", "2"]


@pytest.mark.usefixtures("patient")
async def test_the_end_does_not_wait_for_more(chunks: Watched, writer: ChunkWriter) -> None:
    stream = writer.open(new_job())
    for event in ("0", "1", "2"):
        await stream.put(event)
        await stream.flush()
    assert await stored(chunks, stream.job) == ["0", "1", "2"]


async def test_writes_do_not_overlap_and_keep_their_pace(chunks: Watched, writer: ChunkWriter) -> None:
    stream = writer.open(new_job())
    for number in range(100):
        await stream.put(str(number))
        await asyncio.sleep(0)
        if number % 10 == 0:
            await eventually(contains(chunks, stream.job, number + 1), every=0.001)
    await stream.flush()
    times = [at for at, _ in chunks.writes]
    assert all(later - sooner >= chunk_writer.GATHER_FIRST - 0.002 for sooner, later in pairwise(times))
    assert await stored(chunks, stream.job) == [str(number) for number in range(100)]


async def test_flush_returns_when_all_is_stored(chunks: Watched, writer: ChunkWriter) -> None:
    stream = writer.open(new_job())
    for number in range(30):
        await stream.put(str(number))
    chunks.open.clear()
    flushing = asyncio.create_task(stream.flush())
    await eventually(_begun(chunks))
    assert not flushing.done()
    chunks.open.set()
    await flushing
    assert await stored(chunks, stream.job) == [str(number) for number in range(30)]
    assert stream.count == 30


async def test_an_empty_answer_has_nothing_to_flush(writer: ChunkWriter, chunks: Watched) -> None:
    await writer.open(new_job()).flush()
    assert chunks.writes == []


async def test_an_engine_waits_where_the_database_does_not_keep_up(chunks: Watched, writer: ChunkWriter) -> None:
    """What one job has in memory is bounded: what is being written and what waits."""
    stream, quick = writer.open(new_job()), writer.open(new_job())
    chunks.open.clear()
    put = 0

    async def talk() -> None:
        nonlocal put
        for _ in range(100):
            await stream.put("x" * 100_000)
            put += 1

    talking = asyncio.create_task(talk())
    await eventually(_begun(chunks))
    before = put
    await quick.put("another job's engine goes on")
    await asyncio.sleep(0)
    assert put == before <= 1 + chunk_writer.MOST_WAITING // 100_000
    assert not talking.done()
    chunks.open.set()
    await talking
    await stream.flush()
    assert len(await stored(chunks, stream.job)) == 100
    assert await stored(chunks, quick.job) == ["another job's engine goes on"]


async def test_a_database_that_is_away_is_waited_for(chunks: Watched, writer: ChunkWriter) -> None:
    chunks.away = 2
    stream = writer.open(new_job())
    for number in range(5):
        await stream.put(str(number))
    flushing = asyncio.create_task(stream.flush())
    await eventually(_begun(chunks))
    await stream.put("5")
    await flushing
    await stream.flush()
    assert await stored(chunks, stream.job) == [str(number) for number in range(6)]
    assert chunks.away == 0


async def test_a_write_whose_answer_was_lost_is_repeated_and_tells_nothing_twice(
    chunks: Watched, writer: ChunkWriter
) -> None:
    chunks.lost = 2
    streams = [writer.open(new_job()) for _ in range(3)]
    for stream in streams:
        await stream.put("one")
        await stream.put("two")
    await asyncio.gather(*(stream.flush() for stream in streams))
    for stream in streams:
        assert await stored(chunks, stream.job) == ["one", "two"]
        assert await chunks.database.chunks.count_documents({"_id.job": stream.job.id}) == 1
    assert len(chunks.writes) == 3


async def test_a_piece_that_no_document_can_hold_is_refused(chunks: Watched, writer: ChunkWriter) -> None:
    stream = writer.open(new_job())
    await stream.put("x" * chunk_writer.LARGEST)
    with pytest.raises(EngineError) as caught:
        await stream.put("x" * (chunk_writer.LARGEST + 1))
    assert caught.value.code == "bad_answer"
    await stream.flush()
    assert stream.count == 1
    assert len(await stored(chunks, stream.job)) == 1


async def test_what_cannot_be_written_fails_its_stream_and_no_other_waits_for_it(
    chunks: Watched, writer: ChunkWriter
) -> None:
    bad, good = writer.open(new_job()), writer.open(new_job())
    chunks.spoilt = [str(bad.job.id)]
    for stream in (bad, good):
        await stream.put("one")
    async with asyncio.timeout(10):
        with pytest.raises(OverflowError):
            await bad.flush()
        with pytest.raises(OverflowError):
            await bad.put("two")
        await good.flush()
        await good.put("two")
        await good.flush()
    assert await stored(chunks, good.job) == ["one", "two"]


async def test_an_engine_that_waits_hears_that_its_pieces_cannot_be_written(
    chunks: Watched, writer: ChunkWriter
) -> None:
    stream = writer.open(new_job())
    chunks.spoilt = [str(stream.job.id)]
    chunks.open.clear()
    await stream.put("first")
    await eventually(_begun(chunks))
    await stream.put("x" * (chunk_writer.MOST_WAITING + 1))
    waiting = asyncio.create_task(stream.put("more"))
    await asyncio.sleep(0)
    chunks.open.set()
    async with asyncio.timeout(10):
        with pytest.raises(OverflowError):
            await waiting


async def test_closing_ends_a_write_that_waits_for_the_database(chunks: Watched, writer: ChunkWriter) -> None:
    chunks.open.clear()
    stream = writer.open(new_job())
    await stream.put("one")
    await eventually(_begun(chunks))
    await writer.close()
    assert await stored(chunks, stream.job) == []


def _begun(chunks: Watched) -> Callable[[], Any]:
    async def a_write_has_begun() -> bool:
        return bool(chunks.writes)

    return a_write_has_begun

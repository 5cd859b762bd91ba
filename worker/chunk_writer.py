"""Pieces of answers on their way into the database: all that the worker's jobs generate goes there together."""

import asyncio
from collections.abc import Sequence
from time import monotonic

from broker.cancellation import cancel_all
from broker.chunks import Chunk, Chunks
from broker.errors import EngineError
from broker.job import Job
from worker.persist import persist

# Seconds between the beginnings of two writes, while pieces come all the time.
GATHER = 0.03
# The same where somebody waits for the beginning of his answer.
GATHER_FIRST = 0.005
# Pieces that are its beginning: of most servers the first says only who speaks.
BEGINNING = 2
# Characters of one job that wait to be written before its engine has to wait, too.
MOST_WAITING = 1_000_000
# Characters of a piece, of one byte each: with what waits there it has to go into a document of 16 MB.
LARGEST = 4_000_000


class AnswerStream:
    """The pieces of one attempt. ``count``: events that were put so far.

    Where they cannot be written, whatever says so is raised by all methods from then on.
    """

    def __init__(self, writer: "ChunkWriter", job: Job) -> None:
        assert job.token is not None
        self.job = job
        self.token = job.token
        self.count = 0
        self._writer = writer
        self._waiting: list[str] = []
        self._size = 0
        self._error: Exception | None = None
        self._written = asyncio.Event()
        self._written.set()

    async def put(self, event: str) -> None:
        """Waits only where the database does not keep up. Raises EngineError ``bad_answer`` for what is too long."""
        if len(event) > LARGEST:
            message = f"The engine gave {len(event):,} characters at once; a piece of an answer may have {LARGEST:,}."
            raise EngineError(message, code="bad_answer")
        if self._size > MOST_WAITING:
            await self._written.wait()
        self._check()
        self.count += 1
        self._size += len(event)
        self._waiting.append(event)
        self._written.clear()
        self._writer.expect(self, urgent=self.count <= BEGINNING)

    async def flush(self) -> None:
        """Has what waits written at once; returns when all is stored durably, however long the database is away."""
        if self._waiting:
            self._writer.expect(self, urgent=True)
        await self._written.wait()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def take(self) -> Chunk:
        """What waits, to be written now."""
        events, self._waiting, self._size = self._waiting, [], 0
        return Chunk(self.job.id, self.token, self.count - len(events), events)

    def wrote(self) -> None:
        if not self._waiting:
            self._written.set()

    def broke(self, error: Exception) -> None:
        """What was taken cannot be written, and so nothing that comes after it."""
        self._error = error
        self._waiting, self._size = [], 0
        self._written.set()


class ChunkWriter:
    """One for all jobs of a worker. A lone piece is written at once, nothing is slower when idle; what comes within a
    moment after it is gathered."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._due: dict[AnswerStream, None] = {}
        self._urgent = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._began = -GATHER

    def open(self, job: Job) -> AnswerStream:
        """For the pieces of the attempt that holds ``job``."""
        return AnswerStream(self, job)

    def expect(self, stream: AnswerStream, *, urgent: bool) -> None:
        """Has what waits in ``stream`` written soon."""
        self._due[stream] = None
        if urgent:
            self._urgent.set()
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._due:
                await self._gather()
                self._began = monotonic()
                streams = list(self._due)
                self._due.clear()
                self._urgent.clear()
                await self._store(streams)
        finally:
            self._writing = None

    async def _gather(self) -> None:
        await asyncio.sleep(max(0.0, self._began + GATHER_FIRST - monotonic()))
        if not self._urgent.is_set() and (rest := self._began + GATHER - monotonic()) > 0:
            try:
                async with asyncio.timeout(rest):
                    await self._urgent.wait()
            except TimeoutError:
                """Nobody waits for a beginning."""

    async def _store(self, streams: Sequence[AnswerStream]) -> None:
        taken = [(stream, stream.take()) for stream in streams]
        # Nothing waits any more in one that has broken meanwhile.
        await self._add([(stream, chunk) for stream, chunk in taken if chunk.events])

    async def _add(self, taken: Sequence[tuple[AnswerStream, Chunk]]) -> None:
        try:
            await persist(lambda: self._chunks.add([(stream.job, chunk) for stream, chunk in taken]))
        except Exception as error:  # noqa: BLE001 - raised again by the stream that it is about
            if len(taken) == 1:
                taken[0][0].broke(error)
            else:
                for one in taken:
                    await self._add([one])
            return
        for stream, _ in taken:
            stream.wrote()

    async def close(self) -> None:
        if self._writing is not None:
            await cancel_all([self._writing])

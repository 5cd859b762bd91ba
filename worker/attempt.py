"""One attempt of one job: from the claimed document to the write that ends it."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from enum import Enum

from broker.broker import Broker
from broker.cancellation import cancel_all
from broker.crashes import stack_of
from broker.errors import AttemptTimeout, EngineDied, EngineError, EngineNotRunning, EngineStalled, FileMissing
from broker.job import Failure, Job
from broker.payloads import unstow
from broker.results import pack
from config.errors import RoundhouseError
from ocr.plain_text import well_formed
from worker.chunk_writer import ChunkWriter
from worker.document_attempt import DocumentAttempt, Paused
from worker.engines.base import Engine, Remote, Request, Result
from worker.isolation import Isolation
from worker.persist import persist

log = logging.getLogger(__name__)

# Seconds that an engine gets to end by itself what has run out of time.
_GRACE = 5.0
_DEATHS = (EngineDied.code, EngineStalled.code)


class Stop(Enum):
    """Why an attempt is stopped from outside."""

    ENDED = "the job was cancelled"
    LOST = "the lease was lost"
    DRAIN = "the worker is stopping"


class Attempt:
    """Runs a claimed job, then records what came of it.

    ``stop`` may be called at any time; ``run`` then ends soon, and ``record`` writes what is due. Once ``halted`` is
    true, no further page of a document is begun; some of its pages at a time where ``others`` wait.
    """

    def __init__(
        self,
        broker: Broker,
        job: Job,
        engine: Engine,
        isolation: Isolation,
        writer: ChunkWriter,
        halted: Callable[[], bool],
        others: Callable[[], Awaitable[bool]],
    ) -> None:
        self.job = job
        self._halted = halted
        self._others = others
        self._document: DocumentAttempt | None = None
        self._isolation = isolation
        self._accompanied = False
        self._stream = writer.open(job) if job.stream else None
        self._broker = broker
        self._engine = engine
        self._stop: Stop | None = None
        self._work: asyncio.Task[Failure | Result | Paused] | None = None

    def stop(self, why: Stop) -> None:
        """Only the first reason counts, and none once the engine is done: the last write is fenced anyhow."""
        if self._stop is None and self._work is not None and not self._work.done():
            self._stop = why
            self._work.cancel()

    async def run(self) -> None:
        with self._broker.feed.watch(self.job.id) as ending:
            self._work = asyncio.create_task(self._outcome())
            watcher = asyncio.create_task(ending.event.wait())
            try:
                await asyncio.wait({self._work, watcher}, return_when=asyncio.FIRST_COMPLETED)
                if watcher.done():
                    self.stop(Stop.ENDED)
                await asyncio.wait({self._work})
            finally:
                await cancel_all([self._work, watcher])

    async def record(self) -> None:
        """Ends the attempt in the database; waits for one that is away."""
        assert self._work is not None
        if self._stop is not None and self._work.cancelled():
            await self._stopped(self._stop)
        elif self._work.cancelled():
            # By nobody here: a library's timer, say. Not recorded, the job would hang until its lease ends.
            await self._settle(Failure("attempt_cut_off", "The engine's work was cancelled by itself."))
        else:
            await self._settle(self._work.result())

    async def _outcome(self) -> Failure | Result | Paused:
        try:
            return await self._execute()
        except Exception as error:  # noqa: BLE001 - what is no failure of the engine's is logged
            return self._failure(error)

    def _failure(self, error: Exception) -> Failure:
        if isinstance(error, RoundhouseError):
            return _failure(error)
        # Whatever an engine raises that it should not: the job must not hang on our bug.
        log.error("job %s: an unexpected error", self.job.id, exc_info=error)
        return Failure("internal_error", well_formed(f"{type(error).__name__}: {error}"), stack=stack_of(error))

    async def _execute(self) -> Result | Paused:
        async with self._isolation.visit(alone=self.job.suspect) as visit:
            try:
                return await (self._answer() if self.job.file is None else self._read())
            finally:
                self._accompanied = visit.accompanied

    async def _answer(self) -> Result:
        limit = self.job.timeout
        payload = await persist(lambda: unstow(self._broker.files, self.job))
        request = Request(str(self.job.id), self.job.attempts, payload, self.job.task, limit)
        # Who asks others ends by himself in time, and knows who was too slow.
        patience = limit + _GRACE if isinstance(self._engine, Remote) else limit
        try:
            async with asyncio.timeout(patience), aclosing(self._engine.run(request)) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, Result):
                        return chunk
                    if self._stream is not None:
                        await self._stream.put(json.dumps(chunk.choices, separators=(",", ":")))
        except TimeoutError:
            raise AttemptTimeout(f"The attempt ran longer than {limit:g} s.") from None
        raise EngineError("The engine ended without a result.", code="no_result")

    async def _read(self) -> Result | Paused:
        """A document, whose pages have their time limit each."""
        self._document = DocumentAttempt(self._broker, self.job, self._engine, self._halted, self._others)
        return await self._document.run()

    async def _settle(self, outcome: Failure | Result | Paused) -> None:
        if isinstance(outcome, Paused):
            log.info("job %s is not read to its end yet, others go first: %s", self.job.id, outcome.for_others)
            await persist(lambda: self._broker.queue.release(self.job, to_the_back=outcome.for_others))
            return
        result = await self._flushed(outcome)
        if isinstance(result, Failure):
            await (self._hand_back(result) if self._is_innocent(result) else self._fail(result))
            return
        try:
            await self._complete(result)
        except Exception as error:  # noqa: BLE001 - an answer that cannot be kept must not leave its job hanging
            await self._fail(self._failure(error))

    async def _complete(self, outcome: Result) -> None:
        packed = await persist(lambda: pack(self._broker.files, self.job, outcome.value))
        if self._stream is not None:
            packed["chunks"] = self._stream.count
        if outcome.files:
            packed["files"] = dict(outcome.files)
        if outcome.backends:
            packed["backends"] = [dict(backend) for backend in outcome.backends]
        if self.job.fingerprint is not None and not outcome.value.get("partial"):
            if self.job.file is not None:
                packed["reusable"] = self.job.fingerprint
            else:
                await self._broker.answers.add(self.job, outcome.value)
        if not await persist(lambda: self._broker.queue.complete(self.job, packed)):
            log.warning("job %s: the lease was lost, the result counts for nothing", self.job.id)

    async def _flushed(self, outcome: Failure | Result) -> Failure | Result:
        """Whoever follows the answer gets all that there was before he hears how it ended."""
        if self._stream is not None:
            try:
                await self._stream.flush()
            except Exception as error:  # noqa: BLE001 - what no document can hold ends the attempt
                return outcome if isinstance(outcome, Failure) else self._failure(error)
        return outcome

    def _is_innocent(self, failure: Failure) -> bool:
        """The engine may have died of another job, or before this one came."""
        return failure.code == EngineNotRunning.code or (failure.code in _DEATHS and self._accompanied)

    async def _hand_back(self, failure: Failure) -> None:
        suspect = failure.code in _DEATHS
        log.warning(
            "job %s is not charged%s: %s", self.job.id, ", and runs alone next" if suspect else "", failure.message
        )
        await persist(lambda: self._broker.queue.release(self.job, suspect=suspect))

    async def _fail(self, failure: Failure) -> None:
        gained = self._document is not None and self._document.gained
        status = await persist(lambda: self._broker.queue.fail(self.job, failure, gained=gained))
        if status is None:
            log.warning("job %s: the lease was lost, the failure counts for nothing", self.job.id)
            return
        log.info("job %s: attempt %d failed (%s), now %s", self.job.id, self.job.attempts, failure.code, status)
        await persist(lambda: self._broker.crashes.add(self.job, failure, status.value))

    async def _stopped(self, why: Stop) -> None:
        log.info("job %s stopped: %s", self.job.id, why.value)
        if why is Stop.DRAIN:
            await persist(lambda: self._broker.queue.release(self.job))
        elif why is Stop.ENDED:
            await persist(lambda: self._broker.queue.free_slot(self.job))


def _failure(error: RoundhouseError) -> Failure:
    permanent = bool(getattr(error, "permanent", False)) or isinstance(error, FileMissing)
    return Failure(
        error.code,
        well_formed(error.message),
        permanent=permanent,
        timeout=isinstance(error, AttemptTimeout),
        details={"details": dict(error.details)} if error.details else {},
        stack=stack_of(error),
        retry_after=getattr(error, "retry_after", None),
    )

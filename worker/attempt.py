"""One attempt of one job: from the claimed document to the write that ends it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from enum import Enum
from typing import TypeVar

from pymongo.errors import PyMongoError

from broker.broker import Broker
from broker.cancellation import cancel_all
from broker.crashes import stack_of
from broker.errors import AttemptTimeout, EngineDied, EngineError, EngineNotRunning, EngineStalled, FileMissing
from broker.job import Failure, Job
from broker.results import pack
from config.errors import RoundhouseError
from worker.engines.base import Engine, Progress, Request, Result
from worker.isolation import Isolation

log = logging.getLogger(__name__)
T = TypeVar("T")

_DEATHS = (EngineDied.code, EngineStalled.code)


class Stop(Enum):
    """Why an attempt is stopped from outside."""

    ENDED = "the job was cancelled"
    LOST = "the lease was lost"
    DRAIN = "the worker is stopping"


class Attempt:
    """Runs a claimed job, then records what came of it.

    ``stop`` may be called at any time; ``run`` then ends soon, and ``record`` writes what is due.
    """

    def __init__(self, broker: Broker, job: Job, engine: Engine, isolation: Isolation) -> None:
        self.job = job
        self._isolation = isolation
        self._accompanied = False
        self._broker = broker
        self._engine = engine
        self._stop: Stop | None = None
        self._work: asyncio.Task[Failure | Result] | None = None

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
        else:
            await self._settle(self._work.result())

    async def _outcome(self) -> Failure | Result:
        try:
            return await self._execute()
        except RoundhouseError as error:
            return _failure(error)
        except Exception as error:
            # Whatever an engine raises that it should not: the job must not hang on our bug.
            log.exception("job %s: the engine raised an unexpected error", self.job.id)
            return Failure("internal_error", f"{type(error).__name__}: {error}", stack=stack_of(error))

    async def _execute(self) -> Result:
        request = await self._request()
        limit = self.job.timeout
        loop = asyncio.get_running_loop()
        async with self._isolation.visit(alone=self.job.suspect) as visit:
            try:
                async with asyncio.timeout(limit) as timeout, aclosing(self._engine.run(request)) as chunks:
                    async for chunk in chunks:
                        if isinstance(chunk, Result):
                            return chunk
                        if isinstance(chunk, Progress):
                            timeout.reschedule(loop.time() + limit)
                            await self._progress(chunk)
            except TimeoutError:
                raise AttemptTimeout(f"The attempt ran longer than {limit:g} s.") from None
            finally:
                self._accompanied = visit.accompanied
        raise EngineError("The engine ended without a result.", code="no_result")

    async def _request(self) -> Request:
        job, file = self.job, self.job.file
        if file is None:
            return Request(str(job.id), job.attempts, job.payload)
        document = await persist(lambda: self._broker.files.get(file.id))
        return Request(str(job.id), job.attempts, job.payload, document, file.media_type)

    async def _progress(self, progress: Progress) -> None:
        try:
            await self._broker.queue.progress(self.job, progress.done, progress.total, progress.unit)
        except PyMongoError as error:
            log.warning("job %s: progress not written: %s", self.job.id, error)

    async def _settle(self, outcome: Failure | Result) -> None:
        if isinstance(outcome, Failure):
            await (self._hand_back(outcome) if self._is_innocent(outcome) else self._fail(outcome))
            return
        packed = await persist(lambda: pack(self._broker.files, self.job, outcome.value))
        if not await persist(lambda: self._broker.queue.complete(self.job, packed)):
            log.warning("job %s: the lease was lost, the result counts for nothing", self.job.id)

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
        status = await persist(lambda: self._broker.queue.fail(self.job, failure))
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
        error.message,
        permanent=permanent,
        timeout=isinstance(error, AttemptTimeout),
        details={"details": dict(error.details)} if error.details else {},
        stack=stack_of(error),
    )


async def persist(write: Callable[[], Awaitable[T]]) -> T:
    """Repeats a database call until the database answers: what an engine has worked out is not thrown away.

    Safe for the fenced writes of an attempt, which may be repeated. Backs off to two seconds.
    """
    delay = 0.1
    while True:
        try:
            return await write()
        except PyMongoError as error:
            log.warning("the database does not answer, trying again in %.1f s: %s", delay, error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)

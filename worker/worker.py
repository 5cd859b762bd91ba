"""The worker: claims jobs for the models that it can serve and runs them, until it is told to stop."""

import asyncio
import logging
import os
import socket
import uuid
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from bson import ObjectId
from pymongo.errors import PyMongoError

from broker.broker import Broker
from broker.cancellation import cancel_all
from broker.database import farewell
from broker.job import Document, Job
from broker.job_updates import taken_over
from broker.logs import failures_to
from broker.registry import HEARTBEAT, KNOWN
from worker.attempt import Attempt, Stop
from worker.chunk_writer import ChunkWriter
from worker.engines.base import Engine
from worker.fleet import Fleet
from worker.isolation import Isolation
from worker.persist import persist
from worker.renewal import LeaseKeeper

log = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds that handing back the remaining jobs may take.
HAND_BACK = 8.0
# Seconds for a claim that is under way when the worker is told to stop: a job that it gets would lose an attempt.
LAST_CLAIM = 5.0
# Seconds for which gateways may go on to lease jobs directly to a worker that has said that it drains.
UNHEARD = KNOWN + 0.2
# Seconds for which jobs that have only to be recorded yet are waited for before others are claimed.
RECORDING = 0.02
# The part of the drain's time in which pages of documents are still begun.
READS_ON = 0.5
# So many of the last direct leases are remembered.
_REMEMBERED = 10_000


def new_identity() -> str:
    """A worker's, for one process start: a host name may come back, this does not."""
    return uuid.uuid4().hex


class Worker:
    """``engines`` by model name. ``broker`` is one that was opened for a worker."""

    def __init__(self, broker: Broker, engines: Mapping[str, Engine]) -> None:
        assert broker.worker is not None
        self.id = broker.worker
        self._broker = broker
        self._broker.feed.on_leased = self._take_over
        # Tokens of the direct leases that were begun: a late notice must not begin one again.
        self._begun: dict[str, None] = {}
        self._models = list(engines)
        self._fleet = Fleet(broker, engines, self)
        self._isolation: defaultdict[str, Isolation] = defaultdict(Isolation)
        self._chunks = ChunkWriter(broker.chunks)
        self._works = False
        self._running: dict[ObjectId, Attempt] = {}
        self._tasks: dict[asyncio.Task[Any], str] = {}
        self._recording: set[asyncio.Task[Any]] = set()
        self._background: list[asyncio.Task[Any]] = []
        self._leases = LeaseKeeper(broker.settings, broker.uri, self._lost)
        self._backlog: set[str] = set()
        self._draining = asyncio.Event()
        self._drains_since = 0.0
        self._hurry = asyncio.Event()

    def drain(self) -> None:
        """Takes no new work, finishes what runs. Called again: hands back what runs, at once."""
        if self._draining.is_set():
            self._hurry.set()
        else:
            self._drains_since = monotonic()
        self._draining.set()
        self._fleet.retire()
        self._broker.feed.claimable.set()

    async def run(self) -> None:
        """Works until drained. Waits for a database that is away, but not to stop: the leases of its jobs end then."""
        self._leases.start()
        try:
            await self._work_until_drained()
            await self._finish()
        finally:
            await cancel_all(self._background)
            await self._leases.stop()
            await self._chunks.close()
            await self._fleet.close()
        try:
            with farewell():
                await self._broker.registry.remove(self.id)
        except PyMongoError as error:
            log.warning("not signed off, the silence will tell: %s", error)

    async def _work_until_drained(self) -> None:
        work = self._spawn(self._work())
        await asyncio.wait({work, self._spawn(self._draining.wait())}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(asyncio.wait({work}, timeout=LAST_CLAIM), self._turn_away())
        if work.done():
            work.result()
        await cancel_all([work])

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._background.append(task)
        task.add_done_callback(failures_to(log, "a part of the worker has ended in an error of our own"))
        return task

    async def _work(self) -> None:
        await self._broker.ready.wait()
        self._works = True
        log.info("worker %s serves %s", self.id, ", ".join(self._models) or "no model")
        self._spawn(self._fleet.run())
        self._spawn(self._beat())
        self._spawn(self._look_for_leases())
        await self._claim_until_drained()

    def busy(self, model: str) -> bool:
        return model in self._tasks.values()

    def hand_back(self, model: str) -> None:
        for attempt in list(self._running.values()):
            if attempt.job.model == model:
                attempt.stop(Stop.DRAIN)

    async def _beat(self) -> None:
        while True:
            self._fleet.news.clear()
            await self._say_alive()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._fleet.news.wait()

    async def _say_alive(self) -> bool:
        """Whether the database has heard it."""
        try:
            devices = await self._fleet.devices()
            await self._broker.registry.heartbeat(
                self.id,
                socket.gethostname(),
                os.getpid(),
                self._fleet.states(),
                draining=self._draining.is_set(),
                devices=devices,
                host_memory=self._fleet.host_memory,
            )
        except PyMongoError as error:
            log.warning("no heartbeat: %s", error)
            return False
        except Exception:
            # Ended for good by what cannot be stored, the worker would be taken for dead as long as it lives.
            log.exception("no heartbeat")
            return False
        return True

    async def _turn_away(self) -> None:
        """Tells that this worker drains, and hands back what is leased to it until everybody has heard."""
        with farewell():
            if not self._works or not await self._say_alive():
                return
        with suppress(TimeoutError):
            async with asyncio.timeout(UNHEARD):
                await self._hurry.wait()
        with farewell():
            await self._begin_leases()

    async def _claim_until_drained(self) -> None:
        feed = self._broker.feed
        while not self._draining.is_set():
            feed.claimable.clear()
            try:
                while await self._claim_round() and self._backlog:
                    """Each model in turn, so that no model's backlog keeps another's waiting."""
            except PyMongoError as error:
                log.warning("cannot claim: %s", error)
            await feed.claimable.wait()

    async def _claim_round(self) -> int:
        claimed = 0
        for model in self._fleet.ready():
            free = await self._free(model)
            if free <= 0 or self._draining.is_set():
                self._backlog.add(model)
                continue
            claims = await self._broker.queue.claim(model, self.id, free, self._fleet.resolutions(model))
            (self._backlog.add if claims.more else self._backlog.discard)(model)
            claimed += len(claims.jobs)
            for job in claims.jobs:
                self._begin_or_release(job)
        return claimed

    async def _free(self, model: str) -> int:
        """How many jobs more this worker may run. One claim for many costs about as much as one for a few: while more
        waits than can be taken, the jobs that have only to be recorded yet are let end first.
        """
        recording = [task for task in self._recording if self._tasks[task] == model]
        if recording and model in self._backlog:
            await asyncio.wait(recording, timeout=RECORDING)
        return self._broker.models[model].max_concurrent - list(self._tasks.values()).count(model)

    async def _look_for_leases(self) -> None:
        """Notices may be lost: what was leased to this worker directly is looked for besides."""
        while True:
            await self._begin_leases()
            await asyncio.sleep(self._broker.settings.queue.poll_interval)

    async def _begin_leases(self) -> None:
        try:
            for job in await self._broker.queue.direct_leases(self.id, self._models):
                self._begin_leased(job)
        except PyMongoError as error:
            log.warning("cannot look for direct leases: %s", error)

    def _take_over(self, document: Document) -> None:
        self._begin_leased(taken_over(document))

    def _begin_leased(self, job: Job) -> None:
        """Begins a job with a direct lease, or hands it back where it came too late."""
        assert job.token is not None
        if job.token in self._begun:
            return
        self._begun[job.token] = None
        if len(self._begun) > _REMEMBERED:
            del self._begun[next(iter(self._begun))]
        if self._draining.is_set():
            self._release(job)
        else:
            self._begin_or_release(job)

    def _begin_or_release(self, job: Job) -> None:
        """An engine may have begun to drain while the job was claimed. From here on it is awaited."""
        if self._fleet.is_ready(job.model):
            self._begin(job)
        else:
            self._release(job)

    def _release(self, job: Job) -> None:
        self._attach(persist(lambda: self._broker.queue.release(job)), job.model)

    def _begin(self, job: Job) -> None:
        engine, isolation = self._fleet.engine(job.model), self._isolation[job.model]
        halted, others = partial(self._halted, job.model), partial(self._others_wait, job.model)
        attempt = Attempt(self._broker, job, engine, isolation, self._chunks, halted, others)
        if job.id in self._running:  # a failover has rolled back the claim that it rests on
            self._running[job.id].stop(Stop.LOST)
        self._running[job.id] = attempt
        self._attach(self._attend(attempt), job.model)

    def _halted(self, model: str) -> bool:
        """Whether what can be broken off at no loss is to be."""
        if self._hurry.is_set() or not self._fleet.is_ready(model):
            return True
        # A worker that drains reads on for a part of its time, and has the rest for the pages that are under way then.
        reads_on = READS_ON * self._broker.settings.queue.drain_timeout
        return self._draining.is_set() and monotonic() - self._drains_since >= reads_on

    async def _others_wait(self, model: str) -> bool:
        """Also those that were claimed and wait here: a document that runs alone keeps them out."""
        if self._isolation[model].waiting:
            return True
        return await self._broker.lanes.anybody(model, self._fleet.resolutions(model))

    def _attach(self, work: Coroutine[Any, Any, object], model: str) -> None:
        task = asyncio.create_task(work)
        self._tasks[task] = model
        task.add_done_callback(self._done)

    async def _attend(self, attempt: Attempt) -> None:
        job, task = attempt.job, asyncio.current_task()
        assert job.token is not None
        assert task is not None
        self._leases.hold(job.id, job.token, direct=job.token in self._begun)
        try:
            await attempt.run()
            self._recording.add(task)
            await attempt.record()
        finally:
            self._leases.drop(job.id, job.token)
            if self._running.get(job.id) is attempt:
                del self._running[job.id]

    def _done(self, task: asyncio.Task[Any]) -> None:
        # Only where more was waiting: an idle queue need not be asked again after each job.
        self._recording.discard(task)
        model = self._tasks.pop(task)
        if model in self._backlog:
            self._broker.feed.claimable.set()
        self._fleet.job_ended(model)
        if not task.cancelled() and (error := task.exception()):
            log.error("an attempt ended in an error of our own", exc_info=error)

    def _lost(self, job_id: ObjectId, token: str) -> None:
        attempt = self._running.get(job_id)
        if attempt is not None and attempt.job.token == token:
            attempt.stop(Stop.LOST)

    async def _finish(self) -> None:
        """The drain: what runs may finish within the limit, the rest is handed back without an attempt."""
        if not self._tasks:
            return
        log.info("draining: %d jobs run", len(self._tasks))
        everything = asyncio.ensure_future(asyncio.wait(list(self._tasks)))
        hurry = asyncio.ensure_future(self._hurry.wait())
        timeout = max(0.0, self._drains_since + self._broker.settings.queue.drain_timeout - monotonic())
        await asyncio.wait({everything, hurry}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        for attempt in list(self._running.values()):
            attempt.stop(Stop.DRAIN)
        await asyncio.wait({everything}, timeout=HAND_BACK)
        # Only a database that is away keeps a job from being handed back; its lease will end instead.
        await cancel_all(self._tasks)
        await everything

"""The worker: claims jobs for the models that it can serve and runs them, until it is told to stop."""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Mapping

from bson import ObjectId
from pymongo.errors import PyMongoError

from broker.broker import Broker
from broker.errors import EngineError
from broker.job import Job
from broker.registry import HEARTBEAT, ModelState
from worker.attempt import Attempt, Stop
from worker.engines.base import Engine
from worker.renewal import LeaseKeeper

log = logging.getLogger(__name__)

# Seconds that handing back the remaining jobs may take.
HAND_BACK = 10.0


class Worker:
    """``engines`` by model name. The identity is drawn anew at each start: a host name may come back, this does not."""

    def __init__(self, broker: Broker, engines: Mapping[str, Engine]) -> None:
        self.id = uuid.uuid4().hex
        self._broker = broker
        self._engines = engines
        self._states: dict[str, ModelState] = {}
        self._running: dict[ObjectId, Attempt] = {}
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._leases = LeaseKeeper(broker.settings, broker.uri, self._lost)
        self._backlog: set[str] = set()
        self._draining = asyncio.Event()
        self._hurry = asyncio.Event()

    def drain(self) -> None:
        """Takes no new work, finishes what runs. Called again: hands back what runs, at once."""
        if self._draining.is_set():
            self._hurry.set()
        self._draining.set()
        self._broker.feed.claimable.set()

    async def run(self) -> None:
        """Works until drained. Waits for a database that is away."""
        await self._broker.ready.wait()
        await self._start_engines()
        self._leases.start()
        heart = asyncio.create_task(self._beat())
        log.info("worker %s serves %s", self.id, ", ".join(self._ready()) or "no model")
        try:
            await self._claim_until_drained()
            await self._finish()
        finally:
            heart.cancel()
            await self._leases.stop()
            for engine in self._engines.values():
                await engine.stop()
        try:
            await self._broker.registry.remove(self.id)
        except PyMongoError as error:
            log.warning("not signed off, the silence will tell: %s", error)

    async def _start_engines(self) -> None:
        for name, engine in self._engines.items():
            try:
                await engine.start()
            except EngineError as error:
                self._states[name] = ModelState(ready=False, state=error.message)
                log.warning("model %s is not served here: %s", name, error.message)
            else:
                self._states[name] = ModelState(ready=True, state="ready")

    def _ready(self) -> list[str]:
        return [name for name, state in self._states.items() if state.ready]

    async def _beat(self) -> None:
        while True:
            try:
                await self._broker.registry.heartbeat(
                    self.id, socket.gethostname(), os.getpid(), self._states, draining=self._draining.is_set()
                )
            except PyMongoError as error:
                log.warning("no heartbeat: %s", error)
            await asyncio.sleep(HEARTBEAT)

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
        for model in self._ready():
            free = self._broker.settings.models[model].max_concurrent - list(self._tasks.values()).count(model)
            if free <= 0 or self._draining.is_set():
                self._backlog.add(model)
                continue
            claims = await self._broker.queue.claim(model, self.id, free)
            (self._backlog.add if claims.more else self._backlog.discard)(model)
            claimed += len(claims.jobs)
            for job in claims.jobs:
                self._begin(model, job)
        return claimed

    def _begin(self, model: str, job: Job) -> None:
        attempt = Attempt(self._broker, job, self._engines[model])
        if job.id in self._running:  # a failover has rolled back the claim that it rests on
            self._running[job.id].stop(Stop.LOST)
        self._running[job.id] = attempt
        task = asyncio.create_task(self._attend(attempt))
        self._tasks[task] = model
        task.add_done_callback(self._done)

    async def _attend(self, attempt: Attempt) -> None:
        job = attempt.job
        assert job.token is not None
        self._leases.hold(job.id, job.token)
        try:
            await attempt.run()
        finally:
            self._leases.drop(job.id, job.token)
            if self._running.get(job.id) is attempt:
                del self._running[job.id]

    def _done(self, task: asyncio.Task[None]) -> None:
        # Only where more was waiting: an idle queue need not be asked again after each job.
        if self._tasks.pop(task) in self._backlog:
            self._broker.feed.claimable.set()
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
        timeout = self._broker.settings.queue.drain_timeout
        await asyncio.wait({everything, hurry}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        for attempt in list(self._running.values()):
            attempt.stop(Stop.DRAIN)
        await asyncio.wait({everything}, timeout=HAND_BACK)
        # Only a database that is away keeps a job from being handed back; its lease will end instead.
        for task in self._tasks:
            task.cancel()
        await everything

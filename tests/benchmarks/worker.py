"""A worker process with nothing but the queue in it: claims, does the work, completes.

SIGUSR1 halts it and lets it go on, in turns.
"""

import asyncio
import os
import signal
import sys
import uuid

import uvloop

from broker.broker import Broker
from broker.job import Document, Job
from broker.job_updates import taken_over
from broker.parent import die_with_parent
from broker.registry import HEARTBEAT, ModelState
from config import load_settings
from tests.benchmarks.work import work
from worker.worker import RECORDING


class Claimer:
    def __init__(self, broker: Broker, model: str) -> None:
        self._broker = broker
        self._model = model
        self._places = broker.settings.models[model].max_concurrent
        assert broker.worker is not None
        self._id = broker.worker
        broker.feed.on_leased = self._take_over
        self._tasks: set[asyncio.Task[None]] = set()
        self._halted = False
        self._backlog = False

    def toggle(self) -> None:
        self._halted = not self._halted
        self._broker.feed.claimable.set()

    async def run(self) -> None:
        claimable = self._broker.feed.claimable
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            while True:
                claimable.clear()
                while not self._halted and (free := await self._free()) > 0:
                    claims = await self._broker.queue.claim(self._model, self._id, free)
                    self._backlog = claims.more
                    for job in claims.jobs:
                        self._begin(job)
                    if not (claims.jobs and claims.more):
                        break
                else:
                    self._backlog = True
                await claimable.wait()

    async def _free(self) -> int:
        """As ``Worker`` does: while more waits than can be taken, jobs that are about to end are let end first."""
        if self._backlog and self._tasks:
            await asyncio.wait(self._tasks, timeout=RECORDING)
        return self._places - len(self._tasks)

    async def _beat(self) -> None:
        """While it is halted nobody hears of it, and nobody leases it anything."""
        states = {self._model: ModelState(ready=True, state="ready")}
        while True:
            await self._broker.registry.heartbeat(self._id, "here", os.getpid(), states, draining=self._halted)
            await asyncio.sleep(HEARTBEAT)

    def _take_over(self, document: Document) -> None:
        self._begin(taken_over(document))

    def _begin(self, job: Job) -> None:
        task = asyncio.create_task(self._attend(job))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _attend(self, job: Job) -> None:
        if not await self._broker.queue.complete(job, {"result": work(job.payload)}):
            raise RuntimeError(f"the lease of job {job.id} was lost")

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        task.result()
        if self._backlog:
            self._broker.feed.claimable.set()


async def serve(model: str) -> None:
    broker = await Broker.open(load_settings(), worker=uuid.uuid4().hex)
    broker.start()
    await broker.ready.wait()
    claimer = Claimer(broker, model)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, claimer.toggle)
    print("ready", flush=True)
    await claimer.run()


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(serve(sys.argv[1]))

"""A worker on a real broker, for one model whose engine a test brings along."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from broker import registry
from broker.broker import Broker
from broker.job import Job, NewJob
from broker.queue import JobQueue
from config import Settings
from tests.conditions import eventually
from worker.engines.base import Engine
from worker.worker import Worker, new_identity

MODEL = "simulator"
LEASE = 1.0
Configure = Callable[..., Settings]


@asynccontextmanager
async def working(
    settings: Settings, engine: Engine, model: str = MODEL, *, hurry: bool = False
) -> AsyncIterator[tuple[Broker, Worker]]:
    """A worker for ``model``. ``hurry``: what still runs at the end is handed back and not waited for."""
    assert settings.mongodb.uri is not None
    broker = await Broker.open(settings, worker=new_identity())
    broker.start()
    worker = Worker(broker, {model: engine})
    running = asyncio.create_task(worker.run())
    await broker.ready.wait()
    try:
        yield broker, worker
    finally:
        worker.drain()
        if hurry:
            worker.drain()
        await running
        await broker.close()


async def submitted(broker: Broker) -> Job:
    return await broker.queue.submit(NewJob("chat", MODEL, "ann", {}))


async def reached(broker: Broker, job: Job, status: str) -> None:
    """Returns when the job has that status."""

    async def has_it() -> bool:
        return (await broker.reader.get(str(job.id), None)).status == status

    await eventually(has_it)


async def ended(broker: Broker, job: Job) -> Job:
    async def has_ended() -> bool:
        return (await broker.reader.get(str(job.id), None)).status.terminal

    await eventually(has_ended, within=30)
    return await broker.reader.get(str(job.id), None)


async def leased_to(worker: Worker, settings: Settings, broker: Broker) -> Job:
    """A job that a gateway leases to the worker as it is stored."""

    async def known() -> list[registry.Worker]:
        now = datetime.now(UTC)
        state = registry.ModelState(ready=True, state="ready")
        return [registry.Worker(worker.id, "here", 1, now, now, False, {MODEL: state})]

    gate = JobQueue(broker.database, settings.models, settings.queue, workers=known)
    job = await gate.submit(NewJob("chat", MODEL, "ann", {}))
    assert job.worker == worker.id
    return job


async def serves(broker: Broker) -> None:
    async def ready() -> bool:
        return any(worker.serves(MODEL) for worker in await broker.registry.live_workers())

    await eventually(ready)

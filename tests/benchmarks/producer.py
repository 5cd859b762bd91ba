"""A producer process: submits jobs to the queue and waits for each by its feed.

``python -m tests.benchmarks.producer PLAN [depth]``; with ``depth`` it measures a long queue instead (``at_depth``).
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import uvloop

from broker.broker import Broker
from broker.feed import Ending
from broker.job import Job, NewJob, Status
from broker.job_updates import after_end
from broker.parent import die_with_parent
from config import load_settings
from tests.benchmarks.work import THROUGHPUT, Payload, Plan, Stopwatch, check, measure, payload, split, tell

MODEL = "noop"
SUBJECT = "producer"
# Singly timed operations on a long queue, and lanes that fill it.
SINGLE = 100
FILLERS = 500


@dataclass(frozen=True, slots=True)
class Ticket:
    """``watch`` holds the subscription that ``ending`` comes from."""

    job: Job
    ending: Ending
    watch: ExitStack


class Client:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def submit(self, payload: Payload) -> Ticket:
        new, watch = new_job(payload), ExitStack()
        ending = watch.enter_context(self._broker.feed.watch(new.id))
        return Ticket(await self._broker.queue.submit(new), ending, watch)

    async def result(self, ticket: Ticket) -> object:
        with ticket.watch:
            await ticket.ending.event.wait()
        job = after_end(ticket.job, ticket.ending.changes)
        if job is None:
            job = await self._broker.reader.get(str(ticket.job.id), None)
        if job.status is not Status.COMPLETED:
            raise SystemExit(f"job {job.id} ended as {job.status}: {job.error}")
        return job.result


def new_job(payload: Payload, model: str = MODEL) -> NewJob:
    return NewJob("chat", model, SUBJECT, payload)


async def fill(broker: Broker, model: str, count: int) -> None:
    """So many more jobs wait in the queue."""

    async def lane(numbers: range) -> None:
        for number in numbers:
            await broker.queue.submit(new_job(payload(number), model))

    await in_lanes(range(count), FILLERS, lane)
    await broker.database.client.admin.command("fsync")  # what comes next is not to pay for writing this down


async def in_lanes(numbers: range, lanes: int, lane: Callable[[range], Awaitable[None]]) -> None:
    await asyncio.gather(*map(lane, split(numbers, lanes)))


async def at_depth(broker: Broker, plan: Plan, depth: int) -> None:
    """The same work with ``depth`` jobs waiting throughout, in the worker's own model.

    While the worker is halted, single submits, positions and cancellations are timed. Then it is let go, and as many
    jobs are submitted behind the queue as are awaited at its head.
    """
    client, worker = Client(broker), plan.processes["worker"]
    await client.result(await client.submit(payload(-1)))
    os.kill(worker, signal.SIGUSR1)
    head = [await client.submit(payload(number)) for number in range(plan.throughput)]
    await fill(broker, MODEL, depth - plan.throughput)
    await _single_operations(broker)

    async def put(numbers: range) -> None:
        for number in numbers:
            await broker.queue.submit(new_job(payload(number)))

    async def get(numbers: range) -> None:
        for number in numbers:
            check(number, await client.result(head[number]))

    watch, numbers = Stopwatch(plan.processes), range(plan.throughput)
    os.kill(worker, signal.SIGUSR1)
    await asyncio.gather(in_lanes(numbers, plan.lanes, put), in_lanes(numbers, plan.lanes, get))
    tell(watch.stop(THROUGHPUT, plan.throughput))


async def _single_operations(broker: Broker) -> None:
    jobs: list[Job] = []

    async def submit(number: int) -> None:
        jobs.append(await broker.queue.submit(new_job(payload(number))))

    async def position(number: int) -> None:
        await broker.positions.of(jobs[number])

    async def cancel(number: int) -> None:
        await broker.queue.cancel(jobs[number].id, SUBJECT)

    await _time("submit", submit, range(SINGLE))
    await _time("position", position, range(SINGLE))
    await _time("cancel", cancel, range(SINGLE))


async def _time(name: str, operation: Callable[[int], Awaitable[None]], numbers: Iterable[int]) -> None:
    watch, spans = Stopwatch({}), []
    for number in numbers:
        start = time.perf_counter()
        await operation(number)
        spans.append(time.perf_counter() - start)
    tell(watch.stop(name, len(spans), spans))


async def produce(plan: Plan, depth: int | None) -> None:
    broker = await Broker.open(load_settings())
    broker.start()
    await broker.ready.wait()
    client = Client(broker)
    if depth is None:
        await measure(plan, client.submit, client.result)
    else:
        await at_depth(broker, plan, depth)
    await broker.close()


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(produce(Plan.given(), int(sys.argv[2]) if len(sys.argv) > 2 else None))

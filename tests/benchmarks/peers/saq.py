"""SAQ on Redis, which pushes a job's end, or on PostgreSQL, which is asked for it every 5 ms."""

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any

import uvloop
from saq import Queue, Worker
from saq.job import TERMINAL_STATUSES, Job

from tests.benchmarks.work import Payload, Plan, measure, work

URL = os.environ.get("POSTGRES_URL") or os.environ["REDIS_URL"]
PUSHED = URL.startswith("redis")


async def noop(context: Any, *, given: Payload) -> Payload:
    return work(given)


async def _once_more(job: Job) -> None:
    """Its own wait for an event misses one that comes between its read and its subscription, so it is bounded."""
    if PUSHED:
        with suppress(asyncio.TimeoutError):
            await job.refresh(until_complete=0.25)
    else:
        await job.refresh()
        if job.status not in TERMINAL_STATUSES:
            await asyncio.sleep(0.005)


async def result(job: Job) -> Any:
    while job.status not in TERMINAL_STATUSES:
        await _once_more(job)
    return job.result


async def produce(plan: Plan) -> None:
    queue = Queue.from_url(URL)
    await queue.connect()

    async def submit(payload: Payload) -> Job:
        job = await queue.enqueue("noop", given=payload, timeout=60)
        assert job is not None
        return job

    await measure(plan, submit, result)
    await queue.disconnect()


async def serve() -> None:
    queue = Queue.from_url(URL)
    await queue.connect()
    await Worker(queue, functions=[noop], concurrency=20).start()


if __name__ == "__main__":
    uvloop.run(serve() if sys.argv[1] == "worker" else produce(Plan.given()))

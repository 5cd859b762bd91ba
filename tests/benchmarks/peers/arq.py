"""arq on Redis; its worker and its client ask every millisecond (by itself: every half second)."""

import asyncio
import os
import sys
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

from tests.benchmarks.work import Payload, Plan, measure, work

REDIS = RedisSettings.from_dsn(os.environ["REDIS_URL"])
POLL = 0.001


async def noop(context: Any, given: Payload) -> Payload:
    return work(given)


async def result(job: Any) -> Any:
    return await job.result(timeout=60, poll_delay=POLL)


async def produce(plan: Plan) -> None:
    pool = await create_pool(REDIS)

    async def submit(payload: Payload) -> Any:
        return await pool.enqueue_job("noop", payload)

    await measure(plan, submit, result)
    await pool.aclose()


def serve() -> None:
    asyncio.set_event_loop(uvloop.new_event_loop())
    Worker([noop], redis_settings=REDIS, max_jobs=20, poll_delay=POLL, log_results=False).run()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        serve()
    else:
        uvloop.run(produce(Plan.given()))

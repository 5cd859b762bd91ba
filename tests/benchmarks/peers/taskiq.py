"""taskiq on Redis streams, results in Redis and asked for every millisecond."""

import os
from typing import Any

import uvloop
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from tests.benchmarks.work import Payload, Plan, measure, work

URL = os.environ["REDIS_URL"]
results = RedisAsyncResultBackend(redis_url=URL, result_ex_time=3600)
broker = RedisStreamBroker(url=URL, consumer_id="0").with_result_backend(results)


@broker.task(task_name="noop")
async def noop(given: dict[str, Any]) -> dict[str, Any]:
    return work(given)


async def result(handle: Any) -> Any:
    return (await handle.wait_result(check_interval=0.001, timeout=60)).return_value


async def produce(plan: Plan) -> None:
    await broker.startup()

    async def submit(payload: Payload) -> Any:
        return await noop.kiq(payload)

    await measure(plan, submit, result)
    await broker.shutdown()


if __name__ == "__main__":
    uvloop.run(produce(Plan.given()))

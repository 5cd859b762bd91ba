"""Dramatiq on Redis, results in Redis. Two worker processes of eight threads, its producer blocks."""

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from tests.benchmarks.work import Payload, Plan, measure_blocking, on_one_core, work

URL = os.environ["REDIS_URL"]
broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=URL)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True, actor_name="noop")
def noop(given: Payload) -> Payload:
    return work(given)


def result(message: Any) -> Any:
    return message.get_result(block=True, timeout=60_000)


if __name__ == "__main__":
    on_one_core()
    measure_blocking(Plan.given(), noop.send, result)

"""Celery on Redis, results in Redis. Two worker processes, its producer blocks."""

import os
from typing import Any

from celery import Celery

from tests.benchmarks.work import Payload, Plan, measure_blocking, on_one_core, work

URL = os.environ["REDIS_URL"]
app = Celery("peer", broker=URL, backend=URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_send_task_events=False,
    task_send_sent_event=False,
    broker_pool_limit=20,
    redis_max_connections=200,
)


@app.task(name="noop")
def noop(given: Payload) -> Payload:
    return work(given)


def result(handle: Any) -> Any:
    return handle.get(timeout=60)


if __name__ == "__main__":
    on_one_core()
    measure_blocking(Plan.given(), noop.delay, result)
    os._exit(0)  # its result consumer's threads do not end by themselves

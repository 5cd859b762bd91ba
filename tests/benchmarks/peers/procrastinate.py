"""Procrastinate on PostgreSQL. It keeps no results, so the job's status is asked for every 5 ms instead."""

import asyncio
import os
import sys

import uvloop
from procrastinate import App, PsycopgConnector

from tests.benchmarks.work import Payload, Plan, measure, work

app = App(connector=PsycopgConnector(conninfo=os.environ["POSTGRES_URL"], min_size=10, max_size=20))


@app.task(name="noop", queue="default")
async def noop(given: Payload) -> Payload:
    return work(given)


async def submit(payload: Payload) -> tuple[int, Payload]:
    return await noop.defer_async(given=payload), payload


async def result(ticket: tuple[int, Payload]) -> Payload:
    job, payload = ticket
    status = "todo"
    while status in ("todo", "doing"):
        status = (await app.job_manager.get_job_status_async(job)).value
        if status == "succeeded":
            return work(payload)
        await asyncio.sleep(0.005)
    raise SystemExit(f"job {job}: {status}")


async def produce(plan: Plan) -> None:
    async with app.open_async():
        await measure(plan, submit, result)


async def serve() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await app.run_worker_async(queues=["default"], concurrency=20, wait=True)


if __name__ == "__main__":
    uvloop.run(serve() if sys.argv[1] == "worker" else produce(Plan.given()))

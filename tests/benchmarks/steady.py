"""``python -m tests.benchmarks.steady RATE``: so many single jobs a second until SIGTERM, and then how long they took.

A job is submitted at its time, however long those before it take, and its latency counts from then: a queue that stalls
is not spared the jobs that it kept from coming.
"""

import asyncio
import json
import signal
import sys
import time

import uvloop

from broker.broker import Broker
from broker.parent import die_with_parent
from config import load_settings
from tests.benchmarks.producer import Client
from tests.benchmarks.work import check, payload


async def steadily(client: Client, rate: float, stop: asyncio.Event) -> list[float]:
    """Seconds from when each job was due to its result."""
    spans: list[float] = []

    async def one(number: int, due: float) -> None:
        check(number, await client.result(await client.submit(payload(number))))
        spans.append(time.perf_counter() - due)

    begin, number = time.perf_counter(), 0
    async with asyncio.TaskGroup() as group:
        while not stop.is_set():
            due = begin + number / rate
            await asyncio.sleep(due - time.perf_counter())
            group.create_task(one(number, due))
            number += 1
    return spans


async def main(rate: float) -> None:
    broker = await Broker.open(load_settings())
    broker.start()
    await broker.ready.wait()
    client, stop = Client(broker), asyncio.Event()
    check(-1, await client.result(await client.submit(payload(-1))))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    print(json.dumps(await steadily(client, rate, stop)), flush=True)
    await broker.close()


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(main(float(sys.argv[1])))

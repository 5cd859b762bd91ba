"""``python -m tests.benchmarks.filler MODEL COUNT``: so many jobs wait in the queue of a model."""

import sys

import uvloop

from broker.broker import Broker
from broker.parent import die_with_parent
from config import load_settings
from tests.benchmarks.producer import fill


async def main(model: str, count: int) -> None:
    broker = await Broker.open(load_settings())
    broker.start()
    await broker.ready.wait()
    await fill(broker, model, count)
    await broker.close()


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))

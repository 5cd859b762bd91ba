"""``python -m tests.failover``: every trouble once, under load, as a table."""

import asyncio
import logging
import tempfile
from pathlib import Path

from tests.failover.replica_set import ReplicaSet
from tests.failover.scenarios import TROUBLES, endure

COLUMNS = ("scenario", "acknowledged", "completed", "lost", "run twice", "seconds until jobs flow again")


async def main() -> None:
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for name, trouble in TROUBLES.items():
        with tempfile.TemporaryDirectory() as home:
            async with ReplicaSet() as replicas:
                outcome = await endure(replicas, trouble, Path(home))
        numbers = (outcome.acknowledged, outcome.completed, outcome.lost, outcome.twice, f"{outcome.pause:.1f}")
        print(f"| {name} | {' | '.join(map(str, numbers))} |", flush=True)


logging.disable(logging.WARNING)
asyncio.run(main())

"""A process of claimers: ``python -m tests.race.claimers DATABASE CLAIMERS MOST < URI``.

Says ``ready``, waits for a line, claims and completes until nothing is left, then prints one JSON document: for each
claimer the ids of the jobs that it has run, round by round. Each claimer has a queue, and so a view, of its own.
"""

import asyncio
import json
import sys

from broker.database import Database, connect
from broker.queue import JobQueue
from config import QueueSettings, SimulatorSettings

MODEL = "storm"
SLOTS = 100
MODELS = {MODEL: SimulatorSettings(task="chat", engine="simulator", max_concurrent=SLOTS, max_waiting=5000)}
SETTINGS = QueueSettings(lease=3600.0)


async def run(database: Database, name: str, most: int) -> list[list[str]]:
    queue = JobQueue(database, MODELS, SETTINGS)
    rounds: list[list[str]] = []
    while True:
        claims = await queue.claim(MODEL, name, most)
        stands = await asyncio.gather(*(queue.complete(job, {"result": {"by": name}}) for job in claims.jobs))
        assert all(stands), "a result that nobody else could have written was refused"
        rounds.append([str(job.id) for job in claims.jobs])
        if not claims.jobs and not claims.more:
            return rounds


async def main(uri: str, name: str, claimers: int, most: int) -> None:
    database = connect(uri, name)
    await database.jobs.find_one()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    rounds = await asyncio.gather(*(run(database, f"{n}", most) for n in range(claimers)))
    await database.close()
    print(json.dumps(rounds))


if __name__ == "__main__":
    asyncio.run(main(sys.stdin.readline().strip(), sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

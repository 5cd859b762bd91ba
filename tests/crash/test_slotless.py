"""A claim takes no more jobs than it has slots, whatever others do while it looks."""

from typing import Any

from bson import ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from broker.database import Database, ensure_schema
from broker.job import Document, NewJob, Priority
from broker.lanes import Lanes
from broker.queue import JobQueue
from config import QueueSettings, SimulatorSettings

MODELS = {"sim": SimulatorSettings(task="chat", engine="simulator", max_concurrent=2)}
SETTINGS = QueueSettings(lease=1.0)


class OvertakenLanes(Lanes):
    """While it looks from one lane to the next, the only job in the first of them is cancelled."""

    queue: JobQueue
    urgent: ObjectId

    async def heads(self, model: str) -> list[Document]:
        await self.queue.cancel(self.urgent, None)
        return await super().heads(model)


async def test_a_claim_whose_other_lane_was_emptied_meanwhile_leaves_no_job_without_a_slot(
    database: AsyncDatabase[dict[str, Any]],
) -> None:
    """Such a job is held by no worker, and the reaper, which goes by the slots, would never find it."""
    store = Database(database.client, database)
    await ensure_schema(store, retention=3600.0)
    lanes = OvertakenLanes(store, SETTINGS.weights, SETTINGS.aging)
    lanes.queue = queue = JobQueue(store, MODELS, SETTINGS, lanes)
    jobs = [
        await queue.submit(NewJob("chat", "sim", "ada", {"messages": []}, priority=priority))
        for priority in (Priority.HIGH, Priority.NORMAL, Priority.NORMAL, Priority.NORMAL)
    ]
    lanes.urgent = jobs[0].id
    await queue.claim("sim", "worker", 2)
    claimed = [job async for job in store.jobs_local.find({"status": "processing"})]
    assert sorted(job.get("slot", -1) for job in claimed) == [0, 1]

"""What a client is shown after a failover is never older than what it was shown before."""

import asyncio
from uuid import uuid4

import pytest
from pymongo.errors import AutoReconnect

from broker.database import connect, ensure_schema
from broker.job import NewJob
from broker.queue import JobQueue
from broker.reader import JobReader
from config import QueueSettings, SimulatorSettings
from tests.failover.replica_set import ReplicaSet
from worker.persist import persist

pytestmark = pytest.mark.asyncio(loop_scope="package")
MODELS = {"alpha": SimulatorSettings(task="chat", engine="simulator")}


async def test_a_new_primary_is_read_only_when_it_knows_what_was_committed_before(replicas: ReplicaSet) -> None:
    database = connect(replicas.uri, f"reads_{uuid4().hex}")
    try:
        await ensure_schema(database, retention=3600.0)
        reader = JobReader(database)
        job = await JobQueue(database, MODELS, QueueSettings()).submit(NewJob("chat", "alpha", "ann", {}))
        assert (await reader.get(str(job.id), "ann")).id == job.id
        others = await replicas.fail_over_without_a_majority(database)

        async def answers() -> bool:
            try:
                return await database.jobs.find_one({}) is not None
            except AutoReconnect:
                return False

        reading = asyncio.ensure_future(persist(lambda: reader.get(str(job.id), "ann")))
        for _ in range(20):
            assert await answers(), "the database itself goes on to answer, with what it knows"
            assert not reading.done()
        await asyncio.gather(*map(replicas.resume_replication, others))
        assert (await reading).id == job.id
    finally:
        await database.close()

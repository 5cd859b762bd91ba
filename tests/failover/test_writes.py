"""A write of which the primary cannot say whether a majority has it."""

from uuid import uuid4

import pytest
from pymongo.errors import AutoReconnect

from broker.database import connect, ensure_schema
from broker.job import NewJob
from broker.queue import JobQueue
from config import QueueSettings, SimulatorSettings
from tests.failover.replica_set import ReplicaSet

pytestmark = pytest.mark.asyncio(loop_scope="package")
MODELS = {"alpha": SimulatorSettings(task="chat", engine="simulator", max_concurrent=1, max_waiting=1)}
WRITE_CONCERN_FAILED = 64


async def test_a_submit_that_is_written_but_not_known_to_be_with_a_majority_is_not_acknowledged(
    replicas: ReplicaSet,
) -> None:
    name = f"writes_{uuid4().hex}"
    database = connect(replicas.uri, name)
    try:
        await ensure_schema(database, retention=3600.0)
        queue, new = JobQueue(database, MODELS, QueueSettings()), NewJob("chat", "alpha", "ann", {})
        await replicas.healthy()
        unclear = {"code": WRITE_CONCERN_FAILED, "errmsg": "waiting for replication timed out"}
        await (await replicas.primary()).command(
            "configureFailPoint",
            "failCommand",
            mode={"times": 1},
            data={"failCommands": ["insert"], "namespace": f"{name}.jobs", "writeConcernError": unclear},
        )
        with pytest.raises(AutoReconnect):
            await queue.submit(new)
        assert await database.jobs_local.count_documents({}) == 1, "written it was"
        assert (await queue.submit(new)).id == new.id
        await queue.submit(NewJob("chat", "alpha", "ann", {}))
        assert await database.jobs_local.count_documents({}) == 2, "the job that was sent twice has one place"
    finally:
        await database.close()

"""What the queue looks up after a write that matched nothing is as new as the write, on a new primary, too.

A write with majority that changes nothing waits until a majority has all that its primary had before. So the look-up
that follows, a majority read, sees that as well.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from bson import ObjectId

from broker.database import Database, connect, ensure_schema
from broker.errors import JobFinished
from broker.job import Failure, Idempotency, Job, NewJob, Status
from broker.queue import JobQueue
from config import QueueSettings, SimulatorSettings
from tests.failover.replica_set import ReplicaSet
from worker.persist import persist

pytestmark = pytest.mark.asyncio(loop_scope="package")
MODELS = {"alpha": SimulatorSettings(task="chat", engine="simulator", max_retries=0)}
SAME = Idempotency("a key", "a digest")


@pytest_asyncio.fixture(loop_scope="package")
async def database(replicas: ReplicaSet) -> AsyncIterator[Database]:
    database = connect(replicas.uri, f"look_ups_{uuid4().hex}")
    try:
        await ensure_schema(database, retention=3600.0)
        yield database
    finally:
        await database.close()


async def test_what_a_write_that_matched_nothing_looks_up_is_not_older_than_it(
    replicas: ReplicaSet, database: Database
) -> None:
    queue = JobQueue(database, MODELS, QueueSettings())
    done, failed = [await _claimed(queue) for _ in range(2)]
    keyed = await queue.submit(NewJob("chat", "alpha", "ann", {}, idempotency=SAME))
    assert await queue.complete(done, {"result": {"n": 1}})
    assert await queue.fail(failed, Failure("boom", "It failed.")) is Status.FAILED
    others = await replicas.fail_over_without_a_majority(database)

    repeated: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: queue.complete(done, {"result": {"n": 1}}),
        lambda: queue.fail(failed, Failure("boom", "It failed.")),
        lambda: queue.submit(NewJob("chat", "alpha", "ann", {}, idempotency=SAME)),
        lambda: _cancel(queue, done.id),
    ]
    asking = [asyncio.ensure_future(persist(question)) for question in repeated]
    done_early, _ = await asyncio.wait(asking, timeout=3.0, return_when=asyncio.FIRST_COMPLETED)
    assert not done_early, "none answers from what might be old"
    await asyncio.gather(*map(replicas.resume_replication, others))
    completed, outcome, resubmitted, cancelled = await asyncio.gather(*asking)
    assert (completed, outcome, resubmitted.id, cancelled) == (True, Status.FAILED, keyed.id, "finished")


async def _claimed(queue: JobQueue) -> Job:
    await queue.submit(NewJob("chat", "alpha", "ann", {}))
    (job,) = (await queue.claim("alpha", "worker")).jobs
    return job


async def _cancel(queue: JobQueue, job_id: ObjectId) -> str:
    try:
        await queue.cancel(job_id, "ann")
    except JobFinished:
        return "finished"
    return "cancelled"

"""A ``w:1`` claim that a failover rolls back: the failpoint ``stopReplProducer`` keeps it on the old primary alone."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from bson import ObjectId
from pymongo.errors import PyMongoError

from broker.database import Database, connect, ensure_schema
from broker.job import Failure, Job, NewJob, Status
from broker.queue import JobQueue
from config import QueueSettings, SimulatorSettings
from tests.conditions import eventually
from tests.failover.replica_set import Member, ReplicaSet
from worker.persist import persist

MODELS = {"alpha": SimulatorSettings(task="chat", engine="simulator", max_concurrent=2, max_waiting=2, max_retries=1)}
# Long, so that nothing but the failover takes a job from its worker.
SETTINGS = QueueSettings(lease=600, poll_interval=0.05, retry_backoff=0.02, retry_backoff_max=0.04)
pytestmark = pytest.mark.asyncio(loop_scope="package")
FIRST, SECOND = "first worker", "second worker"


@dataclass
class Scene:
    """A job that the first worker has claimed where nobody else knows of it. Each worker has its own connection."""

    replicas: ReplicaSet
    old: Member
    database: Database
    first: JobQueue
    second: JobQueue
    rolled_back: Job

    async def fail_over(self) -> None:
        """The old primary is isolated with the claim, and the others have a new one that replicates."""
        self.replicas.cut_off(self.old)
        await self.replicas.primary(other_than=self.old)
        for member in self.replicas.members:
            if member is not self.old:
                await self.replicas.resume_replication(member)

    async def claim_again(self) -> Job:
        """By the second worker; what it asks before it knows the new primary tells nothing."""
        found: list[Job] = []

        async def claimed() -> bool:
            try:
                found.extend((await self.second.claim("alpha", SECOND)).jobs)
            except PyMongoError:
                return False
            return bool(found)

        await eventually(claimed, within=60)
        return found[0]

    async def job(self) -> Job:
        document = await self.database.jobs.find_one({"_id": self.rolled_back.id})
        assert document is not None
        return Job.from_document(document)


@pytest_asyncio.fixture(loop_scope="package")
async def scene(replicas: ReplicaSet) -> AsyncIterator[Scene]:
    name = f"rollback_{uuid4().hex}"
    databases = [connect(replicas.uri, name) for _ in range(2)]
    try:
        await ensure_schema(databases[0], retention=3600.0)
        first, second = (JobQueue(database, MODELS, SETTINGS) for database in databases)
        await first.submit(NewJob("chat", "alpha", "ann", {}))
        await replicas.healthy()
        old = await replicas.primary()
        await asyncio.gather(*(replicas.stop_replication(member) for member in replicas.members if member is not old))
        (job,) = (await first.claim("alpha", FIRST)).jobs
        yield Scene(replicas, old, databases[1], first, second, job)
    finally:
        for database in databases:
            await database.close()


async def rollbacks(member: Member) -> int:
    """Grows with each rollback of the member."""
    return int((await member.command("replSetGetRBID"))["rbid"])


async def raw(scene: Scene, member: Member) -> dict[str, Any]:
    """The job as this very member has it."""
    async with member.client() as client:
        document = await client[scene.database.handle.name].jobs.find_one({"_id": scene.rolled_back.id})
    assert document is not None
    return document


async def assert_slots_are_free(queue: JobQueue) -> None:
    """All places can be taken, and then as many jobs claimed as ever."""
    for _ in range(4):
        await queue.submit(NewJob("chat", "alpha", "ann", {}))
    assert sorted(job.slot or 0 for job in (await queue.claim("alpha", SECOND, 4)).jobs) == [0, 1]
    assert (await queue.claim("alpha", SECOND)).jobs == []


async def test_a_late_completion_of_a_rolled_back_claim_matches_nothing(scene: Scene) -> None:
    before = await rollbacks(scene.old)
    await scene.fail_over()
    assert (await raw(scene, scene.old))["token"] == scene.rolled_back.token
    again = await scene.claim_again()
    assert (again.id, again.attempts) == (scene.rolled_back.id, 1), "two workers hold the same attempt"
    assert again.token != scene.rolled_back.token
    assert not await persist(lambda: scene.first.complete(scene.rolled_back, {"result": {"by": FIRST}}))
    assert await scene.first.renew({again.id: scene.rolled_back.token or ""}) == {again.id}
    await scene.first.progress(scene.rolled_back, 1, 2, "pages")
    assert await scene.first.fail(scene.rolled_back, Failure("late", "The first worker failed.")) is None
    assert not await scene.first.release(scene.rolled_back)
    job = await scene.job()
    assert (job.status, job.worker, job.attempts, job.progress) == (Status.PROCESSING, SECOND, 1, None)
    assert await scene.second.complete(again, {"result": {"by": SECOND}})
    ended = await scene.job()
    assert not await scene.first.complete(scene.rolled_back, {"result": {"by": FIRST}})
    await scene.replicas.mend()
    assert await rollbacks(scene.old) > before, "the claim was rolled back"
    await eventually_same(scene, ended)
    assert (ended.status, ended.result, ended.token) == (Status.COMPLETED, {"by": SECOND}, again.token)
    assert (ended.attempts, ended.errors, ended.slot) == (1, (), None)
    await assert_slots_are_free(scene.second)


async def eventually_same(scene: Scene, ended: Job) -> None:
    """All three members have the job as it ended."""

    async def same() -> bool:
        return all([Job.from_document(await raw(scene, member)) == ended for member in scene.replicas.members])

    await eventually(same, within=60)


async def test_a_renewal_knows_the_claim_and_a_completion_there_is_never_acknowledged(scene: Scene) -> None:
    other, lease = ObjectId(), {scene.rolled_back.id: scene.rolled_back.token or ""}
    # Else a job that ends at the moment of a renewal would cost every job that was just claimed its attempt.
    assert await scene.first.renew({**lease, other: "its token"}) == {other}
    late = asyncio.create_task(
        persist(lambda: scene.first.complete(scene.rolled_back, {"result": {"by": FIRST}})),
    )

    async def written() -> bool:
        return bool((await raw(scene, scene.old))["status"] == Status.COMPLETED)

    await eventually(written)
    assert not late.done(), "no majority has it"
    await scene.fail_over()
    again = await scene.claim_again()
    assert not await late, "the write was repeated at the new primary, and matched nothing"
    assert await scene.second.complete(again, {"result": {"by": SECOND}})
    await scene.replicas.mend()
    ended = await scene.job()
    assert (ended.status, ended.result, ended.attempts) == (Status.COMPLETED, {"by": SECOND}, 1)
    await eventually_same(scene, ended)
    await assert_slots_are_free(scene.second)


async def test_a_job_whose_claims_are_rolled_back_has_all_its_attempts(scene: Scene) -> None:
    await scene.fail_over()
    for attempt in (1, 2):
        job = await scene.claim_again()
        assert job.attempts == attempt
        outcome = await scene.second.fail(job, Failure("boom", "It failed."))
        assert outcome is (Status.QUEUED if attempt == 1 else Status.FAILED)
        await eventually_promoted(scene)
    ended = await scene.job()
    assert (ended.status, ended.attempts, len(ended.errors)) == (Status.FAILED, 2, 2), "1 + max_retries are recorded"
    assert not await persist(lambda: scene.first.complete(scene.rolled_back, {"result": {"by": FIRST}}))
    await scene.replicas.mend()
    await eventually_same(scene, ended)


async def eventually_promoted(scene: Scene) -> None:
    async def promoted() -> bool:
        await scene.second.promote()
        return (await scene.job()).not_before is None

    await eventually(promoted)

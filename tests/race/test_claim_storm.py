"""25 claimers in five processes on one model's jobs.

``CLAIM_STORM_JOBS=5000`` for as many as the design names; 1,000 by default, which show the same in a fifth of the time.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from bson import Timestamp

from broker.database import Database
from broker.job import NewJob
from broker.job_updates import DUPLICATE_KEY
from broker.queue import JobQueue
from tests.race.claimers import MODEL, MODELS, SETTINGS, SLOTS

JOBS = int(os.environ.get("CLAIM_STORM_JOBS", "1000"))
PROCESSES = 5
CLAIMERS = 5
MOST = 4
ROOT = Path(__file__).parent.parent.parent

Document = dict[str, Any]


@contextmanager
def process(uri: str, database: str) -> Iterator[subprocess.Popen[str]]:
    """Claimers that are ready and wait for a line."""
    command = [sys.executable, "-m", "tests.race.claimers", database, str(CLAIMERS), str(MOST)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            say(child, uri)  # not as an argument: it has the password
            yield child
        finally:
            child.kill()


def say(child: subprocess.Popen[str], line: str) -> None:
    to: IO[str] | None = child.stdin
    assert to is not None
    to.write(line + "\n")
    to.flush()


def storm(uri: str, database: str) -> list[list[list[str]]]:
    """For each claimer the ids of the jobs that it has run, round by round."""
    with ExitStack() as stack:
        children = [stack.enter_context(process(uri, database)) for _ in range(PROCESSES)]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            say(child, "go")
        claimers: list[list[list[str]]] = []
        for child in children:
            output, _ = child.communicate(timeout=120)
            assert child.returncode == 0
            claimers += json.loads(output)
        return claimers


async def test_a_storm_of_claimers_runs_each_job_once_in_order_and_reads_no_more_than_it_takes(
    store: Database, mongod_uri: str
) -> None:
    queue = JobQueue(store, MODELS, SETTINGS)
    submitted = [await asyncio.gather(*(submit(queue) for _ in range(500))) for _ in range(JOBS // 500)]
    await store.handle.create_collection("system.profile", capped=True, size=256 * 2**20)
    await store.handle.command("profile", 2)
    start = (await store.handle.command("hello"))["operationTime"]
    claimers = await asyncio.to_thread(storm, mongod_uri, store.handle.name)
    await store.handle.command("profile", 0)

    each = Counter(job for rounds in claimers for jobs in rounds for job in jobs)
    assert len(each) == sum(each.values()) == JOBS, "a job was run twice, or not at all"
    assert set(each) == {str(job) for jobs in submitted for job in jobs}
    documents = await store.jobs_local.find({}, {"status": 1, "attempts": 1, "seq": 1, "place": 1, "slot": 1}).to_list()
    assert {(d["status"], d["attempts"], "place" in d, "slot" in d) for d in documents} == {
        ("completed", 1, False, False)
    }
    check_order(await claims_since(store, start), documents)
    check_reads(await store.handle["system.profile"].find({"ns": f"{store.handle.name}.jobs"}).to_list())


async def submit(queue: JobQueue) -> Any:
    return (await queue.submit(NewJob("chat", MODEL, "ann", {}))).id


async def claims_since(store: Database, start: Timestamp) -> list[tuple[Any, int]]:
    """The claims, as job and slot, in the order in which the database has made them."""
    match = {"$match": {"updateDescription.updatedFields.status": "processing"}}
    claims: list[tuple[Any, int]] = []
    async with await store.jobs.watch([match], start_at_operation_time=start, batch_size=2000) as stream:
        while len(claims) < JOBS and (change := await stream.try_next()):
            claims.append((change["documentKey"]["_id"], change["updateDescription"]["updatedFields"]["slot"]))
    return claims


def check_order(claims: Sequence[tuple[Any, int]], documents: Sequence[Document]) -> None:
    """That no job was claimed while ``MOST`` older ones were left.

    When a claimer reads, each job that it reads is among the ``MOST`` oldest of those that wait, and until it writes
    that can only have become fewer: nothing comes back to the queue here.
    """
    oldest_first = [document["_id"] for document in sorted(documents, key=lambda document: document["seq"])]
    left = dict.fromkeys(oldest_first)
    assert len(claims) == JOBS
    for job, slot in claims:
        assert 0 <= slot < SLOTS
        older = next(n for n, other in enumerate(left) if other == job)
        assert older < MOST, f"{older} older jobs were left when {job} was claimed"
        del left[job]


def check_reads(profile: Sequence[Document]) -> None:
    """That every look at the queue and every claim used its index and read no more than it asked for."""
    looks = claims = 0
    for entry in profile:
        command, plan = entry["command"], entry.get("planSummary", "")
        if "errCode" in entry:  # a slot was taken by a rival: what it had read till then is not told
            assert entry["errCode"] == DUPLICATE_KEY
        elif entry["op"] == "update" and "lane" in command.get("q", {}):
            claims += 1
            assert plan.startswith("IXSCAN { _id: 1 }")
            assert entry["docsExamined"] <= len(command["q"]["_id"]["$in"]) <= MOST
        elif "aggregate" in command and "lane" in command["pipeline"][0].get("$match", {}):
            looks += 1
            assert plan.startswith("DISTINCT_SCAN { model: 1, lane: 1, seq: 1 }")
            assert entry["docsExamined"] <= 1, "one lane, one head"
        elif "lane" in command.get("filter", {}):
            looks += 1
            assert plan.startswith("IXSCAN { model: 1, lane: 1, seq: 1 }")
            assert entry["docsExamined"] <= command["limit"] <= MOST
    assert looks >= claims >= JOBS / MOST, "the profile is not whole"

"""What waits and comes for models that may be loaded; and that finding out stays cheap, whatever there is."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId, Timestamp

from broker import demand
from broker.database import CLAIM_INDEX, Database
from broker.demand import LATE, MOST, WINDOW, Arrivals, Demand, Demands
from broker.job import Failure, Job, NewJob
from broker.queue import JobQueue
from broker.registry import Registry
from broker.usage import Usage

Make = Callable[..., NewJob]
DEPTH = 5_000


@pytest.fixture
def demands(store: Database) -> Demands:
    return Demands(store, Registry(store))


async def of(demands: Demands, model: str = "beta", **ready_since: datetime) -> Demand:
    return (await demands.look({model: ready_since}))[model]


async def test_a_model_that_nobody_has_asked_for_has_no_demand(demands: Demands) -> None:
    assert await of(demands) == Demand()


async def test_what_waits_is_counted_with_the_wait_of_the_oldest_over_all_clients(
    demands: Demands, store: Database, queue: JobQueue, new_job: Make
) -> None:
    jobs = [await queue.submit(new_job("beta", subject=who)) for who in ("ann", "bob", "bob")]
    await queue.submit(new_job("alpha"))
    long_ago = Timestamp(int(time.time()) - 90, 1)
    await store.jobs.update_one({"_id": jobs[1].id}, {"$set": {"seq": long_ago}})
    found = await of(demands)
    assert found.queued == 3
    assert found.oldest_wait == pytest.approx(90, abs=30)
    assert (found.idle_for, found.running) == (0.0, {})


async def test_what_runs_or_backs_off_does_not_wait(demands: Demands, queue: JobQueue, new_job: Make) -> None:
    for _ in range(3):
        await queue.submit(new_job("beta"))
    running = (await queue.claim("beta", "w1", 2)).jobs + (await queue.claim("beta", "w2", 1)).jobs
    await queue.fail(running[0], Failure("x", "y"))
    found = await of(demands)
    assert (found.queued, found.oldest_wait, found.idle_for) == (0, 0.0, 0.0)
    assert found.running == {"w1": 1, "w2": 1}


async def test_of_those_who_wait_it_is_known_who_waited_when_an_engine_became_ready(
    demands: Demands, store: Database, queue: JobQueue, new_job: Make
) -> None:
    jobs = [await queue.submit(new_job("beta", subject=who)) for who in ("ann", "bob", "cat")]
    now = datetime.now(UTC)
    for job, seconds in zip(jobs[:2], (100, 50), strict=True):
        seq = Timestamp(int(now.timestamp()) - seconds, 1)
        await store.jobs.update_one({"_id": job.id}, {"$set": {"seq": seq}})
    since = {"early": now - timedelta(seconds=200), "w1": now - timedelta(seconds=60), "w2": now - timedelta(seconds=9)}
    assert (await of(demands, **since)).still_waiting == {"early": 0, "w1": 1, "w2": 2}


def id_of(moment: datetime) -> ObjectId:
    return ObjectId(ObjectId.from_datetime(moment).binary[:4] + ObjectId().binary[4:])


def stamped(model: str, seconds_ago: float, **of: Any) -> Mapping[str, Any]:
    return {"_id": id_of(datetime.now(UTC) - timedelta(seconds=seconds_ago)), "model": model, **of}


async def test_the_rate_is_of_the_last_minutes_and_of_jobs_in_any_state(demands: Demands, store: Database) -> None:
    ended = [stamped("beta", seconds, status="completed") for seconds in (10, 100, 200)]
    await store.jobs.insert_many([*ended, stamped("beta", WINDOW + 60), stamped("alpha", 20)])
    assert (await of(demands)).rate == 3 / WINDOW
    assert (await of(demands)).rate == 3 / WINDOW, "a second look counts nothing twice"


async def test_arrivals_are_counted_as_they_come_and_forgotten_when_they_are_old(store: Database) -> None:
    arrivals, now = Arrivals(store), time.time()
    await store.jobs.insert_many([stamped("beta", 1), stamped("beta", 2)])
    await arrivals.look(now)
    assert (arrivals.rate("beta"), arrivals.rate("alpha")) == (2 / WINDOW, 0.0)
    await store.jobs.insert_many([stamped("beta", LATE - 1), stamped("beta", 60)])
    await arrivals.look(now + 0.5)
    assert arrivals.rate("beta") == 3 / WINDOW, "one was stored a little late, one far too late"
    await arrivals.look(now + WINDOW + LATE + 1)
    assert arrivals.rate("beta") == 0.0


async def test_a_model_is_idle_since_its_last_job_ended_or_came(
    store: Database, queue: JobQueue, new_job: Make
) -> None:
    await queue.submit(new_job("beta"))
    (job,) = (await queue.claim("beta", "w1", 1)).jobs
    await queue.complete(job, {"result": {}})
    document = await store.jobs.find_one_and_delete({"_id": job.id})
    assert document is not None
    ended = datetime.now(UTC) - timedelta(seconds=800)
    await store.jobs.insert_one({**document, **stamped("beta", 900), "finished_at": ended})
    demands = Demands(store, Registry(store))
    assert (await of(demands)).idle_for == pytest.approx(800, abs=60)
    # One that came and ended between two looks. Had it come more than LATE seconds before, it would have come too late.
    await store.jobs.insert_one(stamped("beta", 3, status="completed"))
    assert 1 < (await of(demands)).idle_for < 60
    await queue.submit(new_job("beta"))
    assert (await of(demands)).idle_for == 0.0


async def fill(store: Database, history: int) -> None:
    """A deep queue of ten clients beside another model's, and a history."""
    documents: list[Mapping[str, Any]] = []
    now = int(time.time())
    for number in range(DEPTH):
        model = ("alpha", "beta")[number % 2]
        waits = {"lane": f"1:client-{number % 10}", "seq": Timestamp(now - DEPTH + number, 1), "status": "queued"}
        documents.append(stamped(model, 4000.0, **waits))
    for number in range(history):
        ended = {"status": "completed", "finished_at": datetime.now(UTC) - timedelta(seconds=number)}
        documents.append(stamped(("alpha", "beta")[number % 2], 5000.0, seq=Timestamp(now - 5000, 1), **ended))
    await store.jobs.insert_many(documents, ordered=False)


async def looked_at(store: Database, pipeline: Sequence[Mapping[str, Any]], hint: str) -> tuple[int, int, set[str]]:
    """Index keys and documents examined, and the stages of the plan."""
    command = {"aggregate": "jobs", "pipeline": list(pipeline), "hint": hint, "cursor": {}}
    told = await store.handle.command({"explain": command, "verbosity": "executionStats"})
    cursor = told["stages"][0]["$cursor"] if "stages" in told else told
    stats = cursor["executionStats"]
    return stats["totalKeysExamined"], stats["totalDocsExamined"], set(_stages(cursor["queryPlanner"]["winningPlan"]))


def _stages(plan: Mapping[str, Any]) -> list[str]:
    inner = [plan[key] for key in ("inputStage", "queryPlan") if key in plan]
    return [*([plan["stage"]] if "stage" in plan else []), *(stage for part in inner for stage in _stages(part))]


def counting(model: str, **query: Any) -> list[Mapping[str, Any]]:
    """What count_documents() sends."""
    found = {"model": model, "lane": {"$gte": ""}, **query}
    return [{"$match": found}, {"$limit": MOST}, {"$group": {"_id": 1, "n": {"$sum": 1}}}]


async def test_a_look_stays_flat_in_the_queue_s_depth_and_in_the_history(store: Database) -> None:
    await fill(store, history=DEPTH)
    distinct = {"PROJECTION_COVERED", "DISTINCT_SCAN"}
    keys, documents, stages = await looked_at(store, demand.waiting_models(), CLAIM_INDEX)
    assert (keys <= 3, documents, stages) == (True, 0, distinct)
    keys, documents, stages = await looked_at(store, demand.oldest("beta"), CLAIM_INDEX)
    assert (keys <= 10, documents, stages) == (True, 0, distinct)
    keys, documents, stages = await looked_at(store, counting("beta"), CLAIM_INDEX)
    assert (keys <= MOST + 1, documents, stages) == (True, 0, {"LIMIT", "IXSCAN"})
    # A gate that is nearly open: of each client's jobs only those are looked at that were there before.
    early = Timestamp(int(time.time()) - DEPTH + 100, 0)
    keys, documents, stages = await looked_at(store, counting("beta", seq={"$lt": early}), CLAIM_INDEX)
    assert (keys <= 150, documents, stages) == (True, 0, {"LIMIT", "IXSCAN"})
    keys, documents, _ = await looked_at(store, demand.arrivals(int(time.time()) - 1000), "_id_")
    assert (keys, documents) == (0, 0), "what came long ago is not looked at"


async def test_a_queue_longer_than_can_be_told_counts_as_that_long(store: Database, demands: Demands) -> None:
    await fill(store, history=0)
    found = await of(demands, w1=datetime.now(UTC))
    assert (found.queued, found.still_waiting) == (MOST, {"w1": MOST})
    assert found.oldest_wait == pytest.approx(DEPTH, abs=30)


async def test_usage_tells_by_the_hour_in_which_they_came_how_many_jobs_there_were(
    store: Database, queue: JobQueue, new_job: Make, standing_clock: datetime
) -> None:
    now = standing_clock
    hour, passed = divmod(int(now.timestamp()), 3600)
    jobs: list[Job] = [await queue.submit(replace(new_job("beta"), id=id_of(now))) for _ in range(2)]
    await store.jobs.insert_many([stamped("beta", passed + seconds) for seconds in (60, 120, 180)])
    await store.jobs.insert_one(stamped("beta", passed + 3600 + 600))
    usage = Usage(store)
    await usage.roll_up()
    await usage.roll_up()
    told = await usage.submitted(["alpha", "beta"], hour + 1, 7)
    assert told == {"beta": {hour: 2.0, hour - 1: 3.0}}, "two hours ago is over and done with"
    assert (await usage.submitted(["beta"], hour, 7)) == {"beta": {hour - 1: 3.0}}, "the hour that runs is not whole"
    for job in jobs:
        await store.jobs.delete_one({"_id": job.id})
    await usage.roll_up()
    assert (await usage.submitted(["beta"], hour + 1, 7))["beta"][hour] == 2.0, "jobs may go sooner than their hour"
    assert sum(row["completed"] for row in await usage.of("beta", datetime.now(UTC) - timedelta(hours=2))) == 0


async def test_of_hours_that_an_older_release_rolled_up_the_jobs_that_ended_are_known(store: Database) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    row = {"model": "beta", "hour": hour - timedelta(hours=5), "completed": 3, "failed": 1, "seconds": 9.0}
    await store.usage.insert_one({"_id": {"model": "beta", "hour": row["hour"]}, **row})
    number = int(hour.timestamp() // 3600)
    assert await Usage(store).submitted(["beta"], number, 7) == {"beta": {number - 5: 4.0}}

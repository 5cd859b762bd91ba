"""The queue with a long history, with a long queue, and with nothing to do."""

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from bson import ObjectId
from pymongo import MongoClient, WriteConcern

from tests.benchmarks.http import system
from tests.benchmarks.producer import MODEL
from tests.benchmarks.rounds import one_round
from tests.benchmarks.site import OTHER, Site, module, output, process, site
from tests.benchmarks.tables import TITLES, Rounds, against, table
from tests.benchmarks.work import THROUGHPUT, Figures, Plan, cpu_seconds, heard

EMPTY = "the empty system"
_BATCH = 2000
# History is spread over so many users and days, fewer days than it is kept for.
_USERS, _DAYS = 1000, 14
_AT_DEPTH = {
    THROUGHPUT: "as many jobs submitted behind the queue as awaited at its head",
    "submit": "one submit at a time",
    "position": "one position at a time",
    "cancel": "one cancellation at a time",
}


def with_history(plan: Plan, rounds: int, count: int) -> str:
    """``count`` finished jobs in the database, of many users and days."""
    name = f"with {count:,} finished jobs"
    with site() as empty, site() as full, full.database("history") as env:
        one_round(full, replace(plan, phases=(THROUGHPUT,), throughput=20), env)
        took = _finish(full, env, count)
        figures = _in_turns(plan, rounds, (EMPTY, empty, None), (name, full, env))
    return f"{against(figures, EMPTY, TITLES)}\n\nThe history was written in {took:.0f} s."


def _in_turns(plan: Plan, rounds: int, *situations: tuple[str, Site, Mapping[str, str] | None]) -> Rounds:
    """Situations on servers of their own, each time in the other order. No environment: a fresh database."""
    figures: defaultdict[str, list[Figures]] = defaultdict(list)
    for number in range(rounds):
        for name, place, env in situations if number % 2 == 0 else reversed(situations):
            if env is not None:
                figures[name] += one_round(place, plan, env)
            else:
                with place.database(f"round-{number}") as fresh:
                    figures[name] += one_round(place, plan, fresh)
    return figures


def _finish(place: Site, env: Mapping[str, str], count: int) -> float:
    """Writes copies of a job that was really completed, by other users on earlier days; in how many seconds."""
    start = time.monotonic()
    with place.client() as client:
        jobs = _jobs(client, env).with_options(write_concern=WriteConcern(1))
        template = jobs.find_one({"status": "completed"})
        assert template is not None
        copies = _copies(template, count)
        while batch := list(islice(copies, _BATCH)):
            jobs.insert_many(batch, ordered=False)
        client.admin.command("fsync")  # the servers' next minutes are not to go into writing this down
    return time.monotonic() - start


def _jobs(client: MongoClient[dict[str, Any]], env: Mapping[str, str]) -> Any:
    return client[env["ROUNDHOUSE__MONGODB__DATABASE"]]["jobs"]


def _copies(template: Mapping[str, Any], count: int) -> Iterator[dict[str, Any]]:
    now = datetime.now(UTC)
    for number in range(count):
        finished = now - timedelta(days=_DAYS) * (1 - number / count)
        times = dict.fromkeys(("created_at", "started_at", "finished_at"), finished)
        user = f"user-{number % _USERS}"
        yield {**template, **times, "_id": ObjectId(), "subject": user, "token": uuid.uuid4().hex}


def with_queue(plan: Plan, rounds: int, count: int) -> str:
    """``count`` jobs wait in another model, and then in the same one."""
    return f"{_other_model(plan, rounds, count)}\n\n{_same_model(plan, rounds, count)}"


def _other_model(plan: Plan, rounds: int, count: int) -> str:
    name = f"{count:,} queued in another model"
    with site() as empty, site() as full, full.database("queue") as env:
        output(*module("filler", OTHER, str(count)), env=env)
        figures = _in_turns(plan, rounds, (EMPTY, empty, None), (name, full, env))
    return against(figures, EMPTY, TITLES)


def _same_model(plan: Plan, rounds: int, count: int) -> str:
    """The comparison is with a queue that is just long enough for the work."""
    figures: defaultdict[str, list[Figures]] = defaultdict(list)
    short, long = plan.throughput, count - plan.throughput - 100
    with site() as place:
        for number in range(rounds):
            for depth in (short, long):
                with place.database(f"depth-{number}-{depth}") as env:
                    figures[f"{depth:,} queued"] += _at_depth(place, plan, env, depth)
    return against(figures, f"{short:,} queued", _AT_DEPTH)


def _at_depth(place: Site, plan: Plan, env: Mapping[str, str], depth: int) -> list[Figures]:
    with process(*module("worker", MODEL), env=env) as worker:
        told = replace(plan, processes={"worker": worker.pid, "broker": place.mongod})
        return heard(output(*module("producer", told.text(), str(depth)), env=env))


def idle(place: Site, seconds: float) -> str:
    """What a gateway and a worker with nothing to do cost, and what they ask the database."""
    with system(place, "idle") as (_, processes, _), place.client() as client:
        time.sleep(5)  # what they do once after their start
        database = client["idle"]
        database.command("profile", 2)
        before, cpu = _operations(client), {name: cpu_seconds(pid) for name, pid in processes.items()}
        time.sleep(seconds)
        after, spent = _operations(client), {name: cpu_seconds(pid) - cpu[name] for name, pid in processes.items()}
        database.command("profile", 0)
        asked = list(database["system.profile"].aggregate(_BY_SHAPE))
    shares = [[name, f"{100 * used / seconds:.2f}"] for name, used in spent.items()]
    rates = [[name, f"{(after[name] - before[name]) / seconds:.2f}"] for name in before]
    shapes = [[row["_id"]["op"], row["_id"]["ns"], row["_id"]["shape"], f"{row['n'] / seconds:.2f}"] for row in asked]
    return "\n\n".join(
        [
            table(["process", "% of a core"], shares),
            table(["operations on mongod (all)", "per second"], rates),
            table(["operation", "collection", "fields of its filter", "per second"], shapes),
        ]
    )


def _operations(client: MongoClient[dict[str, Any]]) -> dict[str, int]:
    counters = client.admin.command("serverStatus")["opcounters"]
    return {name: int(counters[name]) for name in ("query", "insert", "update", "delete", "getmore", "command")}


def _keys(path: str) -> dict[str, Any]:
    return {"$map": {"input": {"$objectToArray": {"$ifNull": [path, {}]}}, "in": "$$this.k"}}


_FILTER = {"$concatArrays": [_keys("$command.filter"), _keys("$command.q"), _keys("$command.query")]}
_SHAPE = {"$reduce": {"input": _FILTER, "initialValue": "", "in": {"$concat": ["$$value", " ", "$$this"]}}}
_BY_SHAPE: list[dict[str, Any]] = [
    {"$match": {"ns": {"$not": {"$regex": "system.profile"}}, "command.profile": {"$exists": False}}},
    {"$group": {"_id": {"op": "$op", "ns": "$ns", "shape": _SHAPE}, "n": {"$sum": 1}}},
    {"$sort": {"n": -1}},
]

"""The queue's state machine, driven at random on a real mongod and compared with a model after every step.

The schedules are the same in each run. ``STATE_MACHINE_EXAMPLES=500`` tries so many that nobody has tried before.

Time is long here: leases and backoffs of an hour, which end when a rule sets them back in the database.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from bson import ObjectId, Timestamp
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from broker.database import Database, connect, ensure_schema
from broker.errors import JobFinished, JobNotFound, QueueFull
from broker.fallback import another_may
from broker.job import LEASE_EXPIRED, LEGAL, Failure, Job, NewJob, Priority, Status, after_failure
from broker.lanes import Lanes, Resolutions
from broker.queue import JobQueue
from broker.registry import ModelState, Worker
from config import QueueSettings, SimulatorSettings
from tests.race.rank import turns

T = TypeVar("T")
Document = dict[str, Any]

HOUR = 3600.0
AGING = 120.0
WEIGHTS = {"bob": 2.0}
MODELS = {
    "alpha": SimulatorSettings(
        task="chat", engine="simulator", max_concurrent=2, max_waiting=2, max_retries=1, fallbacks=["beta"]
    ),
    "beta": SimulatorSettings(task="chat", engine="simulator", max_concurrent=3, max_waiting=3, max_retries=0),
}
BOUND = {name: model.max_concurrent + model.max_waiting for name, model in MODELS.items()}
SETTINGS = QueueSettings(lease=HOUR, retry_backoff=HOUR, retry_backoff_max=HOUR, aging=AGING, weights=WEIGHTS)
FAILURES = {
    "transient": Failure("oops", "it broke"),
    "permanent": Failure("bad_input", "it can never work", permanent=True),
    "away": Failure("backends_held_back", "nobody is there"),
    "timeout": Failure("attempt_timeout", "it took too long", timeout=True),
}
WORKERS = (0, 1)

_EXAMPLES = int(os.environ.get("STATE_MACHINE_EXAMPLES", "0"))
SCHEDULE = settings(
    max_examples=_EXAMPLES or 30,
    derandomize=not _EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@dataclass(slots=True)
class Expected:
    """What a job's document has to look like. ``attempt``: whose token it bears. ``lease``: whether it bears one.

    ``timed``: that the lease ends at a time of its own, which a direct one does from its first renewal on.
    """

    job: Job
    status: Status = Status.QUEUED
    attempts: int = 0
    errors: list[str] = field(default_factory=list)
    attempt: Job | None = None
    lease: bool = False
    timed: bool = False
    lapsed: bool = False
    waits: bool = False
    due: bool = False
    gained: bool = False
    result: Mapping[str, Any] | None = None
    hops: list[tuple[str, str]] = field(default_factory=list)

    def claimed(self, attempt: Job) -> None:
        self.status, self.attempt, self.lease, self.lapsed = Status.PROCESSING, attempt, True, False
        self.attempts += 1
        self.timed = True

    def leased(self, attempt: Job) -> None:
        self.status, self.attempt, self.lease = Status.PROCESSING, attempt, True

    def confirmed(self) -> None:
        """The first word of a worker counts the attempt of a direct lease."""
        assert self.attempt is not None
        self.attempts = self.attempt.attempts

    def requeued(self, *, waits: bool) -> None:
        self.status, self.attempt, self.lease, self.lapsed = Status.QUEUED, None, False, False
        self.gained = False
        self.waits, self.due = waits, False

    def ended(self, status: Status) -> None:
        self.status, self.waits, self.due = status, False, False
        if status is not Status.CANCELLED:  # a cancelled job's slot frees when its worker has stopped
            self.lease = self.lapsed = False

    def failed(self, failure: Failure, *, gained: bool, room: bool) -> Status:
        """An attempt that has brought its job further does not count, unless there is no use in another.

        ``room``: whether the model that stands in has a place free.
        """
        self.confirmed()
        if gained and not failure.permanent:
            self.attempts -= 1
        status = after_failure(self.attempts, self.job.max_retries, failure)
        self.errors.append(failure.code)
        hopeless = another_may(failure) if status.terminal else failure is FAILURES["away"]
        if hopeless and self.job.fallbacks and room:
            self.moved(failure)
            return Status.QUEUED
        if status is Status.QUEUED:
            self.requeued(waits=True)
        else:
            self.ended(status)
        return status

    def moved(self, failure: Failure) -> None:
        """Another model takes the job over, as if it had just come there."""
        to, *rest = self.job.fallbacks
        self.hops.append((self.job.model, failure.code))
        self.job = replace(self.job, model=to, fallbacks=tuple(rest), max_retries=MODELS[to].max_retries)
        self.requeued(waits=False)
        self.attempts = 0


class Rereading(Lanes):
    """Lets a claimer act on what it read a while ago, as one does that was paused between its read and its write."""

    seen: list[Document] | None = None

    async def next_jobs(self, model: str, most: int, resolutions: Resolutions = None) -> tuple[list[Document], bool]:
        if self.seen is None:
            return await super().next_jobs(model, most)
        seen, self.seen = self.seen, None
        return seen[:most], True


@dataclass(frozen=True, slots=True)
class Bench:
    """An event loop and a connection that all examples share."""

    runner: asyncio.Runner
    database: Database

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)


def picked(candidates: list[T], number: int) -> T:
    return candidates[number % len(candidates)]


NUMBERS = st.integers(0, 99)
WRITES = st.sampled_from(("complete", "fail", "release", "progress", "renew", "reap", "free_slot"))


class QueueMachine(RuleBasedStateMachine):
    """Two processes, each with a queue of its own, act as gateways, workers and clockwork on the same jobs."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.run = bench.run
        self.store = Database(bench.database.client, bench.database.client[f"test_{uuid4().hex}"])
        self.run(ensure_schema(self.store, HOUR))
        self.lanes = [Rereading(self.store, WEIGHTS, AGING) for _ in WORKERS]
        self.queues = [JobQueue(self.store, MODELS, SETTINGS, lanes, self.live_workers) for lanes in self.lanes]
        self.alive: list[Worker] = []
        self.expected: dict[ObjectId, Expected] = {}
        self.attempts: list[Job] = []
        self.claimer: dict[str, int] = {}  # token → worker
        self.seen: dict[tuple[int, str], list[Document]] = {}
        self.expired: list[Job] = []
        self.before: dict[ObjectId, Document] = {}

    def teardown(self) -> None:
        self.run(self.store.client.drop_database(self.store.handle.name))

    async def live_workers(self) -> list[Worker]:
        return self.alive

    # ── What the rules choose from ───────────────────────────────────────────────────────────────────────────────

    def documents(self) -> dict[ObjectId, Document]:
        return {document["_id"]: document for document in self.run(self.store.jobs_local.find().to_list())}

    def live(self) -> list[Job]:
        """The attempts that hold their job."""
        return [e.attempt for e in self.expected.values() if e.attempt and e.status is Status.PROCESSING]

    def dead(self) -> list[Job]:
        live = {(job.id, job.token) for job in self.live()}
        return [job for job in self.attempts if (job.id, job.token) not in live]

    def overtaken(self) -> list[Job]:
        """The attempts whose job another attempt holds, or held when it was cancelled."""
        held = {e.job.id: e.attempt for e in self.leases()}
        return [job for job in self.dead() if job.id in held and job != held[job.id]]

    def leases(self) -> list[Expected]:
        return [e for e in self.expected.values() if e.lease]

    def held(self, model: str) -> list[Expected]:
        return [e for e in self.leases() if e.job.model == model]

    def in_backoff(self) -> list[Expected]:
        return [e for e in self.expected.values() if e.waits]

    def claimable(self) -> list[Expected]:
        return [e for e in self.expected.values() if e.status is Status.QUEUED and not e.waits]

    def taken(self, model: str) -> int:
        """Places."""
        return sum(e.job.model == model and not e.status.terminal for e in self.expected.values())

    def room(self, job: Job) -> bool:
        """Whether a model that stands in for the job's has a place free."""
        return any(self.taken(name) < BOUND[name] for name in job.fallbacks)

    def waiting(self, model: str) -> list[Expected]:
        return [e for e in self.claimable() if e.job.model == model]

    def queue_of(self, job: Job) -> JobQueue:
        return self.queues[self.claimer[str(job.token)]]

    # ── The client's rules ───────────────────────────────────────────────────────────────────────────────────────

    @rule(
        gateway=st.sampled_from(WORKERS),
        model=st.sampled_from(sorted(MODELS)),
        subject=st.sampled_from(("ann", "bob")),
        priority=st.sampled_from(Priority),
        alive=st.sampled_from(((), *((worker,) for worker in WORKERS))),
    )
    def submit(self, gateway: int, model: str, subject: str, priority: Priority, alive: tuple[int, ...]) -> None:
        """``alive``: the workers that the gateway knows of, and may lease a job to directly."""
        self.alive = [live_worker(f"worker-{number}") for number in alive]
        asked = model
        if self.taken(model) == BOUND[model] and (others := MODELS[model].fallbacks):
            model = others[0]
        may_run = not self.waiting(model) and len(self.held(model)) < MODELS[model].max_concurrent
        taken = self.taken(model)
        new = NewJob("chat", asked, subject, {"n": len(self.expected)}, priority=priority)
        try:
            job = self.run(self.queues[gateway].submit(new))
        except QueueFull:
            assert taken == BOUND[model], f"{model} has a place: {taken} of {BOUND[model]} are taken"
        else:
            assert taken < BOUND[model], f"{model} has no place"
            assert job.model == model
            self.expected[job.id] = Expected(job, hops=[] if asked == model else [(asked, "queue_full")])
            if job.status is Status.PROCESSING:
                assert may_run, "somebody was overtaken, or ran beyond the bound"
                (worker,) = alive
                self.begin(worker, model)

    def begin(self, worker: int, model: str) -> None:
        """The worker finds what was leased to it."""
        for job in self.run(self.queues[worker].direct_leases(f"worker-{worker}", [model])):
            expected = self.expected[job.id]
            if expected.attempt is None:
                expected.leased(job)
                self.attempts.append(job)
                self.claimer[str(job.token)] = worker
            assert (expected.attempts, expected.attempt, job.attempts) == (0, job, 1)

    @precondition(lambda self: self.expected)
    @rule(number=NUMBERS, who=st.sampled_from(("owner", "admin", "stranger")))
    def cancel(self, number: int, who: str) -> None:
        # Mostly one that is open: the others only refuse.
        open_ones = [e for e in self.expected.values() if not e.status.terminal]
        expected = picked((open_ones if number % 4 else []) or list(self.expected.values()), number)
        subject = {"owner": expected.job.subject, "admin": None, "stranger": "eve"}[who]
        try:
            self.run(self.queues[0].cancel(expected.job.id, subject))
        except JobNotFound:
            assert who == "stranger"
        except JobFinished:
            assert expected.status.terminal
            assert expected.status is not Status.CANCELLED
        else:
            assert who != "stranger"
            expected.ended(Status.CANCELLED)

    # ── The worker's rules ───────────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.claimable())
    @rule(worker=st.sampled_from(WORKERS), most=st.integers(1, 3), number=NUMBERS)
    def claim(self, worker: int, most: int, number: int) -> None:
        model = picked(self.claimable(), number).job.model
        ready = [self.before[e.job.id] for e in self.claimable() if e.job.model == model]
        shares = self.shares(model)
        free = MODELS[model].max_concurrent - len(self.held(model))
        # Where somebody else holds slots, the round may meet one that is taken and end early, out of order.
        alone = all(self.claimer[str(e.attempt.token)] == worker for e in self.held(model) if e.attempt)
        jobs = self.claimed(worker, model, most)
        assert bool(jobs) == bool(free), f"{free} slots are free and {len(ready)} jobs wait"
        assert len(jobs) <= min(most, free)
        if alone and jobs:
            self.check_turns(model, jobs, ready, shares)

    def claimed(self, worker: int, model: str, most: int) -> list[Job]:
        claims = self.run(self.queues[worker].claim(model, f"worker-{worker}", most))
        jobs, documents = claims.jobs, self.documents()
        for job in jobs:
            expected = self.expected[job.id]
            assert expected.status is Status.QUEUED
            assert not expected.waits
            expected.claimed(job)
            self.attempts.append(job)
            self.claimer[str(job.token)] = worker
            stored = Job.from_document(documents[job.id])
            for name in ("token", "slot", "worker", "attempts", "errors", "status", "payload"):
                assert getattr(job, name) == getattr(stored, name), f"the worker was told another {name}"
        assert claims.more or all(e.job.model != model for e in self.claimable()), "a job that waits was not told of"
        return jobs

    def shares(self, model: str) -> Document:
        return self.run(self.store.shares.find_one({"_id": model})) or {}

    def check_turns(self, model: str, jobs: list[Job], ready: list[Document], before: Document) -> None:
        """That the jobs are those whose turn it was, and that their clients have been charged for them."""
        now = self.run(self.store.handle.command("hello"))["localTime"].timestamp()
        naive = turns(ready, before, WEIGHTS, AGING, now, len(jobs))
        assert [job.id for job in jobs] == naive.order
        if len({document["subject"] for document in ready}) == 1:
            return  # one who waits alone need not be charged
        after = self.shares(model)
        assert after["now"] >= before.get("now", 0.0)
        for subject, count in Counter(job.subject for job in jobs).items():
            key = subject.encode().hex()
            spent = max(before.get("spent", {}).get(key, 0.0), after["now"]) + count / WEIGHTS.get(subject, 1.0)
            assert after["spent"][key] == spent

    @precondition(lambda self: self.claimable())
    @rule(worker=st.sampled_from(WORKERS), most=st.integers(1, 3), number=NUMBERS)
    def see_what_waits(self, worker: int, most: int, number: int) -> None:
        model = picked(self.claimable(), number).job.model
        self.seen[worker, model], _ = self.run(self.lanes[worker].next_jobs(model, most))

    @precondition(lambda self: self.seen)
    @rule(number=NUMBERS)
    def claim_what_was_seen(self, number: int) -> None:
        worker, model = picked(sorted(self.seen), number)
        self.lanes[worker].seen = self.seen.pop((worker, model))
        self.claimed(worker, model, 3)
        self.lanes[worker].seen = None  # where no slot was free it was not asked for

    @precondition(lambda self: self.live())
    @rule(number=NUMBERS, failure=st.sampled_from(("", *sorted(FAILURES))))
    def end_an_attempt(self, number: int, failure: str) -> None:
        job = picked(self.live(), number)
        if failure:
            self.fail(job, FAILURES[failure])
        else:
            self.complete(job)

    @precondition(lambda self: self.live())
    @rule(number=NUMBERS, how=st.sampled_from(("die", "drain", "make room")), worker=st.sampled_from(WORKERS))
    def hand_a_job_on(self, number: int, how: str, worker: int) -> None:
        """Its worker dies, drains or lets others go first, and somebody claims what is next, often the same job."""
        job = picked(self.live(), number)
        if how == "die":
            self.lose_a_worker_and_come_back(self.expected[job.id])
        else:
            self.release(job, to_the_back=how == "make room")
        self.all_promises_hold()
        self.claimed(worker, job.model, 1)

    def complete(self, job: Job) -> None:
        result = {"text": f"{job.attempts} of {job.id}"}
        assert self.run(self.queue_of(job).complete(job, {"result": result}))
        expected = self.expected[job.id]
        expected.result = result
        expected.confirmed()
        expected.ended(Status.COMPLETED)

    def fail(self, job: Job, failure: Failure) -> None:
        gained, room = self.expected[job.id].gained, self.room(job)
        outcome = self.run(self.queue_of(job).fail(job, failure, gained=gained))
        assert outcome is self.expected[job.id].failed(failure, gained=gained, room=room)

    def release(self, job: Job, *, to_the_back: bool) -> None:
        assert self.run(self.queue_of(job).release(job, to_the_back=to_the_back))
        if to_the_back:
            latest = max((document["seq"], job_id) for job_id, document in self.documents().items())
            assert latest[1] == job.id, "it goes before somebody who was there already"
        expected = self.expected[job.id]
        expected.attempts = job.attempts - 1
        expected.requeued(waits=False)

    @precondition(lambda self: self.attempts)
    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: int) -> None:
        """All that the worker believes to hold, in one write."""
        mine = {job.id: str(job.token) for job in self.attempts if self.claimer[str(job.token)] == worker}
        live = {job.id for job in self.live() if mine.get(job.id) == job.token}
        assert self.run(self.queues[worker].renew(mine)) == set(mine) - live
        for job_id in live:
            expected = self.expected[job_id]
            expected.confirmed()
            expected.lapsed, expected.timed = False, True

    @precondition(lambda self: self.live())
    @rule(number=NUMBERS, done=st.integers(0, 9), gained=st.booleans())
    def progress(self, number: int, done: int, gained: bool) -> None:
        job = picked(self.live(), number)
        self.run(self.queue_of(job).progress(job, done, None, "pages", gained=gained))
        expected = self.expected[job.id]
        expected.confirmed()
        expected.gained |= gained
        assert self.documents()[job.id]["progress"] == {"done": done, "total": None, "unit": "pages"}

    @precondition(lambda self: any(e.status is Status.CANCELLED for e in self.leases()))
    @rule(number=NUMBERS)
    def free_slot(self, number: int) -> None:
        expected = picked([e for e in self.leases() if e.status is Status.CANCELLED], number)
        assert expected.attempt is not None
        self.run(self.queues[0].free_slot(expected.attempt))
        expected.lease = expected.lapsed = False

    @precondition(lambda self: self.dead())
    @rule(number=NUMBERS, write=WRITES)
    def write_for_an_old_attempt(self, number: int, write: str) -> None:
        """Nothing changes; only who had succeeded with the same write before is told so."""
        job = picked(self.overtaken() or self.dead(), number)
        queue, expected, before = self.queue_of(job), self.expected[job.id], self.documents()
        had = expected.status if expected.attempt == job else None
        match write:
            case "complete":
                done = self.run(queue.complete(job, {"result": {"text": "late"}}))
                assert done == (had is Status.COMPLETED)
            case "fail":
                failure = FAILURES["permanent"]
                assert self.run(queue.fail(job, failure)) is (Status.FAILED if had is Status.FAILED else None)
            case "release":
                assert not self.run(queue.release(job))
            case "progress":
                self.run(queue.progress(job, 99, 100, "pages", gained=True))
            case "renew":
                assert self.run(queue.renew({job.id: str(job.token)})) == {job.id}
            case "reap":
                # A write that ended the job in the way in which the reaper would is taken for the reaper's own.
                last = had is Status.FAILED and job.attempts > job.max_retries
                assert self.run(queue.reap(job)) is (Status.FAILED if last else None)
            case "free_slot" if had is not Status.CANCELLED:  # for a cancelled one see free_slot
                self.run(queue.free_slot(job))
        assert self.documents() == before

    # ── Time, and the clockwork's rules ──────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: any(e.lease or not e.status.terminal for e in self.expected.values()))
    @rule(number=NUMBERS)
    def time_passes(self, number: int) -> None:
        """For one job: its lease or its backoff ends, or it has waited for one or two times of aging more."""
        events = [(e, "lease_expires_at") for e in self.leases()] + [(e, "not_before") for e in self.in_backoff()]
        ages = [(e, "seq") for e in self.claimable()]
        expected, event = picked((events if number % 3 else ages) or events + ages, number)
        match event:
            case "lease_expires_at":
                expected.lapsed = expected.timed = True
                self.put_back(expected, event)
            case "not_before":
                expected.due = True
                self.put_back(expected, event)
            case _:
                seq = self.documents()[expected.job.id]["seq"]
                older = Timestamp(seq.time - round((1 + number % 2) * AGING), seq.inc)
                self.run(self.store.jobs.update_one({"_id": expected.job.id}, {"$set": {"seq": older}}))

    def put_back(self, expected: Expected, name: str) -> None:
        change = {name: {"$dateSubtract": {"startDate": "$$NOW", "unit": "second", "amount": 1}}}
        self.run(self.store.jobs.update_one({"_id": expected.job.id}, [{"$set": change}]))

    @precondition(lambda self: self.leases() or self.in_backoff() or self.expired)
    @rule(duty=st.sampled_from(("look", "reap", "look and reap", "promote")))
    def clockwork(self, duty: str) -> None:
        if "look" in duty:
            self.look_for_expired()
        if "reap" in duty:
            self.reap()
        if duty == "promote":
            self.promote()

    def look_for_expired(self) -> None:
        self.expired = self.run(self.queues[1].expired())
        # A renewal of this moment may not be seen yet, which does no harm: the reaper's write looks again.
        assert {job.id for job in self.expired} >= {e.job.id for e in self.leases() if e.lapsed}

    def reap(self) -> None:
        """What was seen a while ago: it may have been renewed, ended, or taken anew meanwhile."""
        expired, self.expired = self.expired, []
        for job in expired:
            expected = self.expected[job.id]
            mine = expected.attempt is not None and expected.attempt.token == job.token
            room = self.room(job)
            outcome = self.run(self.queues[1].reap(job))
            if job.status is Status.CANCELLED:
                expected.lease = expected.lapsed = False
            elif mine and expected.lapsed and expected.status is Status.PROCESSING and job.attempts == 0:
                assert outcome is None
                if expected.attempts == 0:  # else it was confirmed since the reaper looked: the next look will tell
                    expected.requeued(waits=False)
            elif mine and expected.lapsed and expected.status is Status.PROCESSING:
                assert outcome is expected.failed(LEASE_EXPIRED, gained=job.gained, room=room)
            elif not (mine and expected.status is Status.FAILED):
                assert outcome is None

    def promote(self) -> None:
        due = [e for e in self.in_backoff() if e.due]
        assert self.run(self.queues[1].promote()) == len(due)
        for expected in due:
            expected.waits = expected.due = False

    def lose_a_worker_and_come_back(self, expected: Expected) -> None:
        """All that happens to a job whose worker dies, until it can be claimed again."""
        expected.lapsed = expected.timed = True
        self.put_back(expected, "lease_expires_at")
        self.look_for_expired()
        self.reap()
        self.all_promises_hold()
        if expected.waits:
            expected.due = True
            self.put_back(expected, "not_before")
            self.promote()

    # ── What holds after each step ───────────────────────────────────────────────────────────────────────────────

    @invariant()
    def all_promises_hold(self) -> None:
        before, after = self.before, self.documents()
        self.before = after
        assert set(after) == set(self.expected), "a job was lost or invented"
        for job_id, document in after.items():
            check_document(document, self.expected[job_id])
            if job_id in before:
                check_transition(before[job_id], document)
        for model in MODELS:
            check_numbers(model, [document for document in after.values() if document["model"] == model])


def check_document(document: Document, expected: Expected) -> None:
    """That the document is what the model says, and has what its status has, and nothing else."""
    status = Status(document["status"])
    assert status is expected.status
    assert document["attempts"] == expected.attempts <= 1 + expected.job.max_retries
    assert [error["code"] for error in document.get("errors", [])] == expected.errors
    assert (document["model"], document["max_retries"]) == (expected.job.model, expected.job.max_retries)
    assert [(hop["model"], hop["code"]) for hop in document.get("hops", [])] == expected.hops
    assert document.get("fallbacks", []) == list(expected.job.fallbacks)
    assert document.get("result") == expected.result
    assert ("result" in document) == (status is Status.COMPLETED)
    attempt = expected.attempt
    assert document.get("token") == (attempt.token if attempt else None)
    assert document.get("worker") == (attempt.worker if attempt else None)
    assert document.get("slot") == (attempt.slot if attempt and expected.lease else None)
    present = {
        "place": not status.terminal,
        "lane": status is Status.QUEUED and not expected.waits,
        "not_before": expected.waits,
        "slot": expected.lease,
        "gained": expected.gained and status in (Status.PROCESSING, Status.CANCELLED),
        "lease_expires_at": expected.lease and expected.timed,
        "finished_at": status.terminal,
    }
    assert {name: name in document for name in present} == present


def check_transition(before: Document, after: Document) -> None:
    """That the step was legal: terminal is forever, and a lease is never passed on directly."""
    old, new = Status(before["status"]), Status(after["status"])
    if old.terminal:
        freed = {"slot", "lease_expires_at"} if old is Status.CANCELLED else set()
        gone = set(before) - set(after)
        assert gone <= freed
        assert after == {name: value for name, value in before.items() if name not in gone} | (
            {"lease_expires_at": after["lease_expires_at"]} if "lease_expires_at" in after else {}
        )
    elif before["model"] != after["model"]:
        assert (old, new) == (Status.PROCESSING, Status.QUEUED), "a job changed its model with nobody giving it up"
        assert after["model"] in before["fallbacks"]
    elif old is not new:
        assert new in LEGAL[old], f"{old} → {new}"
    elif new is Status.PROCESSING:
        assert before["token"] == after["token"], "a job has two leases"


def check_numbers(model: str, documents: list[Document]) -> None:
    """That each open job has one place and each held job one slot, within the bounds, and nobody else has any."""
    places = [document["place"] for document in documents if "place" in document]
    slots = [document["slot"] for document in documents if "slot" in document]
    assert len(places) == sum(not Status(document["status"]).terminal for document in documents)
    for numbers, limit in ((places, BOUND[model]), (slots, MODELS[model].max_concurrent)):
        assert len(set(numbers)) == len(numbers)
        assert set(numbers) <= set(range(limit))


def live_worker(name: str) -> Worker:
    now = datetime.now(UTC)
    return Worker(name, "here", 1, now, now, False, dict.fromkeys(MODELS, ModelState(ready=True, state="ready")))


def test_no_sequence_of_steps_breaks_a_promise_of_the_queue(mongod_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.job_updates.CONFIRM", HOUR)
    monkeypatch.setattr("broker.direct.PAUSE", 0.0)
    with asyncio.Runner() as runner:
        bench = Bench(runner, connect(mongod_uri, "unused"))
        try:
            # It takes any factory, whatever its annotation says.
            run_state_machine_as_test(lambda: QueueMachine(bench), settings=SCHEDULE)  # type: ignore[arg-type]
        finally:
            bench.run(bench.database.close())

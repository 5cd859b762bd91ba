import asyncio
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Any
from uuid import uuid4

import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from gateway.rate_limit import (
    COLLECTION,
    Decision,
    Limit,
    RateLimiter,
    decide,
    ensure_rate_limit_schema,
    rate_limited,
)

Database = AsyncDatabase[dict[str, Any]]
LIMIT = Limit(requests_per_minute=60, burst=10)


def test_the_first_request_leaves_the_rest_of_the_burst() -> None:
    decision = decide(full_at=11_000, now=10_000, allowed=True, limit=LIMIT)
    assert decision == Decision(allowed=True, limit=10, remaining=9, reset_after=1.0, retry_after=0.0)


def test_an_empty_bucket_says_when_the_next_request_is_allowed() -> None:
    decision = decide(full_at=19_500, now=10_000, allowed=False, limit=LIMIT)
    assert decision == Decision(allowed=False, limit=10, remaining=0, reset_after=9.5, retry_after=0.5)


def test_fractions_do_not_cost_a_request() -> None:
    odd = Limit(requests_per_minute=7, burst=3)
    full_at = 1_700_000_000_000.0
    for used in range(1, 4):
        decision = decide(full_at + used * odd.interval, full_at, True, odd)
        assert decision.remaining == 3 - used


def test_a_refusal_tells_clients_in_whole_seconds_and_ours_exactly() -> None:
    decision = Decision(allowed=False, limit=10, remaining=0, reset_after=9.5004, retry_after=0.2)
    problem = rate_limited(decision)
    assert (problem.status, problem.code) == (429, "rate_limited")
    assert problem.headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "9.5s",
        "Retry-After": "1",
    }


def test_an_allowed_request_is_not_told_to_retry() -> None:
    assert "Retry-After" not in decide(1000, 0, True, LIMIT).headers()


async def test_a_burst_is_admitted_and_not_one_more(database: Database) -> None:
    limiter = RateLimiter(database, "submit", Limit(requests_per_minute=1, burst=3))
    decisions = [await limiter.acquire("ada") for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True, True, True, False, False]
    assert [decision.remaining for decision in decisions] == [2, 1, 0, 0, 0]
    assert 59 <= decisions[-1].retry_after <= 60
    assert 179 <= decisions[-1].reset_after <= 180


async def test_a_refused_request_costs_nothing(database: Database) -> None:
    limiter = RateLimiter(database, "submit", Limit(requests_per_minute=1, burst=1))
    assert (await limiter.acquire("ada")).allowed
    waits = [(await limiter.acquire("ada")).retry_after for _ in range(20)]
    assert max(waits) <= 60


async def test_subjects_and_limiters_do_not_share_a_bucket(database: Database) -> None:
    limit = Limit(requests_per_minute=1, burst=1)
    submit, login = RateLimiter(database, "submit", limit), RateLimiter(database, "login", limit)
    assert (await submit.acquire("ada")).allowed
    assert (await submit.acquire("bob")).allowed
    assert (await login.acquire("ada")).allowed
    assert not (await submit.acquire("ada")).allowed


async def test_a_forgotten_subject_starts_anew(database: Database) -> None:
    limiter = RateLimiter(database, "login", Limit(requests_per_minute=1, burst=1))
    await limiter.acquire("ada")
    await limiter.forget("ada")
    assert (await limiter.acquire("ada")).allowed


async def test_what_has_passed_fills_the_bucket_again(database: Database) -> None:
    limiter = RateLimiter(database, "submit", Limit(requests_per_minute=600, burst=1))
    assert (await limiter.acquire("ada")).allowed
    refused = await limiter.acquire("ada")
    assert not refused.allowed
    await asyncio.sleep(refused.retry_after)  # what the test is about: the time that it says suffices
    assert (await limiter.acquire("ada")).allowed


async def test_idle_subjects_vanish_by_an_index(database: Database) -> None:
    await ensure_rate_limit_schema(database)
    await ensure_rate_limit_schema(database)
    await RateLimiter(database, "submit", LIMIT).acquire("ada")
    document = await database[COLLECTION].find_one({})
    assert document is not None
    assert abs(document["expires_at"].timestamp() * 1000 - document["full_at"]) < 1
    indexes = await database[COLLECTION].index_information()
    assert indexes["ttl_expires_at"]["expireAfterSeconds"] == 60


async def test_first_requests_that_come_all_at_once_are_counted_each(database: Database) -> None:
    limiter = RateLimiter(database, "submit", Limit(requests_per_minute=1, burst=5))
    for _ in range(5):
        subject = uuid4().hex
        decisions = await asyncio.gather(*(limiter.acquire(subject) for _ in range(30)))
        assert sum(decision.allowed for decision in decisions) == 5


RATE, BURST, SECONDS = 3000, 20, 3.0


@dataclass(frozen=True)
class Hammered:
    """``begin`` and ``end``: by the clock that all processes of a machine share."""

    tried: int
    allowed: int
    begin: float
    end: float


def hammer(uri: str, name: str, barrier: Barrier, admitted: "multiprocessing.Queue[Hammered]") -> None:
    async def run() -> Hammered:
        async with AsyncMongoClient[dict[str, Any]](uri) as client:
            limiter = RateLimiter(client[name], "submit", Limit(RATE, BURST))
            await client.admin.command("ping")
            barrier.wait()
            begin, tried, allowed = time.monotonic(), 0, 0
            while time.monotonic() - begin < SECONDS:
                decisions = await asyncio.gather(*(limiter.acquire("ada") for _ in range(4)))
                tried += len(decisions)
                allowed += sum(decision.allowed for decision in decisions)
            return Hammered(tried, allowed, begin, time.monotonic())

    admitted.put(asyncio.run(run()))


@pytest.mark.parametrize("processes", [3])
def test_three_processes_together_admit_what_one_would(mongod_uri: str, processes: int) -> None:
    name = f"test_{uuid4().hex}"
    context = multiprocessing.get_context("spawn")
    barrier, admitted = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=hammer, args=(mongod_uri, name, barrier, admitted)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    results = [admitted.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    admitted.close()
    admitted.join_thread()
    asyncio.run(drop(mongod_uri, name))

    tried, allowed = sum(result.tried for result in results), sum(result.allowed for result in results)
    seconds = max(result.end for result in results) - min(result.begin for result in results)
    allowance = BURST + RATE / 60 * seconds
    assert tried > 1.5 * allowance  # else nothing was limited
    # Never more, but for what is rounded. Less where all of them were kept waiting and the bucket was full meanwhile.
    assert 0.75 * allowance <= allowed <= 1.02 * allowance + 1


async def drop(uri: str, name: str) -> None:
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        await client.drop_database(name)

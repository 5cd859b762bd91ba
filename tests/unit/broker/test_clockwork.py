"""When the reaper acts, by a watch that the test sets; and what every process's clockwork does."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import AutoReconnect

from broker.broker import Broker
from broker.clockwork import Clockwork, Leadership, Reaper, Task
from broker.crashes import CrashLog
from broker.database import Database
from broker.job import Job, NewJob
from broker.queue import JobQueue
from tests.deployments import make_settings
from tests.unit.broker.conftest import MODELS, SETTINGS

Make = Callable[..., NewJob]
LEASE = 30.0


class Watch:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class TroubledQueue(JobQueue):
    """Its database answers after ``takes`` seconds on the watch or, while it is ``away``, not at all."""

    watch: Watch
    takes = 0.0
    away = False

    async def expired(self, limit: int = 1000) -> list[Job]:
        self.watch.now += self.takes
        if self.away:
            raise AutoReconnect("connection closed")
        return await super().expired(limit)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr("broker.clockwork.time", watch)
    return watch


@pytest.fixture
async def queue(store: Database, new_job: Make, watch: Watch) -> TroubledQueue:
    """With one job whose lease has ended."""
    queue = TroubledQueue(store, MODELS, SETTINGS)
    queue.watch = watch
    await queue.submit(new_job())
    await queue.claim("alpha", "silent worker")
    past = {"$dateSubtract": {"startDate": "$$NOW", "unit": "second", "amount": 1}}
    await store.jobs.update_one({"slot": {"$gte": 0}}, [{"$set": {"lease_expires_at": past}}])
    return queue


@pytest.fixture
async def reaper(store: Database, queue: TroubledQueue) -> Reaper:
    """One that has just seen the database answer for the first time."""
    reaper = Reaper(queue, CrashLog(store), LEASE)
    assert await reaper.tick() == 0
    return reaper


async def test_a_reaper_acts_when_the_database_has_answered_for_a_lease(reaper: Reaper, watch: Watch) -> None:
    watch.now += LEASE - 0.1
    assert await reaper.tick() == 0
    watch.now += 0.1
    assert await reaper.tick() == 1


async def test_after_an_error_of_the_database_a_reaper_waits_for_a_whole_lease_again(
    reaper: Reaper, queue: TroubledQueue, watch: Watch
) -> None:
    watch.now += LEASE
    queue.away = True
    with pytest.raises(AutoReconnect):
        await reaper.tick()
    queue.away = False
    assert await reaper.tick() == 0
    watch.now += LEASE - 0.1
    assert await reaper.tick() == 0
    watch.now += 0.1
    assert await reaper.tick() == 1


async def test_an_answer_that_takes_more_than_a_third_of_a_lease_was_an_outage(
    reaper: Reaper, queue: TroubledQueue, watch: Watch
) -> None:
    """The driver waits for a new primary by itself: nobody could renew meanwhile, and nothing was raised."""
    watch.now += LEASE
    queue.takes = LEASE / 3 + 0.1
    assert await reaper.tick() == 0
    queue.takes = 0.0
    watch.now += LEASE - 0.1
    assert await reaper.tick() == 0
    watch.now += 0.1
    assert await reaper.tick() == 1


async def test_a_reaper_that_did_not_lead_meanwhile_starts_anew(reaper: Reaper, watch: Watch) -> None:
    watch.now += LEASE
    reaper.forget()
    assert await reaper.tick() == 0
    watch.now += LEASE
    assert await reaper.tick() == 1


async def test_a_process_that_does_not_lead_has_its_reaper_forget(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgot = asyncio.Event()
    monkeypatch.setattr(Reaper, "forget", lambda _: forgot.set())
    broker = await Broker.open(make_settings(tmp_path, mongod_uri, database.name))
    leader = Leadership(broker.database)
    await leader.seek()
    assert await leader.seek()
    broker.start()
    async with asyncio.timeout(20):
        await forgot.wait()
    assert not broker.leadership.held
    await broker.close()


async def test_the_clockwork_of_a_process_does_all_its_duties(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    duties: list[Task] = []

    class Shown(Clockwork):
        def __init__(self, leadership: Leadership, tasks: Sequence[Task], on_follow: Callable[[], None]) -> None:
            super().__init__(leadership, tasks, on_follow)
            duties.extend(tasks)

    monkeypatch.setattr("broker.broker.Clockwork", Shown)
    broker = await Broker.open(make_settings(tmp_path, mongod_uri, database.name))
    broker.start()
    await broker.ready.wait()
    assert {duty.name: await duty.action() for duty in duties}.keys() >= {
        *("reap", "promote", "plan", "bury", "usage", "clean", "sweep")
    }
    await broker.close()

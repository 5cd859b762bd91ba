"""The leader's tick: what it reads, writes and says, with heartbeats that are written here."""

import gc
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import AutoReconnect
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from broker.clock import DatabaseClock
from broker.clockwork import Leadership
from broker.database import Database, ensure_schema
from broker.desired import Wanted
from broker.job import NewJob
from broker.plans import Decision, Overview, Plans, Standing
from broker.queue import JobQueue
from broker.registry import SILENCE, DeviceState, ModelState, Registry
from broker.switching import KEPT, Switching
from config import Settings
from tests.deployments import default_config, make_settings

GIB = 2**30
GPU = "GPU-0"


def stopped(**of: Any) -> ModelState:
    return ModelState(False, "stopped", managed=True, need_bytes=6 * GIB, **of)


def ready(**of: Any) -> ModelState:
    held = {"gpus": (GPU,), "memory_bytes": 6 * GIB, "need_bytes": 6 * GIB, "since": datetime.now(UTC)}
    return ModelState(True, "ready", managed=True, **held | of)


@pytest.fixture
def settings(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Settings:
    config = default_config()
    config["models"] = {
        name: {"task": "chat", "engine": "simulator", "memory": "6GB"} for name in ("first", "second", "third")
    }
    config["models"]["plain"] = {"task": "chat", "engine": "simulator"}
    config["defaults"] = {"chat": ["plain"]}
    return make_settings(tmp_path, mongod_uri, database.name, config)


@pytest.fixture
async def queue(store: Database, settings: Settings) -> JobQueue:
    return JobQueue(store, settings.models, settings.queue)


@pytest.fixture
def registry(store: Database) -> Registry:
    return Registry(store)


async def leads(store: Database) -> Leadership:
    leadership = Leadership(store)
    past = {"$dateSubtract": {"startDate": "$$NOW", "unit": "second", "amount": 1}}
    await store.locks.update_one({"_id": "clockwork"}, [{"$set": {"expires_at": past}}])
    await leadership.seek()
    assert leadership.held or await leadership.seek()
    return leadership


@pytest.fixture
async def switching(store: Database, settings: Settings) -> Switching:
    return Switching(store, settings, await leads(store))


async def beat(registry: Registry, models: dict[str, ModelState], worker: str = "w1", free: int = 10) -> None:
    devices = [DeviceState(GPU, 10 * GIB, free * GIB, "a GPU")]
    await registry.heartbeat(worker, "box", 7, models, draining=False, devices=devices)


async def submit(queue: JobQueue, model: str, jobs: int = 1) -> None:
    for _ in range(jobs):
        await queue.submit(NewJob("chat", model, "ann", {}))


async def ordered(store: Database) -> dict[tuple[str, str], Wanted]:
    return {(order.model, order.worker): order.wanted for order in await Plans(store).orders()}


class Commands(CommandListener):
    def __init__(self) -> None:
        self.sent: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name not in ("hello", "saslStart", "saslContinue", "endSessions"):
            self.sent.append(event.command_name)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Nothing more to know."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Nothing more to know."""


async def test_where_no_model_is_to_be_loaded_a_tick_is_one_small_query(
    settings: Settings, store: Database, registry: Registry
) -> None:
    await registry.heartbeat("w1", "box", 7, {"plain": ModelState(True, "ready")}, draining=False)
    leadership, commands = await leads(store), Commands()
    async with AsyncMongoClient[dict[str, Any]](settings.mongodb.uri, event_listeners=[commands]) as client:
        switching = Switching(Database(client, client[settings.mongodb.database]), settings, leadership)
        for _ in range(3):
            assert await switching.tick() == 0
    assert commands.sent == ["find"] * 3
    assert await store.plans.count_documents({}) == 0


async def test_free_memory_is_filled_and_a_job_for_another_model_gets_its_room(
    switching: Switching, store: Database, registry: Registry, queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    await beat(registry, {"first": stopped(), "second": stopped()})
    with caplog.at_level(logging.INFO, "broker.switching"):
        assert await switching.tick() == 1
    assert caplog.messages == ["plan: load first on worker w1 (GPU-0): nobody waits for this memory"]
    assert await switching.tick() == 0, "what was promised is promised"
    long_ago = datetime.now(UTC) - timedelta(minutes=10)
    await beat(registry, {"first": ready(since=long_ago), "second": stopped()}, free=4)
    await submit(queue, "second", 3)
    assert await switching.tick() == 1
    assert await ordered(store) == {("first", "w1"): Wanted.STOPPED}
    await beat(registry, {"first": ready(since=long_ago, memory_bytes=6 * GIB), "second": stopped()}, free=4)
    assert await switching.tick() == 0, "it has yet to go"
    gone = stopped(since=datetime.now(UTC) + timedelta(seconds=1))
    await beat(registry, {"first": gone, "second": stopped()})
    assert await switching.tick() == 1
    overview = (await Plans(store).look()).overview
    assert [(decision.kind, decision.model) for decision in overview.decisions] == [
        ("load", "second"),
        ("stop", "first"),
        ("load", "first"),
    ]
    assert overview.decisions[0].reason.startswith("3 jobs wait for it")
    assert overview.waiting == {}


async def test_nothing_is_written_while_nothing_is_new_and_that_is_said_every_few_seconds(
    switching: Switching, store: Database, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await beat(registry, {"first": stopped()})
    await switching.tick()
    before = await store.plans.find_one()
    await switching.tick()
    assert await store.plans.find_one() == before
    monkeypatch.setattr("broker.switching.SAY", timedelta(0))
    await switching.tick()
    after = await store.plans.find_one()
    assert before is not None
    assert after is not None
    assert after["planned_at"] > before["planned_at"]
    assert {**after, "planned_at": None, "others": None} == {**before, "planned_at": None, "others": None}


async def test_a_leader_that_was_followed_by_another_decides_in_vain(
    store: Database, settings: Settings, registry: Registry, queue: JobQueue
) -> None:
    old = Switching(store, settings, await leads(store))
    await beat(registry, {"first": stopped(), "second": stopped()})
    await old.tick()
    new = Switching(store, settings, await leads(store))
    assert await new.tick() == 0, "it goes on from what stands"
    await submit(queue, "second", 3)
    standing = await Plans(store).look()
    assert await old.tick() == 0
    assert await Plans(store).look() == standing


async def test_a_leader_that_loses_the_lead_while_it_plans_ends_its_plan_in_peace(
    switching: Switching, store: Database, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await beat(registry, {"first": stopped()})
    original = Plans.look

    async def losing(plans: Plans) -> Standing:
        switching.forget()
        return await original(plans)

    monkeypatch.setattr(Plans, "look", losing)
    assert await switching.tick() == 1, "nobody else has planned yet"
    await leads(store)
    assert await switching.tick() == 0


async def test_workers_that_seem_silent_after_an_outage_keep_their_orders(
    switching: Switching, store: Database, registry: Registry
) -> None:
    await beat(registry, {"first": stopped()})
    await beat(registry, {"plain": ModelState(True, "ready"), "second": stopped()}, "w2")
    await switching.tick()
    standing = await ordered(store)
    assert ("first", "w1") in standing
    silence = {"$dateSubtract": {"startDate": "$$NOW", "unit": "second", "amount": int(SILENCE.total_seconds()) + 1}}
    await store.workers.update_one({"_id": "w1"}, [{"$set": {"last_seen": silence}}])
    await switching.tick()
    assert standing.items() <= (await ordered(store)).items()
    await registry.remove("w1")
    await switching.tick()
    assert {worker for _, worker in await ordered(store)} == {"w2"}


async def test_only_the_last_decisions_are_kept(switching: Switching, store: Database, registry: Registry) -> None:
    at = datetime(2026, 11, 21, tzinfo=UTC)
    old = tuple(Decision(at, "load", "first", "w0", (), str(number)) for number in range(KEPT))
    await Plans(store).write([], Overview(decisions=old), 1)
    await beat(registry, {"first": stopped()})
    await switching.tick()
    kept = (await Plans(store).look()).overview.decisions
    assert (len(kept), kept[0].worker, kept[-1].reason) == (KEPT, "w1", str(KEPT - 2))


async def test_a_habit_is_expected_and_said(
    switching: Switching, store: Database, registry: Registry, standing_clock: datetime
) -> None:
    """Every day at this hour there are 50 jobs for one model; another has no habits."""
    now = standing_clock
    hour = now.replace(minute=0, second=0, microsecond=0)
    ahead = (now + timedelta(minutes=5)).replace(minute=0, second=0, microsecond=0)
    rows: list[dict[str, Any]] = []
    for back in range(1, 14 * 24):
        at = hour - timedelta(hours=back)
        rows.append({"model": "second", "hour": at, "submitted": 50 if at.hour == ahead.hour else 0})
        rows.append({"model": "third", "hour": at, "submitted": 20})
    await store.usage.insert_many([{"_id": {"model": row["model"], "hour": row["hour"]}, **row} for row in rows])
    await beat(registry, {"first": stopped(), "second": stopped(), "third": stopped()})
    await switching.tick()
    overview = (await Plans(store).look()).overview
    first, second, third = overview.expected
    assert (first.jobs, first.trusted) == (0.0, False)
    assert (second.jobs, second.trusted, second.hour) == (50.0, True, ahead)
    assert (third.jobs, third.trusted) == (20.0, False), "the hour before tells as much"
    assert [decision.model for decision in overview.decisions] == ["second"]
    assert "expected" in overview.decisions[0].reason


async def test_usage_outlives_the_jobs_by_what_a_forecast_needs(store: Database) -> None:
    async def kept() -> float:
        found: float = (await store.usage.index_information())["ttl_hour"]["expireAfterSeconds"]
        return found

    day = 86_400.0
    await ensure_schema(store, retention=day, habits=20 * day)
    assert await kept() == 21 * day
    await ensure_schema(store, retention=30 * day, habits=20 * day)
    assert await kept() == 31 * day


async def test_where_the_time_is_not_known_nothing_is_begun(
    switching: Switching, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where this process stops in mid-question: Python would complain of what was begun and never awaited."""

    async def unknown(_: DatabaseClock) -> float:
        raise AutoReconnect("gone")

    await beat(registry, {"first": stopped()})
    monkeypatch.setattr(DatabaseClock, "now", unknown)
    with pytest.raises(AutoReconnect, match="gone"):
        await switching.tick()
    gc.collect()

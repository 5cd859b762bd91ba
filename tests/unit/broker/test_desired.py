"""What operators want of models, on the real database, and when workers have done it."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from broker.database import Database
from broker.desired import Desired, DesiredModels, Wanted, settled
from broker.registry import ENGINE_STATES, BackendState, DeviceState, ModelState, Registry
from worker.engine_state import EngineState

NOBODY_ASKED = Desired("org/big:7b")


async def test_a_model_of_which_nothing_was_asked_is_left_to_the_planner(store: Database) -> None:
    desired = DesiredModels(store)
    assert await desired.all() == {}
    assert await desired.one("org/big:7b") == NOBODY_ASKED


async def test_each_request_is_seen_by_everybody_with_who_asked_and_when(store: Database) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    started = await DesiredModels(store).start("org/big:7b", "ada", resolution="base")
    seen = await DesiredModels(store).one("org/big:7b")
    assert seen == started
    assert (seen.wanted, seen.resolution, seen.version, seen.changed_by) == (Wanted.RUNNING, "base", 1, "ada")
    assert seen.changed_at is not None
    assert seen.changed_at > before
    assert await DesiredModels(store).all() == {"org/big:7b": started}


async def test_requests_about_the_engine_are_counted_and_pins_are_not(store: Database) -> None:
    desired = DesiredModels(store)
    await desired.start("m", "ada", resolution="tiny")
    assert not (await desired.stop("m", "ada", graceful=False)).graceful
    assert (await desired.stop("m", "ada")).graceful
    assert (await desired.sleep("m", "ada")).wanted is Wanted.SLEEPING
    assert (await desired.wake("m", "ada")).wanted is Wanted.RUNNING
    restarted = await desired.restart("m", "ada")
    assert (restarted.wanted, restarted.restarts, restarted.version) == (Wanted.RUNNING, 1, 6)
    assert (await desired.pin("m", "bob")).pinned
    unpinned = await desired.unpin("m", "bob")
    assert (unpinned.pinned, unpinned.version, unpinned.changed_by) == (False, 6, "bob")
    assert (await desired.start("m", "ada")).resolution == "tiny", "a start that names none keeps it"
    assert (await desired.set_resolution("m", "ada", "large")).resolution == "large"
    assert (await desired.automatic("m", "ada")).wanted is None


async def test_no_request_is_lost_when_many_come_at_once(store: Database) -> None:
    await asyncio.gather(*(DesiredModels(store).restart("m", f"operator-{n}") for n in range(20)))
    last = await DesiredModels(store).one("m")
    assert (last.restarts, last.version) == (20, 20)


def test_the_states_that_workers_may_tell_are_those_of_engines() -> None:
    assert {*EngineState} == ENGINE_STATES


async def test_what_a_worker_tells_of_a_model_comes_back_as_it_was(store: Database) -> None:
    state = ModelState(
        ready=False,
        state="starting",
        reason="$GPU 1",
        since=datetime(2026, 11, 21, 8, tzinfo=UTC),
        phase="loading",
        progress=0.5,
        gpus=(0, 1),
        address="/run/engine.sock",
        memory_bytes=2**35,
        load_seconds=41.5,
        sleep_seconds=1.5,
        wake_seconds=0.5,
        healthy=True,
        last_error="out of memory",
        resolution="base",
        version=3,
    )
    states = {"org/big:7b": state, "plain": ModelState(True, "ready"), "other": ModelState(False, "no GPU")}
    registry = Registry(store)
    await registry.heartbeat("w1", "host", 7, states, draining=False)
    (worker,) = await registry.live_workers()
    assert worker.models == states
    assert [name for name, told in states.items() if told.able] == ["org/big:7b", "plain"]
    assert [worker.serves(name) for name in states] == [False, True, False]


async def test_a_worker_of_a_later_release_may_tell_more(store: Database) -> None:
    registry = Registry(store)
    await registry.heartbeat("w1", "host", 7, {"m": ModelState(True, "ready")}, draining=False)
    await store.workers.update_one({"_id": "w1"}, {"$set": {"models.0.colour": "blue"}})
    (worker,) = await registry.live_workers()
    assert worker.models == {"m": ModelState(True, "ready")}


async def test_and_more_of_its_servers_and_devices(store: Database) -> None:
    registry = Registry(store)
    state = ModelState(True, "ready", backends=(BackendState("a", "http://a/v1", "closed"),))
    device = DeviceState("GPU-1", total=2, free=1)
    await registry.heartbeat("w1", "host", 7, {"m": state}, draining=False, devices=[device])
    more = {"models.0.backends.0.colour": "blue", "devices.0.colour": "blue"}
    await store.workers.update_one({"_id": "w1"}, {"$set": more})
    (worker,) = await registry.live_workers()
    assert worker.models == {"m": state}
    assert worker.devices == (device,)


def told(state: str, version: int | None = 2) -> ModelState:
    return ModelState(ready=state == "ready", state=state, version=version)


@pytest.mark.parametrize(
    ("wanted", "states", "expected"),
    [
        ("running", [told("ready")], True),
        ("running", [told("ready"), told("starting")], True),
        ("running", [told("ready", version=None)], True),
        ("running", [told("ready", version=1)], False),
        ("running", [told("starting")], False),
        ("running", [told("stopped")], False),
        ("running", [told("failed")], True),
        ("running", [told("failed", version=1)], False),
        ("running", [told("failed"), told("starting")], False),
        ("running", [told("no NVIDIA GPU"), told("failed")], True),
        ("running", [told("no NVIDIA GPU")], False),
        ("running", [], False),
        ("stopped", [told("stopped"), told("failed")], True),
        ("stopped", [told("draining")], False),
        ("stopped", [told("stopped", version=1)], False),
        ("stopped", [told("no NVIDIA GPU"), told("stopped")], True),
        ("stopped", [], True),
        ("sleeping", [told("sleeping"), told("stopped")], True),
        ("sleeping", [told("ready")], False),
        (None, [told("stopped"), told("ready")], True),
        (None, [told("starting")], False),
        (None, [told("ready", version=1)], False),
    ],
)
def test_a_request_is_settled_when_the_workers_have_answered_it(
    wanted: str | None, states: list[ModelState], expected: bool
) -> None:
    desired = Desired("m", wanted=None if wanted is None else Wanted(wanted), version=2)
    assert settled(desired, states) is expected

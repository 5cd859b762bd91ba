"""Models are loaded and unloaded as they are asked for: gateways and workers that are real, and simulators that take
memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.clockwork import Leadership
from broker.database import Database
from broker.registry import DeviceState, ModelState
from broker.snapshot import Rules
from broker.switching import Switching
from config import AutoSwitchSettings
from gateway.openapi import document
from gateway.operations import DESCRIPTION, OPERATIONS, VERSION
from gateway.routes import ROUTES
from tests.conditions import eventually
from tests.contract.described import check
from tests.deployments import Gateway, gateway_on, make_settings, patient_config, worker_on

DOCUMENT = document(ROUTES, OPERATIONS, VERSION, DESCRIPTION)
MB = 2**20
# Jobs that run for minutes, but for a test that cancels them.
ENDLESS = {"message": "go on", "max_tokens": 100_000}


@pytest.fixture(autouse=True)
def quick_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pauses that keep real models from being swapped all the time."""

    def rules(settings: AutoSwitchSettings) -> Rules:
        return Rules(
            enabled=settings.enabled,
            fill=True,
            max_swap_wait=settings.max_swap_wait,
            min_residency=0.0,
            cooldown=60.0,
        )

    monkeypatch.setattr("broker.switching.rules_of", rules)
    monkeypatch.setattr("broker.switching.SAY", timedelta(seconds=0.5))


def simulator(memory: int, **of: Any) -> dict[str, Any]:
    quick = {"tokens_per_second": 1000, "tokens": 5, "load_time": 0.2}
    return {"task": "chat", "engine": "simulator", "memory": f"{memory}MB", **quick, **of}


def config(room: int = 100, **models: dict[str, Any]) -> dict[str, Any]:
    """``room``: MB of main memory for models."""
    settings = patient_config()
    settings["models"] = models
    settings["defaults"] = {"chat": list(models)}
    settings["auto_switch"] = {"host_memory": f"{room}MB", "max_swap_wait": "2s"}
    return settings


Deploy = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def deploy(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> AsyncIterator[Deploy]:
    """A gateway and so many workers."""
    async with AsyncExitStack() as stack:

        async def start(settings: dict[str, Any], workers: int = 1) -> Gateway:
            made = make_settings(tmp_path, mongod_uri, database.name, settings)
            gateway = await stack.enter_async_context(gateway_on(made))
            for _ in range(workers):
                await stack.enter_async_context(worker_on(made))
            return gateway

        yield start


async def ask(gateway: Gateway, method: str, path: str, **arguments: Any) -> httpx.Response:
    response = await gateway.http.request(method, path, **arguments)
    check(DOCUMENT, response)
    return response


async def auto_switch(gateway: Gateway) -> dict[str, Any]:
    response = await ask(gateway, "GET", "/admin/auto-switch")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def model(gateway: Gateway, name: str) -> dict[str, Any]:
    body: dict[str, Any] = (await ask(gateway, "GET", f"/admin/models/{name}")).json()
    return body


async def chat(gateway: Gateway, name: str, **body: Any) -> dict[str, Any]:
    response = await ask(gateway, "POST", "/api/chat", json={"message": "hi", "model": name, **body})
    assert response.status_code == 202, response.text
    accepted: dict[str, Any] = response.json()
    return accepted


async def until(gateway: Gateway, name: str, state: str) -> None:
    async def reached() -> bool:
        return bool((await model(gateway, name))["state"] == state)

    await eventually(reached, within=30.0, every=0.1)


async def until_planned(gateway: Gateway) -> None:
    """Since this moment, with all that is known by now."""
    before = (await auto_switch(gateway))["planned_at"]

    async def newer() -> bool:
        planned = (await auto_switch(gateway))["planned_at"]
        return bool(planned is not None and planned != before)

    await eventually(newer, within=30.0, every=0.1)


@asynccontextmanager
async def running(gateway: Gateway, name: str) -> AsyncIterator[str]:
    """A job that runs until it is cancelled at the end."""
    job = (await chat(gateway, name, **ENDLESS))["request_id"]

    async def runs() -> bool:
        return bool((await gateway.http.get(f"/api/jobs/{job}")).json()["status"] == "processing")

    await eventually(runs, within=30.0, every=0.05)
    yield job
    await gateway.http.delete(f"/api/jobs/{job}")


TWO = {"first": simulator(60), "second": simulator(60)}
"""Of which there is room for one."""


async def test_a_job_for_an_unloaded_model_gets_it_loaded_in_place_of_an_idle_one(deploy: Deploy) -> None:
    gateway = await deploy(config(**TWO))
    await until(gateway, "first", "ready")  # free memory is filled, in the order of the config
    assert (await model(gateway, "second"))["state"] == "stopped"
    accepted = await chat(gateway, "second")
    assert accepted["workers"] == 0
    assert accepted["message"].startswith("second is not loaded; the job waits until it is")
    done = await gateway.ended(accepted["request_id"])
    assert (done["status"], done["result"]["message"]["role"]) == ("completed", "assistant")
    assert (await model(gateway, "first"))["state"] != "ready"
    told = await auto_switch(gateway)
    made = [(decision["kind"], decision["model"]) for decision in reversed(told["decisions"])]
    assert made in (
        [("load", "first"), ("stop", "first"), ("load", "second")],
        [("load", "first"), ("sleep", "first"), ("load", "second")],
    )
    assert "makes room for second" in told["decisions"][1]["reason"]
    assert (await model(gateway, "second"))["plan"] == told["decisions"][0]["reason"]
    assert "makes room for second" in (await model(gateway, "first"))["plan"]
    back = await chat(gateway, "first")
    assert (await gateway.ended(back["request_id"]))["status"] == "completed"


async def test_a_busy_model_is_not_interrupted(deploy: Deploy) -> None:
    slow = simulator(60, tokens_per_second=2, tokens=6)
    gateway = await deploy(config(first=slow, second=simulator(60)))
    await until(gateway, "first", "ready")
    long = await chat(gateway, "first", max_tokens=6)
    short = await chat(gateway, "second")
    assert (await gateway.ended(short["request_id"]))["status"] == "completed"
    done = (await gateway.http.get(f"/api/jobs/{long['request_id']}")).json()
    assert (done["status"], done["attempts"]) == ("completed", 1), "it had ended before the other one was loaded"


async def test_a_pinned_model_is_not_evicted(deploy: Deploy) -> None:
    gateway = await deploy(config(**TWO))
    await until(gateway, "first", "ready")
    await ask(gateway, "POST", "/admin/models/first/pin")
    waiting = await chat(gateway, "second")

    async def told() -> bool:
        return [entry["model"] for entry in (await auto_switch(gateway))["waiting"]] == ["second"]

    await eventually(told, every=0.1)
    for _ in range(4):
        await until_planned(gateway)
        assert (await model(gateway, "first"))["state"] == "ready"
    assert (await model(gateway, "second"))["plan"] == (await auto_switch(gateway))["waiting"][0]["reason"]
    again = await chat(gateway, "second")
    assert (await auto_switch(gateway))["waiting"][0]["reason"] in again["message"]
    await ask(gateway, "POST", "/admin/models/first/unpin")
    assert (await gateway.ended(waiting["request_id"]))["status"] == "completed"


async def test_what_an_operator_stops_stays_stopped_until_they_hand_it_back(deploy: Deploy) -> None:
    gateway = await deploy(config(room=200, **TWO))
    await until(gateway, "first", "ready")
    stopped = await ask(gateway, "POST", "/admin/models/first/stop?wait=30")
    assert (stopped.status_code, stopped.json()["state"]) == (200, "stopped")
    waiting = await chat(gateway, "first")
    for _ in range(3):
        await until_planned(gateway)
        assert (await model(gateway, "first"))["state"] == "stopped"
    assert (await model(gateway, "first"))["plan"] == "an operator stopped it"
    await ask(gateway, "POST", "/admin/models/first/auto")
    assert (await gateway.ended(waiting["request_id"]))["status"] == "completed"


async def test_what_an_operator_starts_is_loaded_whatever_is_idle_there(deploy: Deploy) -> None:
    gateway = await deploy(config(**TWO))
    await until(gateway, "first", "ready")
    started = await ask(gateway, "POST", "/admin/models/second/start?wait=30")
    assert (started.status_code, started.json()["state"]) == (200, "ready")
    assert started.json()["plan"] == "an operator started it"


async def test_a_start_that_no_memory_is_enough_for_is_refused_with_the_reason(deploy: Deploy) -> None:
    gateway = await deploy(config(first=simulator(60), huge=simulator(2048)))
    await until(gateway, "first", "ready")

    async def known() -> bool:
        return bool((await auto_switch(gateway))["waiting"])

    await eventually(known, every=0.1)
    refused = await ask(gateway, "POST", "/admin/models/huge/start")
    assert (refused.status_code, refused.json()["code"]) == (409, "cannot_start")
    assert "it needs 2.0 GiB, and models may use at most 0.1 GiB" in refused.json()["detail"]
    assert (await model(gateway, "huge"))["plan"].startswith("it needs 2.0 GiB")
    accepted = await chat(gateway, "huge")
    assert "it needs 2.0 GiB" in accepted["message"]


async def test_two_workers_of_one_machine_never_load_into_the_same_memory(deploy: Deploy) -> None:
    models = {name: simulator(45, load_time=0.1) for name in ("a", "b", "c", "d")}
    gateway = await deploy(config(**models), workers=2)
    held: list[int] = []
    stop = asyncio.Event()

    async def watch() -> None:
        """What the workers say that they hold, or are about to."""
        while not stop.is_set():
            taking = 0
            for worker in await gateway.broker.registry.live_workers():
                for state in worker.models.values():
                    if state.state in ("starting", "ready"):
                        taking += 45 * MB
                    elif state.state in ("draining", "stopping"):
                        taking += state.memory_bytes or 0
            held.append(taking)
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    for _ in range(2):
        jobs = [(await chat(gateway, name))["request_id"] for name in ("d", "b", "a", "c")]
        assert {(await gateway.ended(job))["status"] for job in jobs} == {"completed"}
    stop.set()
    await watching
    assert max(held) == 90 * MB
    (device,) = (await auto_switch(gateway))["devices"]
    assert (device["total"], len(device["workers"])) == (100 * MB, 2)


async def test_without_automatic_switching_memory_is_only_filled(deploy: Deploy) -> None:
    settings = config(**TWO)
    settings["auto_switch"]["enabled"] = False
    gateway = await deploy(settings)
    await until(gateway, "first", "ready")
    waiting = await chat(gateway, "second")

    async def told() -> bool:
        found = await auto_switch(gateway)
        return [entry["reason"] for entry in found["waiting"]] == ["automatic switching is off"]

    await eventually(told, every=0.1)
    assert (await model(gateway, "first"))["state"] == "ready"
    assert not (await auto_switch(gateway))["enabled"]
    await ask(gateway, "POST", "/admin/models/first/stop")
    assert (await gateway.ended(waiting["request_id"]))["status"] == "completed"


async def test_the_next_leader_goes_on_where_the_last_one_stopped(deploy: Deploy) -> None:
    gateway = await deploy(config(**TWO))
    await until(gateway, "first", "ready")
    before = await auto_switch(gateway)
    # The holder of the lease is gone, as if it had been killed, and does not know yet: it believes to lead.
    past = {"$dateSubtract": {"startDate": "$$NOW", "unit": "second", "amount": 1}}
    store = gateway.broker.database
    newer = Leadership(store)

    async def led() -> bool:
        await store.locks.update_one({"_id": "clockwork"}, [{"$set": {"expires_at": past}}])
        return await newer.seek()

    await eventually(led)
    assert newer.epoch > before["epoch"]
    switching = Switching(store, gateway.settings, newer)
    assert await switching.tick() == 0, "it was all decided"
    waiting = await chat(gateway, "second")
    made = 0

    async def done() -> bool:
        nonlocal made
        await newer.seek()
        made += await switching.tick()
        job = (await gateway.http.get(f"/api/jobs/{waiting['request_id']}")).json()
        return bool(job["status"] == "completed")

    await eventually(done, every=0.3)
    after = await auto_switch(gateway)
    assert after["epoch"] == newer.epoch
    assert made == 2, "an eviction and a load"
    assert [decision["model"] for decision in after["decisions"]] == ["second", "first", "first"]


# What is told, with heartbeats that are written here.


async def test_all_that_is_known_of_the_plan_is_shown(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    settings = make_settings(tmp_path, mongod_uri, database.name, config(**TWO))
    async with gateway_on(settings) as gateway:
        nothing = await auto_switch(gateway)
        assert (nothing["enabled"], nothing["models"], nothing["devices"]) == (True, [], [])
        assert nothing["planned_at"] is None
        held = ModelState(True, "ready", managed=True, gpus=("GPU-1",), memory_bytes=60 * MB, need_bytes=60 * MB)
        away = ModelState(False, "stopped", managed=True, need_bytes=60 * MB)
        gpu = DeviceState("GPU-1", 100 * MB, 30 * MB, "a GPU")
        store = Database(database.client, database)
        leader = Leadership(store)

        async def led() -> bool:
            past = {"$dateSubtract": {"startDate": "$$NOW", "unit": "second", "amount": 1}}
            await store.locks.update_one({"_id": "clockwork"}, [{"$set": {"expires_at": past}}])
            return await leader.seek()

        await eventually(led)
        models = {"first": held, "second": away}
        await gateway.broker.registry.heartbeat("w1", "box", 7, models, draining=False, devices=[gpu])
        await Switching(store, settings, leader).tick()
        told = await auto_switch(gateway)
        assert (told["epoch"], told["max_swap_wait"]) == (leader.epoch, 2.0)
        assert told["devices"] == [
            {"uuid": "GPU-1", "name": "a GPU", "total": 100 * MB, "free": 30 * MB, "ours": 60 * MB, "workers": ["w1"]}
        ]
        first, second = told["models"]
        assert first["residents"][0] | {"ordered_at": None} == {
            "worker": "w1",
            "state": "ready",
            "gpus": ["GPU-1"],
            "memory_bytes": 60 * MB,
            "ordered": "running",
            "reason": "it was there without an order",
            "ordered_at": None,
        }
        assert (second["name"], second["need_bytes"], second["residents"][0]["ordered"]) == ("second", 60 * MB, None)
        assert [(entry["model"], entry["trusted"]) for entry in told["forecast"]] == [
            ("first", False),
            ("second", False),
        ]
        assert [decision["kind"] for decision in told["decisions"]] == ["keep"]
        shown = await model(gateway, "first")
        assert (shown["managed"], shown["plan"]) == (True, "it was there without an order")


async def test_who_is_no_admin_is_not_told(deploy: Deploy) -> None:
    gateway = await deploy(config(**TWO), workers=0)
    gateway.http.headers.pop("Authorization")
    assert (await ask(gateway, "GET", "/admin/auto-switch")).status_code == 401

"""Operators start and stop models on a real worker."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from tests.conditions import eventually
from tests.deployments import Gateway, gateway_on, make_settings, patient_config, worker_on

MODEL = "simulator"
BIG = "big"


@pytest.fixture
async def gateway(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> AsyncIterator[Gateway]:
    config = patient_config()
    # 4 s of an answer, for those who have to be there while it is given.
    simulator = config["models"][MODEL] | {"tokens_per_second": 20, "tokens": 80, "aliases": []}
    config["models"] = {MODEL: simulator, BIG: simulator | {"memory": "1MB", "load_time": 0.5}}
    config["defaults"] = {"chat": [MODEL]}
    settings = make_settings(tmp_path, mongod_uri, database.name, config)
    async with gateway_on(settings) as gateway, worker_on(settings):
        await eventually(lambda: has_state(gateway, "ready"))
        yield gateway


async def has_state(gateway: Gateway, state: str, name: str = MODEL) -> bool:
    return bool((await model(gateway, name))["state"] == state)


async def model(gateway: Gateway, name: str = MODEL) -> dict[str, Any]:
    body: dict[str, Any] = (await gateway.http.get(f"/admin/models/{name}")).json()
    return body


async def act(gateway: Gateway, action: str, name: str = MODEL, **query: Any) -> dict[str, Any]:
    response = await gateway.http.post(f"/admin/models/{name}/{action}", params={"wait": 20, **query})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def submit(gateway: Gateway, wait: int | None = None, name: str = MODEL, tokens: int = 20) -> dict[str, Any]:
    params = {} if wait is None else {"wait": wait}
    asked = {"message": "hi", "model": name, "max_tokens": tokens}
    body: dict[str, Any] = (await gateway.http.post("/api/chat", params=params, json=asked)).json()
    return body


async def test_a_stopped_model_queues_its_jobs_and_runs_them_when_it_is_started_again(gateway: Gateway) -> None:
    assert (await act(gateway, "stop"))["state"] == "stopped"
    job = await submit(gateway)
    assert job["status"] == "queued"
    assert (await act(gateway, "start"))["state"] == "ready"
    assert (await gateway.ended(job["request_id"]))["status"] == "completed"


async def test_a_graceful_stop_lets_what_runs_finish(gateway: Gateway) -> None:
    job = await submit(gateway, tokens=80)
    await eventually(lambda: runs(gateway, job))
    assert (await act(gateway, "stop"))["state"] == "stopped"
    done = await gateway.ended(job["request_id"])
    assert (done["status"], done["attempts"]) == ("completed", 1)


async def test_a_stop_at_once_hands_back_what_runs_uncharged(gateway: Gateway) -> None:
    job = await submit(gateway, tokens=80)
    await eventually(lambda: runs(gateway, job))
    assert (await act(gateway, "stop", graceful="false"))["state"] == "stopped"

    async def is_back() -> bool:
        body = (await gateway.http.get(f"/api/jobs/{job['request_id']}")).json()
        return (body["status"], body["attempts"]) == ("queued", 0)

    await eventually(is_back)
    await act(gateway, "start")
    assert (await gateway.ended(job["request_id"]))["attempts"] == 1


async def test_a_restart_is_a_drain_and_a_start(gateway: Gateway) -> None:
    before = (await model(gateway))["workers"][0]["since"]
    assert (await act(gateway, "restart"))["state"] == "ready"
    assert (await model(gateway))["workers"][0]["since"] > before
    assert (await submit(gateway, wait=20))["status"] == "completed"


async def test_a_model_that_takes_memory_is_loaded_by_the_plan_and_its_cost_is_measured(gateway: Gateway) -> None:
    assert (await submit(gateway, wait=20, name=BIG))["status"] == "completed"
    (run,) = (await model(gateway, BIG))["workers"]
    assert (run["state"], run["memory_bytes"], run["healthy"]) == ("ready", 2**20, True)
    assert run["load_seconds"] >= 0.5


async def test_a_job_for_a_model_that_sleeps_waits_until_it_is_woken(gateway: Gateway) -> None:
    await eventually(lambda: has_state(gateway, "ready", BIG))
    running = await submit(gateway, name=BIG, tokens=80)
    await eventually(lambda: runs(gateway, running))
    assert (await act(gateway, "sleep", BIG))["state"] == "sleeping"
    assert (await gateway.ended(running["request_id"]))["attempts"] == 1, "it slept only when what ran had ended"
    waiting = await submit(gateway, name=BIG)
    assert waiting["status"] == "queued"
    assert (await act(gateway, "wake", BIG))["state"] == "ready"
    assert (await gateway.ended(waiting["request_id"]))["status"] == "completed"
    (run,) = (await model(gateway, BIG))["workers"]
    assert None not in (run["sleep_seconds"], run["wake_seconds"])


async def test_a_model_that_an_operator_stopped_is_not_loaded_by_the_plan_until_it_is_started(gateway: Gateway) -> None:
    await eventually(lambda: has_state(gateway, "ready", BIG))
    assert (await act(gateway, "stop", BIG))["state"] == "stopped"
    job = await submit(gateway, name=BIG)
    assert job["status"] == "queued"
    assert (await act(gateway, "start", BIG))["state"] == "ready"
    assert (await gateway.ended(job["request_id"]))["status"] == "completed"


async def runs(gateway: Gateway, job: dict[str, Any]) -> bool:
    return bool((await gateway.http.get(f"/api/jobs/{job['request_id']}")).json()["status"] == "processing")

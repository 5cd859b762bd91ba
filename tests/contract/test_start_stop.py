"""Operators start and stop models on a real worker."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from tests.conditions import eventually
from tests.deployments import Gateway, default_config, gateway_on, make_settings, worker_on

MODEL = "simulator"


@pytest.fixture
async def gateway(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> AsyncIterator[Gateway]:
    config = default_config()
    config["models"] = {MODEL: config["models"][MODEL] | {"tokens_per_second": 20}}
    config["defaults"] = {"chat": [MODEL]}
    settings = make_settings(tmp_path, mongod_uri, database.name, config)
    async with gateway_on(settings) as gateway, worker_on(settings):
        await eventually(lambda: has_state(gateway, "ready"))
        yield gateway


async def has_state(gateway: Gateway, state: str) -> bool:
    return bool((await model(gateway))["state"] == state)


async def model(gateway: Gateway) -> dict[str, Any]:
    body: dict[str, Any] = (await gateway.http.get(f"/admin/models/{MODEL}")).json()
    return body


async def act(gateway: Gateway, action: str, **query: Any) -> dict[str, Any]:
    response = await gateway.http.post(f"/admin/models/{MODEL}/{action}", params={"wait": 20, **query})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def submit(gateway: Gateway, wait: int | None = None) -> dict[str, Any]:
    params = {} if wait is None else {"wait": wait}
    body: dict[str, Any] = (await gateway.http.post("/api/chat", params=params, json={"message": "hi"})).json()
    return body


async def test_a_stopped_model_queues_its_jobs_and_runs_them_when_it_is_started_again(gateway: Gateway) -> None:
    assert (await act(gateway, "stop"))["state"] == "stopped"
    job = await submit(gateway)
    assert job["status"] == "queued"
    assert (await act(gateway, "start"))["state"] == "ready"
    assert (await gateway.ended(job["request_id"]))["status"] == "completed"


async def test_a_graceful_stop_lets_what_runs_finish(gateway: Gateway) -> None:
    job = await submit(gateway)
    await eventually(lambda: runs(gateway, job))
    assert (await act(gateway, "stop"))["state"] == "stopped"
    done = await gateway.ended(job["request_id"])
    assert (done["status"], done["attempts"]) == ("completed", 1)


async def test_a_stop_at_once_hands_back_what_runs_uncharged(gateway: Gateway) -> None:
    job = await submit(gateway)
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


async def runs(gateway: Gateway, job: dict[str, Any]) -> bool:
    return bool((await gateway.http.get(f"/api/jobs/{job['request_id']}")).json()["status"] == "processing")

"""Health, models, queues and limits, as an operator and a load balancer see them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.job import Failure
from gateway.users import Users
from tests.conditions import eventually
from tests.deployments import Gateway, default_config, gateway_on, make_settings, worker_on
from worker.worker import Worker


async def test_health_needs_no_token_and_says_when_it_was_asked(gateway: Gateway) -> None:
    del gateway.http.headers["Authorization"]
    response = await gateway.http.get("/health")
    assert response.status_code == 200
    assert response.json()["status"] == "ok"
    assert response.json()["timestamp"].endswith("Z")


async def test_health_in_detail_shows_database_workers_and_queues(gateway: Gateway, worker: Worker) -> None:
    async def the_worker_serves_all() -> bool:
        models = (await gateway.http.get("/health?detail=1")).json()["models"]
        return all(model["workers"] == 1 for model in models)

    await eventually(the_worker_serves_all)
    body = (await gateway.http.get("/health?detail=1")).json()
    assert body["database"]["ok"]
    assert body["database"]["latency_ms"] > 0
    assert [(model["name"], model["workers"], model["queued"]) for model in body["models"]] == [
        ("tesseract", 1, 0),
        ("simulator", 1, 0),
    ]


async def test_a_gateway_without_its_database_says_503_and_when_to_come_back(tmp_path: Path) -> None:
    import httpx

    from broker.broker import Broker
    from gateway.app import create_app
    from tests.ports import free_port

    settings = make_settings(tmp_path, f"mongodb://127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=300", "none")
    app = create_app(settings, await Broker.open(settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roundhouse") as http,
    ):
        health = await http.get("/health?detail=1")
        assert (health.status_code, health.json()["status"]) == (503, "unavailable")
        assert health.json()["database"] == {"ok": False, "latency_ms": None, "reason": None}
        assert health.headers["retry-after"]
        token = app.state.context.tokens.issue("ann", "user")
        response = await http.post("/api/chat", json={"message": "hi"}, headers={"Authorization": f"Bearer {token}"})
        assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
        assert response.headers["retry-after"]


async def test_models_show_what_is_served_and_why_the_rest_is_not(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    config = default_config()
    config["models"]["big"] = {"task": "chat", "engine": "vllm", "model": "somebody/big"}
    settings = make_settings(tmp_path, mongod_uri, database.name, config)
    async with gateway_on(settings) as gateway:
        states = {m["name"]: m["state"] for m in (await gateway.http.get("/admin/models")).json()["models"]}
        assert states == {"tesseract": "no worker", "simulator": "no worker", "big": "no worker"}
        async with worker_on(settings):

            async def served() -> bool:
                models = (await gateway.http.get("/admin/models")).json()["models"]
                states.update({model["name"]: model["state"] for model in models})
                return states["simulator"] == states["tesseract"] == "ready"

            await eventually(served)
            big = (await gateway.http.get("/admin/models/big")).json()
            assert big["state"] not in ("ready", "no worker")
            assert big["reason"]


async def test_a_queue_shows_its_load_and_its_totals(gateway: Gateway) -> None:
    for _ in range(3):
        await gateway.http.post("/api/chat", json={"message": "hi"})
    busy = (await gateway.http.get("/admin/queue/sim")).json()
    assert (busy["model"], busy["waiting"], busy["processing"], busy["utilization"]) == ("simulator", 3, 0, 0.0)
    async with worker_on(gateway.settings, "simulator"):

        async def all_done() -> bool:
            return bool((await gateway.http.get("/admin/queue/sim")).json()["total_processed"] == 3)

        await eventually(all_done)


async def test_a_request_that_names_no_model_goes_to_the_first_that_is_served(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    config = default_config()
    config["models"]["other"] = {"task": "chat", "engine": "simulator"}
    config["defaults"]["chat"] = ["other", "simulator"]
    settings = make_settings(tmp_path, mongod_uri, database.name, config)
    async with gateway_on(settings) as gateway:

        async def chosen() -> str:
            return str((await gateway.http.post("/api/chat", json={"message": "hi"})).json()["model"])

        assert await chosen() == "simulator", "no worker serves anything, so the last one waits for one"
        async with worker_on(settings, "other"):

            async def other_is_served() -> bool:
                return await chosen() == "other"

            await eventually(other_is_served)


async def test_a_client_over_its_rate_is_refused_and_told_when_to_come_back(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    config = default_config() | {"rate_limit": {"requests_per_minute": 60, "burst": 10}}
    async with gateway_on(make_settings(tmp_path, mongod_uri, database.name, config)) as gateway:
        users = Users(gateway.broker.database.handle)
        for name, role in (("ann", "user"), ("bob", "user"), ("robot", "service")):
            await users.create(name, f"{name}-password", role)
        await gateway.sign_in("ann", "ann-password")
        # At once: one after the other they might be as slow as they may come.
        asked = [gateway.http.post("/api/chat", json={"message": "hi"}) for _ in range(20)]
        responses = await asyncio.gather(*asked)
        codes = [response.status_code for response in responses]
        assert set(codes) == {202, 429}
        assert codes.count(202) >= 10
        refused = [response for response in responses if response.status_code == 429]
        assert refused[0].json()["code"] == "rate_limited"
        assert int(refused[0].headers["retry-after"]) == 1
        assert refused[0].headers["x-ratelimit-remaining-requests"] == "0"
        assert responses[0].headers["x-ratelimit-limit-requests"] == "10"
        lookups = [await gateway.http.get("/api/jobs") for _ in range(12)]
        assert {response.status_code for response in lookups} == {200}, "only what submits work counts"
        await gateway.sign_in("bob", "bob-password")
        assert (await gateway.http.post("/api/chat", json={"message": "hi"})).status_code == 202
        await gateway.sign_in("robot", "robot-password")
        robots = [await gateway.http.post("/api/chat", json={"message": "hi"}) for _ in range(15)]
        assert 429 not in {response.status_code for response in robots}


@pytest.mark.parametrize("query", ["since=yesterday", "since=0001-01-01T00:00:00%2B23:59", "limit=0", "limit=5000"])
async def test_crashes_asked_for_wrongly_are_refused(gateway: Gateway, query: str) -> None:
    response = await gateway.http.get(f"/admin/crashes?{query}")
    assert (response.status_code, response.json()["code"]) == (400, "invalid_query")


async def test_crashes_can_be_narrowed_down(gateway: Gateway, worker: Worker) -> None:
    body = {"message": "hi", "simulate": {"fault": "reject"}}
    ids = [(await gateway.http.post("/api/chat", json=body)).json()["request_id"] for _ in range(2)]
    await asyncio.gather(*(gateway.ended(job_id) for job_id in ids))

    async def logged() -> bool:
        return len((await gateway.http.get("/admin/crashes")).json()["crashes"]) == 2

    await eventually(logged)
    first = (await gateway.http.get("/admin/crashes?limit=1")).json()["crashes"]
    assert len(first) == 1
    assert (first[0]["model"], first[0]["outcome"]) == ("simulator", "failed")
    assert (await gateway.http.get("/admin/crashes?model=tesseract")).json()["crashes"] == []
    assert (await gateway.http.get("/admin/crashes?code=engine_died")).json()["crashes"] == []
    assert len((await gateway.http.get("/admin/crashes?code=engine_rejected_input")).json()["crashes"]) == 2
    assert (await gateway.http.get("/admin/crashes?since=2100-01-01T00:00:00Z")).json()["crashes"] == []


async def test_a_crash_is_shown_with_its_stack_and_one_of_an_older_release_without(gateway: Gateway) -> None:
    job_id = (await gateway.http.post("/api/chat", json={"message": "hi"})).json()["request_id"]
    job = await gateway.broker.reader.get(job_id, None)
    await gateway.broker.crashes.add(job, Failure("x", "It broke.", stack="Traceback: here"), "queued")
    shown = (await gateway.http.get("/admin/crashes")).json()["crashes"]
    assert [(crash["job"], crash["message"], crash["stack"]) for crash in shown] == [
        (job_id, "It broke.", "Traceback: here")
    ]
    await gateway.broker.database.crashes.update_one({}, {"$unset": {"stack": ""}})
    (crash,) = (await gateway.http.get("/admin/crashes")).json()["crashes"]
    assert crash["stack"] is None

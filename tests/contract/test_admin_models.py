"""The operator's routes on models and workers. What the workers are to say is said here in their place."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.desired import Desired, Wanted
from broker.registry import ModelState
from gateway.openapi import document
from gateway.operations import DESCRIPTION, OPERATIONS, VERSION
from gateway.routes import ROUTES
from tests.conditions import eventually
from tests.contract.described import check
from tests.deployments import Gateway, default_config, gateway_on, make_settings

DOCUMENT = document(ROUTES, OPERATIONS, VERSION, DESCRIPTION)
BIG, READER = "org/big:7b", "reader"
STOPPED = ModelState(ready=False, state="stopped", version=0)


@pytest.fixture
async def gateway(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> AsyncIterator[Gateway]:
    config = default_config()
    config["models"][BIG] = {"task": "chat", "engine": "vllm", "max_concurrent": 4, "aliases": ["big"]}
    config["models"][READER] = {"task": "ocr", "engine": "vllm"}
    config["defaults"]["ocr"] = ["tesseract", READER]
    async with gateway_on(make_settings(tmp_path, mongod_uri, database.name, config)) as gateway:
        yield gateway


async def says(gateway: Gateway, models: dict[str, ModelState], worker: str = "w1", *, draining: bool = False) -> None:
    """A worker's heartbeat."""
    await gateway.broker.registry.heartbeat(worker, "box", 7, models, draining=draining)


async def ask(gateway: Gateway, method: str, path: str, **arguments: Any) -> httpx.Response:
    """What is answered, after a look at whether it is what was described."""
    response = await gateway.http.request(method, path, **arguments)
    check(DOCUMENT, response)
    return response


async def model(gateway: Gateway, name: str = BIG) -> dict[str, Any]:
    response = await ask(gateway, "GET", f"/admin/models/{name}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def problem_of(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


async def answer_to(gateway: Gateway, wanted: Wanted) -> Desired:
    """The request that a worker sees."""
    found: list[Desired] = []

    async def asked() -> bool:
        found.append(await gateway.broker.desired.one(BIG))
        return found[-1].wanted is wanted

    await eventually(asked)
    return found[-1]


async def test_a_model_is_shown_with_all_that_its_workers_know(gateway: Gateway) -> None:
    ready = ModelState(
        ready=True,
        state="ready",
        since=datetime(2026, 11, 21, 8, tzinfo=UTC),
        gpus=("GPU-0", "GPU-1"),
        address="/run/big.sock",
        memory_bytes=2**34,
        load_seconds=40.0,
        sleep_seconds=2.0,
        wake_seconds=1.0,
        healthy=True,
        last_error="out of memory",
        version=0,
    )
    starting = ModelState(ready=False, state="starting", phase="loading", progress=0.5, version=0)
    await says(gateway, {BIG: ready})
    await says(gateway, {BIG: starting}, "w2")
    body = await model(gateway)
    assert (body["state"], body["replicas"], body["settled"]) == ("ready", 1, False)
    first, second = body["workers"]
    assert (first["worker"], first["host"], first["pid"]) == ("w1", "box", 7)
    assert (first["gpus"], first["address"], first["memory_bytes"]) == (["GPU-0", "GPU-1"], "/run/big.sock", 2**34)
    assert (first["load_seconds"], first["sleep_seconds"], first["wake_seconds"]) == (40.0, 2.0, 1.0)
    assert (first["since"], first["healthy"], first["last_error"]) == ("2026-11-21T08:00:00Z", True, "out of memory")
    assert (second["state"], second["phase"], second["progress"]) == ("starting", "loading", 0.5)
    assert body in (await ask(gateway, "GET", "/admin/models")).json()["models"]
    assert (await model(gateway, "big"))["name"] == BIG, "an alias will do"


async def test_a_model_that_no_worker_can_serve_says_why(gateway: Gateway) -> None:
    assert ((await model(gateway))["state"], (await model(gateway))["reason"]) == ("no worker", None)
    await says(gateway, {BIG: ModelState(False, "no NVIDIA GPU on this machine")})
    body = await model(gateway)
    assert (body["state"], body["reason"]) == ("unavailable", "no NVIDIA GPU on this machine")


async def test_a_start_is_written_down_and_answered_202_until_a_worker_has_done_it(gateway: Gateway) -> None:
    await says(gateway, {BIG: STOPPED})
    response = await ask(gateway, "POST", f"/admin/models/{BIG}/start")
    assert response.status_code == 202
    assert response.json()["desired"] | {"changed_at": None} == {
        "wanted": "running",
        "pinned": False,
        "resolution": None,
        "changed_at": None,
        "changed_by": "admin",
    }
    assert not response.json()["settled"]
    await says(gateway, {BIG: replace(STOPPED, state="ready", ready=True, version=1)})
    assert (await model(gateway))["settled"]


async def test_a_start_that_is_waited_for_is_answered_when_the_model_is_ready(gateway: Gateway) -> None:
    await says(gateway, {BIG: STOPPED})
    waiting = asyncio.create_task(ask(gateway, "POST", f"/admin/models/{BIG}/start?wait=30"))
    asked = await answer_to(gateway, Wanted.RUNNING)
    await says(gateway, {BIG: ModelState(False, "starting", version=asked.version)})
    assert not waiting.done()
    await says(gateway, {BIG: ModelState(True, "ready", version=asked.version)})
    response = await waiting
    assert (response.status_code, response.json()["state"]) == (200, "ready")
    assert response.headers["preference-applied"] == "wait=30"


async def test_a_start_that_fails_is_answered_with_the_reason(gateway: Gateway) -> None:
    old = ModelState(False, "failed", reason="an older failure", version=0)
    await says(gateway, {BIG: old})
    waiting = asyncio.create_task(ask(gateway, "POST", f"/admin/models/{BIG}/start?wait=30"))
    asked = await answer_to(gateway, Wanted.RUNNING)
    await says(gateway, {BIG: replace(old, reason="out of memory", version=asked.version)})
    response = await waiting
    assert (response.status_code, response.json()["state"], response.json()["reason"]) == (
        200,
        "failed",
        "out of memory",
    )


async def test_a_wait_ends_with_its_time(gateway: Gateway) -> None:
    await says(gateway, {BIG: STOPPED})
    assert (await ask(gateway, "POST", f"/admin/models/{BIG}/start?wait=1")).status_code == 202
    for wrong in ("x", "-1", "99999"):
        assert problem_of(await ask(gateway, "POST", f"/admin/models/{BIG}/start?wait={wrong}")) == (
            400,
            "invalid_wait",
        )


async def test_a_start_that_no_worker_can_do_is_refused_with_the_workers_reasons(gateway: Gateway) -> None:
    refused = await ask(gateway, "POST", f"/admin/models/{BIG}/start")
    assert problem_of(refused) == (409, "cannot_start")
    assert "no live worker" in refused.json()["detail"]
    await says(gateway, {BIG: ModelState(False, "no NVIDIA GPU on this machine")})
    await says(gateway, {BIG: ModelState(False, "weights missing")}, "w2")
    await says(gateway, {BIG: STOPPED}, "leaving", draining=True)
    for action in ("start", "wake", "restart"):
        refused = await ask(gateway, "POST", f"/admin/models/{BIG}/{action}")
        assert problem_of(refused) == (409, "cannot_start")
        assert refused.json()["detail"] == (f"{BIG} cannot be started: no NVIDIA GPU on this machine; weights missing.")
    assert await gateway.broker.desired.all() == {}, "nothing is written down that nobody can do"


async def test_each_action_is_what_a_worker_then_sees(gateway: Gateway) -> None:
    ready = ModelState(True, "ready", version=0)
    await says(gateway, {BIG: ready})
    seen = []
    for action in ("stop?graceful=false", "wake", "sleep", "restart", "stop", "auto", "pin"):
        response = await ask(gateway, "POST", f"/admin/models/{BIG}/{action}")
        assert response.status_code == (200 if action == "pin" else 202)
        desired = await gateway.broker.desired.one(BIG)
        seen.append((desired.wanted, desired.graceful, desired.restarts, desired.pinned))
    assert seen == [
        ("stopped", False, 0, False),
        ("running", False, 0, False),
        ("sleeping", False, 0, False),
        ("running", False, 1, False),
        ("stopped", True, 1, False),
        (None, True, 1, False),
        (None, True, 1, True),
    ]
    assert not (await ask(gateway, "POST", f"/admin/models/{BIG}/unpin")).json()["desired"]["pinned"]


async def test_what_an_engine_cannot_do_is_refused(gateway: Gateway) -> None:
    await says(gateway, {"tesseract": ModelState(True, "ready"), "simulator": ModelState(True, "ready"), BIG: STOPPED})
    for path in (
        "/admin/models/tesseract/sleep",
        "/admin/models/simulator/wake",
        f"/admin/models/{BIG}/start?resolution=base",
    ):
        assert problem_of(await ask(gateway, "POST", path)) == (409, "action_not_supported")
    assert problem_of(await ask(gateway, "POST", f"/admin/models/{BIG}/sleep")) == (409, "model_not_running")
    assert problem_of(await ask(gateway, "POST", f"/admin/models/{BIG}/stop?graceful=maybe")) == (400, "invalid_query")
    for method, path in (("GET", "/admin/models/none"), ("POST", "/admin/models/none/start")):
        assert problem_of(await ask(gateway, method, path)) == (404, "model_not_found")


async def test_the_resolution_is_chosen_at_a_start_or_by_itself(gateway: Gateway) -> None:
    await says(gateway, {READER: STOPPED})
    started = await ask(gateway, "POST", f"/admin/models/{READER}/start?resolution=tiny")
    assert started.json()["desired"]["resolution"] == "tiny"
    wrong = await ask(gateway, "POST", f"/admin/models/{READER}/start?resolution=huge")
    assert problem_of(wrong) == (400, "invalid_resolution")
    chosen = await ask(gateway, "POST", "/admin/ocr/resolution", json={"resolution": "base"})
    assert (chosen.status_code, chosen.json()["name"]) == (202, READER)
    assert chosen.json()["desired"]["resolution"] == "base"
    running = ModelState(True, "ready", resolution="base", version=2)
    await says(gateway, {READER: running})
    shown = await model(gateway, READER)
    assert (shown["settled"], shown["workers"][0]["resolution"]) == (True, "base")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"resolution": "huge"}, 400, "invalid_request"),
        ({"resolution": "base", "model": "none"}, 404, "model_not_found"),
        ({"resolution": "base", "model": "tesseract"}, 409, "action_not_supported"),
        ({}, 400, "invalid_request"),
    ],
)
async def test_a_resolution_chosen_wrongly_is_refused(
    gateway: Gateway, body: dict[str, Any], status: int, code: str
) -> None:
    assert problem_of(await ask(gateway, "POST", "/admin/ocr/resolution", json=body)) == (status, code)


async def test_without_a_model_that_has_modes_there_is_no_resolution_to_choose(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    async with gateway_on(make_settings(tmp_path, mongod_uri, database.name)) as gateway:
        refused = await ask(gateway, "POST", "/admin/ocr/resolution", json={"resolution": "base"})
        assert problem_of(refused) == (409, "action_not_supported")


async def test_parameters_change_while_everything_runs(gateway: Gateway) -> None:
    change = {"max_concurrent": 1, "max_waiting": 0, "timeout": "1m", "temperature": 0.5}
    response = await ask(gateway, "PATCH", "/admin/models/sim", json=change)
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["max_concurrent"], body["max_waiting"], body["timeout"], body["max_retries"]) == (1, 0, 60.0, 3)
    assert {key: value for key, value in body["parameters"].items() if value is not None} == change | {"timeout": 60.0}
    statuses = [(await gateway.http.post("/api/chat", json={"message": "hi"})).status_code for _ in range(2)]
    assert statuses == [202, 503]
    queue = (await ask(gateway, "GET", "/admin/queue/sim")).json()
    assert (queue["max_concurrent"], queue["max_waiting"]) == (1, 0)
    response = await ask(gateway, "PATCH", "/admin/models/sim", json=dict.fromkeys(change))
    assert (response.json()["max_concurrent"], response.json()["max_waiting"]) == (10, 10)
    assert set(response.json()["parameters"].values()) == {None}


async def test_sampling_that_a_client_leaves_open_is_as_operators_have_set_it(gateway: Gateway) -> None:
    for name, change in (("sim", {"max_tokens": 5, "top_p": 0.5}), (READER, {"temperature": 0.1, "top_p": 0.5})):
        assert (await ask(gateway, "PATCH", f"/admin/models/{name}", json=change)).status_code == 200
    pdf = {"model": (None, READER), "file": ("a.pdf", b"%PDF-1.7 ")}
    submits: list[tuple[str, dict[str, Any]]] = [
        ("/api/chat", {"json": {"message": "hi"}}),
        ("/api/chat", {"json": {"message": "hi", "max_tokens": 9}}),
        ("/api/ocr", {"files": pdf}),
    ]
    payloads = []
    for path, body in submits:
        accepted = (await gateway.http.post(path, **body)).json()
        payloads.append((await gateway.broker.reader.get(accepted["request_id"], None)).payload)
    assert [(payload["max_tokens"], payload["top_p"]) for payload in payloads[:2]] == [(5, 0.5), (9, 0.5)]
    assert payloads[2]["options"] == {"temperature": 0.1}, "a document's options know no top_p"


async def test_a_gateway_that_starts_later_knows_what_was_changed(gateway: Gateway) -> None:
    await ask(gateway, "PATCH", "/admin/models/sim", json={"max_concurrent": 3})
    async with gateway_on(gateway.settings) as other:
        assert (await model(other, "sim"))["max_concurrent"] == 3


@pytest.mark.parametrize(
    ("name", "body", "code", "says_what"),
    [
        ("sim", {"max_concurrent": 0}, "invalid_request", "max_concurrent"),
        ("sim", {"max_waiting": 100_001}, "invalid_request", "max_waiting"),
        ("sim", {"timeout": "soon"}, "invalid_request", "timeout"),
        ("sim", {"colour": "blue"}, "invalid_request", "colour"),
        ("sim", {"tokens_per_second": 5}, "not_changeable", "tokens_per_second"),
        ("sim", {"engine": "vllm"}, "not_changeable", "engine"),
        ("tesseract", {"temperature": 0}, "not_changeable", "temperature"),
        ("sim", [], "invalid_request", ""),
    ],
)
async def test_a_parameter_that_may_not_be_is_refused_by_its_name(
    gateway: Gateway, name: str, body: Any, code: str, says_what: str
) -> None:
    refused = await ask(gateway, "PATCH", f"/admin/models/{name}", json=body)
    assert problem_of(refused) == (400, code)
    assert says_what in refused.json()["detail"]
    assert await gateway.broker.database.models.count_documents({}) == 0


async def test_workers_are_shown_with_what_they_run(gateway: Gateway) -> None:
    await says(gateway, {"simulator": ModelState(True, "ready"), BIG: ModelState(False, "no NVIDIA GPU")})
    await says(gateway, {"simulator": ModelState(True, "ready")}, "w2", draining=True)
    for _ in range(3):
        await gateway.http.post("/api/chat", json={"message": "hi"})
    # Those that were not leased to w1 directly.
    await gateway.broker.queue.claim("simulator", "w1", 3)
    (first, second) = (await ask(gateway, "GET", "/admin/workers")).json()["workers"]
    sim, big = first["models"]
    assert (sim["name"], sim["state"], sim["processing"]) == ("simulator", "ready", 3)
    assert (big["name"], big["state"], big["reason"]) == (BIG, "unavailable", "no NVIDIA GPU")
    assert (second["id"], second["draining"], second["models"][0]["state"]) == ("w2", True, "draining")
    assert (second["models"][0]["ready"], second["models"][0]["processing"]) == (False, 0)


async def test_who_asked_for_what_is_in_the_log(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    await says(gateway, {BIG: STOPPED})
    with caplog.at_level(logging.INFO, "gateway.admin.models"):
        await ask(gateway, "POST", f"/admin/models/{BIG}/start")
    assert f"admin asks: POST /admin/models/{BIG}/start" in caplog.text

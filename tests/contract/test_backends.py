"""Upstreams, backends and fallbacks through a real gateway and worker, with real HTTP servers behind them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from config import Settings
from tests.conditions import eventually
from tests.contract.test_v1 import data_of
from tests.deployments import Gateway, default_config, gateway_on, listening, make_settings, worker_on
from tests.ports import free_port
from tests.upstreams import Behaviour, Upstream, upstreams

Database = AsyncDatabase[dict[str, Any]]
HELLO = [{"role": "user", "content": "hello"}]


def remote(url: str, **entry: Any) -> dict[str, Any]:
    return {"task": "chat", "engine": "openai", "base_url": url, "model": "theirs", "max_retries": 0, **entry}


def several(*servers: Upstream, **entry: Any) -> dict[str, Any]:
    backends = [{"name": "abcdef"[index], "base_url": server.url} for index, server in enumerate(servers)]
    return {"task": "chat", "engine": "openai", "model": "theirs", "max_retries": 0, "backends": backends, **entry}


class Site:
    """A gateway and a worker with the models ``models`` besides the simulator."""

    def __init__(self, tmp_path: Path, mongod_uri: str, database: Database) -> None:
        self._where = tmp_path, mongod_uri, database.name

    @asynccontextmanager
    async def __call__(self, **models: Any) -> AsyncIterator[Gateway]:
        settings = self._settings(models)
        async with gateway_on(settings) as gateway, worker_on(settings):
            yield gateway

    @asynccontextmanager
    async def online(self, **models: Any) -> AsyncIterator[Gateway]:
        """The same on a socket, from where streams come piece by piece."""
        settings = self._settings(models)
        async with listening(settings) as gateway, worker_on(settings):
            yield gateway

    def _settings(self, models: dict[str, Any]) -> Settings:
        config = default_config()
        config["models"] |= {name.replace("_", "-"): entry for name, entry in models.items()}
        return make_settings(*self._where, config)


@pytest.fixture
def site(tmp_path: Path, mongod_uri: str, database: Database) -> Site:
    return Site(tmp_path, mongod_uri, database)


async def ask(gateway: Gateway, model: str, **body: Any) -> Any:
    return await gateway.http.post("/v1/chat/completions", json={"model": model, "messages": HELLO, **body})


async def seen(gateway: Gateway, model: str) -> dict[str, Any]:
    """The model as operators see it."""
    response = await gateway.http.get(f"/admin/models/{model}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def served(gateway: Gateway, *models: str) -> None:
    async def all_ready() -> bool:
        workers = await gateway.broker.registry.live_workers()
        return all(any(worker.serves(model) for worker in workers) for model in models)

    await eventually(all_ready)


# ── Failures and what they are answered with ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        (Behaviour(fault="hang"), 504, "upstream_timeout"),
        (Behaviour(status=500), 502, "upstream_error"),
        (Behaviour(status=429), 502, "upstream_error"),
        (Behaviour(status=401), 502, "upstream_refused_key"),
        (Behaviour(fault="drop"), 502, "upstream_unreachable"),
        (Behaviour(fault="error"), 502, "upstream_error"),
        (Behaviour(status=404), 404, "engine_rejected_input"),
        (Behaviour(status=400), 400, "engine_rejected_input"),
    ],
    ids=lambda value: getattr(value, "fault", None) or getattr(value, "status", None) or value,
)
async def test_what_an_upstream_does_wrong_has_a_status_and_its_name(
    site: Site, behaviour: Behaviour, status: int, code: str
) -> None:
    patience = 0.3 if behaviour.fault == "hang" else 30
    async with upstreams(1) as (server,), site(far=remote(server.url, read_timeout=patience)) as gateway:
        server.usual = behaviour
        response = await ask(gateway, "far")
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code), response.text
        assert f"The upstream of far at {server.url}" in error["message"]


async def test_a_model_that_was_stopped_and_started_answers_again(site: Site) -> None:
    async with upstreams(1) as (server,), site(far=remote(server.url)) as gateway:
        assert (await ask(gateway, "far")).status_code == 200
        for action in ("stop", "start"):
            done = await gateway.http.post(f"/admin/models/far/{action}", params={"wait": 20})
            assert done.status_code == 200, done.text
        response = await ask(gateway, "far")
        assert response.status_code == 200, response.text


async def test_an_upstream_that_is_not_there_is_a_bad_gateway(site: Site) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    async with site(far=remote(url)) as gateway:
        response = await ask(gateway, "far")
        assert response.status_code == 502
        assert response.json()["error"]["code"] == "upstream_unreachable"
        assert url in response.json()["error"]["message"]


async def test_the_time_that_the_client_gives_ends_with_the_name_of_who_was_too_slow(site: Site) -> None:
    async with upstreams(1) as (server,), site(far=remote(server.url)) as gateway:
        server.usual = Behaviour(fault="stall")
        response = await gateway.http.post(
            "/v1/chat/completions", json={"model": "far", "messages": HELLO}, headers={"X-Timeout": "3"}
        )
        assert response.status_code == 504
        assert server.url in response.json()["error"]["message"]


async def test_an_answer_that_came_in_pieces_is_whole(site: Site) -> None:
    async with upstreams(1) as (server,), site(far=remote(server.url)) as gateway:
        response = await ask(gateway, "far", stream=True)
        *pieces, _, done = data_of(response.text)
        assert done == "[DONE]"
        assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == "Good day"
        assert response.headers["x-roundhouse-model"] == "far"
        assert "x-roundhouse-fallback" not in response.headers


# ── Backends ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_names_one_of_the_backends(site: Site) -> None:
    async with upstreams(2) as (one, other), site(far=several(one, other)) as gateway:
        for _ in range(2):
            assert (await ask(gateway, "far", modelKey="b")).status_code == 200
        job = await gateway.http.post("/api/chat", json={"model": "far", "message": "hello", "modelKey": "b"})
        assert (await gateway.ended(job.json()["request_id"]))["status"] == "completed"
        assert (len(one.asked), len(other.asked)) == (0, 3)
        assert "modelKey" not in other.asked[0]
        unknown = await ask(gateway, "far", modelKey="z")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_backend")
        assert "a, b" in unknown.json()["error"]["message"]
        none = await gateway.http.post("/api/chat", json={"model": "simulator", "message": "hello", "modelKey": "z"})
        assert (none.status_code, none.json()["code"]) == (400, "unknown_backend")


async def test_a_job_tells_which_backends_were_asked_and_which_one_answered(site: Site) -> None:
    async with upstreams(2) as (one, other), site(far=several(one, other), alone=remote(other.url)) as gateway:
        one.usual = Behaviour(status=500, message="out of order")

        async def counted() -> bool:
            [worker] = (await seen(gateway, "far"))["workers"]
            return [(told["name"], told["asked"], told["failed"]) for told in worker["backends"]] == [
                ("a", 1, 1),
                ("b", 1, 0),
            ]

        await served(gateway, "far", "alone")
        answer = await ask(gateway, "far")
        assert (answer.status_code, answer.headers["x-roundhouse-backend"]) == (200, "a -> b")
        looked_up = await gateway.http.get(f"/api/jobs/{answer.headers['x-request-id']}")
        assert looked_up.headers["x-roundhouse-backend"] == "a -> b"
        first, second = looked_up.json()["backends"]
        assert (first["name"], first["code"], "out of order" in first["message"]) == ("a", "upstream_error", True)
        assert second == {"name": "b", "code": None, "message": None}
        await eventually(counted)

        other.usual = one.usual
        failed = await ask(gateway, "far")
        assert failed.status_code == 502
        [error] = (await gateway.http.get(f"/api/jobs/{failed.headers['x-request-id']}")).json()["errors"]
        assert sorted(asked["name"] for asked in error["details"]["backends"]) == ["a", "b"]

        other.usual = Behaviour()
        answer = await ask(gateway, "alone")
        assert "x-roundhouse-backend" not in answer.headers
        assert (await gateway.http.get(f"/api/jobs/{answer.headers['x-request-id']}")).json()["backends"] == []


async def test_operators_see_which_backend_is_left_alone_and_why(site: Site) -> None:
    breaker = {"failures": 1, "pause": 600}
    async with upstreams(2) as (one, other), site(far=several(one, other, breaker=breaker)) as gateway:
        one.usual = Behaviour(status=503, message="overloaded")
        for _ in range(3):
            assert (await ask(gateway, "far")).status_code == 200
        assert (len(one.asked), len(other.asked)) == (1, 3)

        async def told() -> bool:
            [worker] = (await seen(gateway, "far"))["workers"]
            broken, sound = worker["backends"]
            return (broken["state"], sound["state"], sound["latency"] is None) == ("open", "closed", False)

        await eventually(told)
        [worker] = (await seen(gateway, "far"))["workers"]
        broken, sound = worker["backends"]
        assert (broken["name"], broken["address"]) == ("a", one.url)
        assert "overloaded" in broken["last_error"]
        assert 500 < broken["retry_in"] <= 600
        assert (sound["retry_in"], sound["last_error"]) == (0, None)
        assert sound["latency"] > 0


# ── Discovery ────────────────────────────────────────────────────────────────────────────────────────────────────


async def listed(gateway: Gateway, *names: str) -> None:
    async def known() -> bool:
        body = (await gateway.http.get("/v1/models")).json()
        return set(names) <= {model["id"] for model in body["data"]}

    await eventually(known)


async def test_what_an_upstream_lists_can_be_asked_for_by_its_name(site: Site) -> None:
    async with upstreams(2) as (one, other):
        one.models, other.models = ["llama-8b", "shared", "secret", "simulator"], ["shared", "qwen-4b"]
        models = {
            "far": remote(one.url, allowed_models=["llama-*", "shared", "simulator"]),
            "farther": remote(other.url, allowed_models=["*"]),
        }
        async with site(**models) as gateway:
            await listed(gateway, "llama-8b", "qwen-4b")
            names = [model["id"] for model in (await gateway.http.get("/v1/models")).json()["data"]]
            assert len(names) == len(set(names))
            assert not {"secret", "shared"} & set(names)
            found = (await gateway.http.get("/v1/models/llama-8b")).json()
            assert (found["root"], found["task"]) == ("far", "chat")

            response = await ask(gateway, "llama-8b")
            assert response.status_code == 200, response.text
            assert (response.json()["model"], response.headers["x-roundhouse-model"]) == ("llama-8b", "far")
            assert one.asked[-1]["model"] == "llama-8b"
            assert "upstream_model" not in one.asked[-1]
            job = await gateway.http.post("/api/chat", json={"model": "qwen-4b", "message": "hello"})
            assert (await gateway.ended(job.json()["request_id"]))["status"] == "completed"
            assert other.asked[-1]["model"] == "qwen-4b"

            ambiguous = await ask(gateway, "shared")
            assert (ambiguous.status_code, ambiguous.json()["error"]["code"]) == (409, "model_ambiguous")
            assert "far and by farther" in ambiguous.json()["error"]["message"]
            refused = await ask(gateway, "secret")
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
            unknown = await ask(gateway, "nobody-has-this")
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")

            # What is configured goes first, whatever an upstream calls its own.
            own = await ask(gateway, "simulator")
            assert own.json()["choices"][0]["message"]["content"].startswith("[simulator]")


async def test_without_a_list_of_what_is_allowed_an_upstream_is_not_asked(site: Site) -> None:
    async with upstreams(1) as (server,), site(far=remote(server.url)) as gateway:
        assert (await ask(gateway, "far")).status_code == 200
        assert (await ask(gateway, "theirs")).status_code == 404
        assert server.looks == 0


# ── Fallbacks ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_another_model_answers_what_the_first_could_not(site: Site) -> None:
    async with upstreams(1) as (server,):
        models = {
            "far": remote(f"http://127.0.0.1:{free_port()}/v1", fallbacks=["farther", "simulator"]),
            "farther": remote(server.url),
        }
        async with site(**models) as gateway:
            server.usual = Behaviour(status=500)
            await served(gateway, *models, "simulator")
            response = await ask(gateway, "far")
            assert response.status_code == 200, response.text
            assert response.json()["choices"][0]["message"]["content"].startswith("[simulator]")
            assert response.headers["x-roundhouse-model"] == "simulator"
            assert response.headers["x-roundhouse-fallback"] == "far -> farther -> simulator"

            job_id = response.headers["x-request-id"]
            looked_up = await gateway.http.get(f"/api/jobs/{job_id}")
            assert looked_up.headers["x-roundhouse-fallback"] == "far -> farther -> simulator"
            job = looked_up.json()
            assert (job["model"], job["attempts"], job["status"]) == ("simulator", 1, "completed")
            hops = [(hop["model"], hop["code"]) for hop in job["hops"]]
            assert hops == [("far", "upstream_unreachable"), ("farther", "upstream_error")]
            assert [error["code"] for error in job["errors"]] == ["upstream_unreachable", "upstream_error"]

            far = await seen(gateway, "far")
            assert far["fallbacks"] == ["farther", "simulator"]
            assert [(hop["to"], hop["code"], hop["count"]) for hop in far["hops"]] == [
                ("farther", "upstream_unreachable", 1)
            ]


async def test_a_stream_of_which_nothing_was_sent_goes_on_with_the_other_model(site: Site) -> None:
    async with upstreams(2) as (one, other):
        models = {"far": remote(one.url, fallbacks=["farther"]), "farther": remote(other.url)}
        async with site(**models) as gateway:
            one.usual = Behaviour(status=503)
            other.usual = Behaviour(words=("From ", "another"))
            await served(gateway, *models)
            *pieces, _, done = data_of((await ask(gateway, "far", stream=True)).text)
            assert done == "[DONE]"
            assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == "From another"


async def test_a_stream_that_has_begun_says_that_its_answer_is_made_anew(site: Site) -> None:
    told = asyncio.Event()
    async with upstreams(2) as (one, other):
        models = {"far": remote(one.url, fallbacks=["farther"]), "farther": remote(other.url)}
        async with site.online(**models) as gateway:
            one.usual = Behaviour(words=("Half ", "an answer"), fault="drop", gate=told)
            await served(gateway, *models)
            text, asked = "", {"model": "far", "messages": HELLO, "stream": True}
            async with gateway.http.stream("POST", "/v1/chat/completions", json=asked) as response:
                async for line in response.aiter_lines():
                    text += line + "\n"
                    if "Half " in line:
                        told.set()
            *_, last = data_of(text)
            assert last["error"]["code"] == "stream_restarted"
            job = await gateway.ended(response.headers["x-request-id"])
            assert (job["model"], job["result"]["message"]["content"]) == ("farther", "Good day")


async def test_a_model_whose_servers_are_all_left_alone_is_stood_in_for_at_once(site: Site) -> None:
    async with upstreams(1) as (server,):
        far = remote(server.url, max_retries=5, breaker={"failures": 1, "pause": 600}, fallbacks=["simulator"])
        async with site(far=far) as gateway:
            server.usual = Behaviour(status=500)
            for _ in range(2):
                response = await ask(gateway, "far")
                assert response.headers["x-roundhouse-fallback"] == "far -> simulator", response.text
            assert len(server.asked) == 1


async def test_what_is_wrong_with_a_request_is_no_other_models_business(site: Site) -> None:
    async with upstreams(1) as (server,), site(far=remote(server.url, fallbacks=["simulator"])) as gateway:
        server.usual = Behaviour(status=400, message="bad schema")
        response = await ask(gateway, "far")
        assert (response.status_code, response.headers["x-roundhouse-model"]) == (400, "far")
        assert "x-roundhouse-fallback" not in response.headers


async def test_a_model_that_is_full_is_stood_in_for_when_the_job_comes(site: Site) -> None:
    async with upstreams(1) as (server,):
        far = remote(server.url, max_concurrent=1, max_waiting=0, fallbacks=["simulator"])
        async with site(far=far) as gateway:
            server.usual = Behaviour(fault="hang")
            await served(gateway, "far", "simulator")
            first = await gateway.http.post("/api/chat", json={"model": "far", "message": "hello"})
            second = await gateway.http.post("/api/chat", json={"model": "far", "message": "hello"})
            assert (first.json()["model"], second.json()["model"]) == ("far", "simulator")
            assert second.headers["x-roundhouse-fallback"] == "far -> simulator"
            job = await gateway.ended(second.json()["request_id"])
            assert (job["status"], [hop["code"] for hop in job["hops"]]) == ("completed", ["queue_full"])
            assert (await seen(gateway, "far"))["hops"][0]["code"] == "queue_full"
            await gateway.http.delete(f"/api/jobs/{first.json()['request_id']}")

"""A gateway and a worker with a real vLLM between a client and its answer."""

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from config import Settings
from tests.conditions import eventually
from tests.deployments import Gateway, default_config, gateway_on, make_settings, worker_on
from tests.vllm.conftest import settings_of
from tests.vllm.test_engine import named, record_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = {"temperature": 0.0, "max_tokens": 1000, "model": "tiny"}


@dataclass
class Site:
    settings: Settings
    gateway: Gateway

    async def submit(self, wait: int | None = None, **options: Any) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": "hi"}], **LONG, **options}
        response = await self.gateway.http.post("/api/chat", params={} if wait is None else {"wait": wait}, json=body)
        assert response.status_code in (200, 202), response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def model(self) -> dict[str, Any]:
        models = (await self.gateway.http.get("/admin/models")).json()["models"]
        (model,) = [model for model in models if model["name"] == "tiny"]
        return dict(model)

    async def is_ready(self) -> bool:
        return bool((await self.model())["state"] == "ready")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    python: str, tiny: Path, mongod_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    config = default_config()
    config["queue"]["lease"] = 10
    entry = settings_of(python, tiny).model_dump(mode="json", exclude_unset=True)
    config["models"] = {"tiny": entry}
    config["defaults"] = {"chat": ["tiny"]}
    settings = make_settings(tmp_path_factory.mktemp("system"), mongod_uri, f"test_{uuid4().hex}", config)
    async with gateway_on(settings) as gateway, worker_on(settings):
        site = Site(settings, gateway)
        await eventually(site.is_ready, within=300)
        yield site
        await gateway.broker.database.client.drop_database(gateway.broker.database.handle.name)


async def test_a_chat_is_answered_by_the_model_with_its_token_counts(site: Site) -> None:
    job = await site.submit(wait=60, max_tokens=8)
    assert job["status"] == "completed", job
    assert job["result"]["usage"]["completion_tokens"] == 8
    assert job["result"]["finish_reason"] == "length"


async def test_what_vllm_refuses_fails_for_good_with_its_words(site: Site) -> None:
    job = await site.submit(wait=60, max_tokens=100_000)
    assert (job["status"], job["attempts"]) == ("failed", 1), job
    assert "max_tokens" in job["error"]["message"] or "context" in job["error"]["message"], job["error"]


async def test_jobs_that_run_when_the_engine_is_killed_complete_uncharged(site: Site) -> None:
    jobs = [await site.submit() for _ in range(3)]

    async def all_run() -> bool:
        bodies = [(await site.gateway.http.get(f"/api/jobs/{job['request_id']}")).json() for job in jobs]
        return all(body["status"] == "processing" for body in bodies)

    await eventually(all_run)
    os.kill(named(record_of(site.settings.home).members(), "EngineCore"), signal.SIGKILL)
    ended = [await site.gateway.ended(job["request_id"]) for job in jobs]
    assert [(job["status"], job["attempts"], job["errors"]) for job in ended] == [("completed", 1, [])] * 3
    crashes = (await site.gateway.http.get("/admin/crashes")).json()["crashes"]
    assert [crash["code"] for crash in crashes if crash["job"] is None] == ["engine_died"]
    await eventually(site.is_ready, within=60)

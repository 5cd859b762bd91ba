"""Answers that are used again, on gateways and workers in this process."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase

from broker.cleanup import Cleaner
from broker.job import NewJob
from broker.payloads import INLINE_LIMIT
from config import Settings
from gateway.tokens import Tokens
from tests.conditions import eventually
from tests.contract.test_v1 import data_of
from tests.deployments import JWT_SECRET, Gateway, gateway_on, make_settings, patient_config, worker_on
from worker.worker import Worker

ASKED = {"model": "simulator", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
ON = {"X-Cache": "on"}


@pytest.fixture
def settings(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Settings:
    config = patient_config()
    config["models"]["simulator"]["cache"] = {}
    config["models"]["plain"] = {"task": "chat", "engine": "simulator", "tokens_per_second": 1000, "tokens": 3}
    config["models"]["vectors"] = {"task": "embedding", "engine": "simulator", "cache": {"ttl": "1h"}}
    config["models"]["full"] = config["models"]["plain"] | {"max_concurrent": 1, "max_waiting": 0, "cache": {}}
    config["models"]["lively"] = config["models"]["plain"] | {"cache": {"any_temperature": True}}
    config["cache"] = {"max_entries": 5}
    return make_settings(tmp_path, mongod_uri, database.name, config)


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    async with gateway_on(settings) as gateway:
        yield gateway


async def ask(
    gateway: Gateway, path: str = "/v1/chat/completions", headers: dict[str, str] | None = None, **body: Any
) -> Response:
    async with asyncio.timeout(20):
        response = await gateway.http.post(path, json=ASKED | body, headers=headers)
    assert response.status_code == 200, response.text
    return response


async def outcomes(gateway: Gateway, headers: dict[str, str] | None = None, **body: Any) -> list[str | None]:
    """What two same requests are told of the cache."""
    return [(await ask(gateway, headers=headers, **body)).headers.get("x-cache") for _ in range(2)]


async def standing(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = (await gateway.http.get("/admin/cache")).json()
    return found


def bearer(gateway: Gateway, subject: str) -> dict[str, str]:
    auth = gateway.settings.auth
    tokens = Tokens(JWT_SECRET, issuer=auth.issuer, audience=auth.audience, access_ttl=60, refresh_ttl=60)
    return {"Authorization": f"Bearer {tokens.issue(subject, 'user')}"}


def cleaner(gateway: Gateway) -> Cleaner:
    broker = gateway.broker
    return Cleaner(broker.database, broker.files, broker.pages, 15 * 86400.0)


async def test_what_was_asked_before_is_answered_by_the_answer_of_then(gateway: Gateway, worker: Worker) -> None:
    first, second = await ask(gateway), await ask(gateway)
    assert [first.headers["x-cache"], second.headers["x-cache"]] == ["miss", "hit"]
    assert second.json()["choices"] == first.json()["choices"]
    assert second.json()["usage"] == first.json()["usage"]
    assert second.json()["id"] != first.json()["id"]
    job = await gateway.ended(second.headers["x-request-id"])
    assert (job["status"], job["attempts"], job["cached_from"]) == ("completed", 0, first.headers["x-request-id"])
    assert job["result"] == (await gateway.ended(first.headers["x-request-id"]))["result"]


async def test_an_answer_is_used_again_in_each_form(gateway: Gateway, worker: Worker) -> None:
    whole = (await ask(gateway)).json()
    stream = await ask(gateway, stream=True, stream_options={"include_usage": True})
    assert stream.headers["x-cache"] == "hit"
    chunks = [chunk for chunk in data_of(stream.text) if chunk != "[DONE]"]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]
    asked = {"message": "hello", "temperature": 0}
    waited = await gateway.http.post("/api/chat", json=asked, params={"wait": 10})
    assert (waited.status_code, waited.headers["x-cache"]) == (200, "hit")
    assert waited.json()["result"]["message"]["content"] == text
    accepted = await gateway.http.post("/api/chat", json=asked)
    assert (accepted.status_code, accepted.json()["status"]) == (202, "completed")
    events = await gateway.http.post("/api/chat/stream", json=asked)
    assert events.headers["x-cache"] == "hit"
    told = [json.loads(line[6:]) for line in events.text.splitlines() if line.startswith("data: ")]
    assert "".join(event.get("text", "") for event in told) == text


async def test_a_stream_is_used_again_as_it_was(gateway: Gateway, worker: Worker) -> None:
    first = await ask(gateway, stream=True)
    assert first.headers["x-cache"] == "miss"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in data_of(first.text)[:-1])
    again = await ask(gateway)
    assert again.headers["x-cache"] == "hit"
    assert again.json()["choices"][0]["message"]["content"] == text


async def test_completions_and_embeddings_are_used_again(gateway: Gateway, worker: Worker) -> None:
    for path, body in (
        ("/v1/completions", {"model": "simulator", "prompt": "Once", "temperature": 0}),
        ("/v1/embeddings", {"model": "vectors", "input": ["Once", "twice"]}),
    ):
        first, second = [await gateway.http.post(path, json=body) for _ in range(2)]
        assert first.status_code == 200, first.text
        assert [first.headers["x-cache"], second.headers["x-cache"]] == ["miss", "hit"]
        kept = ("choices", "data")
        assert [second.json().get(key) for key in kept] == [first.json().get(key) for key in kept]


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "user", "content": "Hello"}]},
        {"messages": [{"role": "system", "content": "hello"}]},
        {"max_tokens": 5},
        {"seed": 1},
        {"n": 2},
        {"stop": ["x"]},
    ],
)
async def test_another_question_is_asked(gateway: Gateway, worker: Worker, other: dict[str, Any]) -> None:
    await ask(gateway)
    assert (await ask(gateway, **other)).headers["x-cache"] == "miss"


@pytest.mark.parametrize(
    "same",
    [
        {"model": "sim"},
        {"user": "ada"},
        {"metadata": {"a": "b"}},
        {"stream": True},
        {"temperature": 0.0},
        {"messages": [{"content": "hello", "role": "user"}]},
    ],
)
async def test_what_is_no_part_of_the_question_does_not_count(
    gateway: Gateway, worker: Worker, same: dict[str, Any]
) -> None:
    await ask(gateway)
    assert (await ask(gateway, **same)).headers["x-cache"] == "hit"


async def test_only_what_is_certain_is_used_again_unless_it_is_asked_for(gateway: Gateway, worker: Worker) -> None:
    assert await outcomes(gateway, temperature=0.7) == [None, None]
    assert await outcomes(gateway, temperature=None) == [None, None]
    assert await outcomes(gateway, ON, temperature=0.7) == ["miss", "hit"]
    assert await outcomes(gateway, model="lively", temperature=1.3) == ["miss", "hit"]
    assert await outcomes(gateway, model="lively", temperature=None) == ["miss", "hit"]
    assert await outcomes(gateway, model="plain") == [None, None]
    assert await outcomes(gateway, ON, model="plain") == ["miss", "hit"]


async def test_the_operators_temperature_counts_where_the_client_names_none(gateway: Gateway, worker: Worker) -> None:
    changed = await gateway.http.patch("/admin/models/simulator", json={"temperature": 0})
    assert changed.status_code == 200, changed.text
    assert await outcomes(gateway, temperature=None) == ["miss", "hit"]


async def test_a_client_may_do_without(gateway: Gateway, worker: Worker) -> None:
    assert await outcomes(gateway, {"X-Cache": "off"}) == [None, None]
    first = await ask(gateway)
    anew = await ask(gateway, headers={"Cache-Control": "no-cache"})
    assert [first.headers["x-cache"], anew.headers["x-cache"]] == ["miss", "miss"]
    # It asks anew, and what it is told is what counts from then on.
    last = await gateway.ended((await ask(gateway)).headers["x-request-id"])
    assert last["cached_from"] == anew.headers["x-request-id"]
    wrong = await gateway.http.post("/v1/chat/completions", json=ASKED, headers={"X-Cache": "maybe"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_cache")


async def test_others_answers_are_not_used(gateway: Gateway, worker: Worker) -> None:
    await ask(gateway)
    assert await outcomes(gateway, bearer(gateway, "ada")) == ["miss", "hit"]


async def test_an_answer_is_used_for_its_time_by_the_databases_clock(gateway: Gateway, worker: Worker) -> None:
    await ask(gateway)
    [entry] = await gateway.broker.database.answers.find().to_list()
    now = (await gateway.broker.database.client.admin.command("hello"))["localTime"].replace(tzinfo=UTC)
    assert timedelta(minutes=55) < entry["expires_at"] - now <= timedelta(hours=1)
    over = {"$set": {"expires_at": now - timedelta(milliseconds=1)}}
    await gateway.broker.database.answers.update_one({}, over)
    assert (await ask(gateway)).headers["x-cache"] == "miss"
    assert (await ask(gateway)).headers["x-cache"] == "hit"


async def test_there_are_so_many_entries_at_most_and_the_unused_go_first(gateway: Gateway, worker: Worker) -> None:
    for number in range(4):
        await ask(gateway, seed=number)
    assert (await ask(gateway, seed=0)).headers["x-cache"] == "hit"
    for number in range(4, 8):
        await ask(gateway, seed=number)

    async def trimmed() -> bool:
        return await gateway.broker.database.answers.count_documents({}) == 5

    await eventually(trimmed)
    seeds = [number for number in range(8) if (await ask(gateway, seed=number)).headers["x-cache"] == "hit"]
    assert 0 in seeds
    assert not {1, 2, 3} & set(seeds)


async def test_a_wrong_number_of_entries_forgets_none(
    gateway: Gateway, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a crash may have left the database with."""
    looked = 0

    async def wrong(_: object) -> int:
        nonlocal looked
        looked += 1
        return 1000

    monkeypatch.setattr(AsyncCollection, "estimated_document_count", wrong)
    for seed in range(2):
        await ask(gateway, seed=seed)

        async def tidied(times: int = seed + 1) -> bool:
            return looked >= times

        await eventually(tidied)
    assert (await ask(gateway, seed=0)).headers["x-cache"] == "hit"


async def test_failed_answers_are_not_used(gateway: Gateway, worker: Worker) -> None:
    asked = ASKED | {"simulate": {"fault": "reject"}}
    for _ in range(2):
        response = await gateway.http.post("/v1/chat/completions", json=asked)
        assert response.status_code == 400
    assert (await standing(gateway))["entries"] == 0


async def test_an_entry_whose_job_was_not_completed_leads_nowhere(gateway: Gateway, worker: Worker) -> None:
    first = await ask(gateway)
    broker = gateway.broker
    await broker.database.jobs.update_one({}, {"$set": {"status": "failed"}})
    assert (await ask(gateway)).headers["x-cache"] == "miss"
    await broker.database.jobs.update_many({}, {"$unset": {"fingerprint": ""}})  # as where it went on to another model
    assert (await ask(gateway)).headers["x-cache"] == "miss"
    await broker.database.jobs.delete_many({})
    assert (await ask(gateway)).headers["x-cache"] == "miss"
    assert first.headers["x-cache"] == "miss"


async def test_a_hit_needs_no_place(gateway: Gateway, settings: Settings) -> None:
    async with worker_on(settings, "full"):
        assert (await ask(gateway, model="full")).headers["x-cache"] == "miss"
    await gateway.broker.queue.submit(NewJob(task="chat", model="full", subject="ada", payload={"messages": []}))
    assert (await ask(gateway, model="full")).headers["x-cache"] == "hit"
    refused = await gateway.http.post("/v1/chat/completions", json=ASKED | {"model": "full", "seed": 3})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")


async def test_a_long_answer_outlives_the_job_that_it_was_first_given_to(gateway: Gateway, worker: Worker) -> None:
    # Its result is in a file, which both jobs show.
    body = {"n": 16, "max_tokens": 20, "logit_bias": {}}
    await ask(gateway, **body)
    jobs = gateway.broker.database.jobs
    [origin] = await jobs.find().to_list()
    stored = await gateway.broker.files.put(origin["_id"], json.dumps(origin["result"]).encode(), "application/json")
    await jobs.update_one({}, {"$set": {"result_file": stored.id}, "$unset": {"result": ""}})
    hit = await ask(gateway, **body)
    assert hit.headers["x-cache"] == "hit"
    long_ago = datetime.now(UTC) - timedelta(days=100)
    await jobs.update_one({"_id": origin["_id"]}, {"$set": {"finished_at": long_ago}})
    assert await cleaner(gateway).clean() == 1
    assert await gateway.broker.files.sweep(timedelta(0)) == 0
    again = await gateway.ended(hit.headers["x-request-id"])
    assert len(again["result"]["choices"]) == 16
    await jobs.update_many({}, {"$set": {"finished_at": long_ago}})
    await cleaner(gateway).clean()
    assert await gateway.broker.database.handle["files.files"].count_documents({}) == 0


async def test_a_question_of_any_length_is_answered_again(gateway: Gateway, worker: Worker) -> None:
    long = [{"role": "user", "content": "hello " * (INLINE_LIMIT // 5)}]
    assert await outcomes(gateway, messages=long) == ["miss", "hit"]


async def test_the_same_key_is_the_same_job(gateway: Gateway, worker: Worker) -> None:
    await ask(gateway)
    first, second = [await ask(gateway, headers={"Idempotency-Key": "once"}) for _ in range(2)]
    assert first.headers["x-request-id"] == second.headers["x-request-id"]
    assert second.headers["Idempotent-Replayed"] == "true"


async def test_operators_see_what_is_saved_and_forget_it(gateway: Gateway, worker: Worker) -> None:
    assert await standing(gateway) == {
        "entries": 0,
        "max_entries": 5,
        "bytes": 0,
        "hits": 0,
        "misses": 0,
        "saved_tokens": 0,
        "models": [],
    }
    used = (await ask(gateway)).json()["usage"]["total_tokens"]
    for _ in range(3):
        await ask(gateway)
    await ask(gateway, model="lively")
    found = await standing(gateway)
    assert (found["entries"], found["hits"], found["misses"], found["saved_tokens"]) == (2, 3, 2, 3 * used)
    assert [model["model"] for model in found["models"]] == ["lively", "simulator"]
    assert found["bytes"] == sum(model["bytes"] for model in found["models"]) > 0
    assert (await gateway.http.delete("/admin/cache", params={"model": "sim"})).json() == {"deleted": 1}
    assert (await ask(gateway)).headers["x-cache"] == "miss"
    assert (await ask(gateway, model="lively")).headers["x-cache"] == "hit"
    assert (await gateway.http.delete("/admin/cache")).json() == {"deleted": 2}
    assert (await standing(gateway))["hits"] == 4
    assert (await gateway.http.delete("/admin/cache", params={"model": "none"})).status_code == 404


async def test_hits_are_counted_by_each_process_and_when_it_stops(settings: Settings, gateway: Gateway) -> None:
    async with worker_on(settings):
        await ask(gateway)
        async with gateway_on(settings) as other:
            for _ in range(3):
                assert (await ask(other)).headers["x-cache"] == "hit"
    assert (await standing(gateway))["hits"] == 3


async def test_a_hit_does_not_wait_for_its_count(gateway: Gateway, worker: Worker) -> None:
    # The database refuses each count.
    await gateway.broker.database.handle.command("create", "answer_counts", validator={"never": True})
    await ask(gateway)
    assert (await ask(gateway)).headers["x-cache"] == "hit"


async def test_only_operators_see_and_forget(gateway: Gateway) -> None:
    for method in ("GET", "DELETE"):
        response = await gateway.http.request(method, "/admin/cache", headers=bearer(gateway, "ada"))
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")


async def test_a_response_is_answered_by_the_chat_that_asked_the_same(gateway: Gateway, worker: Worker) -> None:
    asked = {"model": "simulator", "input": "hello", "temperature": 0}
    first, second = [await gateway.http.post("/v1/responses", json=asked) for _ in range(2)]
    assert first.status_code == 200, first.text
    assert [first.headers["x-cache"], second.headers["x-cache"]] == ["miss", "hit"]
    text = [response.json()["output"][0]["content"][0]["text"] for response in (first, second)]
    assert text[0] == text[1]

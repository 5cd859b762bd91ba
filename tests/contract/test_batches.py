"""Batches of OpenAI's API on gateways and workers in this process, with the simulator."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from bson import ObjectId

from broker import batches as batch_store
from broker.batch import NewBatch
from broker.broker import Broker
from broker.errors import FileTooSlow
from broker.files import FileWriter
from broker.job import BatchLine, NewJob
from config import Settings
from gateway.v1.batches import work as batch_work
from gateway.v1.batches.feeder import READERS
from tests.conditions import eventually
from tests.contract.test_files import refusal
from tests.contract.test_jobs import add_user
from tests.deployments import Gateway, gateway_on, make_settings, patient_config, worker_on
from worker.worker import Worker

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def line(number: int, *, custom_id: str | None = None, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}]
    return {
        "custom_id": custom_id or f"request-{number}",
        "method": "POST",
        "url": CHAT,
        "body": {"model": "simulator", "messages": messages, **body},
    }


def jsonl(lines: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def upload(gateway: Gateway, content: bytes) -> str:
    form = {"purpose": "batch"}
    response = await gateway.http.post("/v1/files", data=form, files={"file": ("requests.jsonl", content)})
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


async def submit(gateway: Gateway, content: bytes, endpoint: str = CHAT, **headers: str) -> str:
    asked = {"input_file_id": await upload(gateway, content), "endpoint": endpoint, "completion_window": "24h"}
    response = await gateway.http.post("/v1/batches", json=asked, headers=headers)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


async def batch(gateway: Gateway, batch_id: str) -> dict[str, Any]:
    response = await gateway.http.get(f"/v1/batches/{batch_id}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def ended(gateway: Gateway, batch_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def has_ended() -> bool:
        found.update(await batch(gateway, batch_id))
        return found["status"] in ENDED

    await eventually(has_ended, within=60)
    return found


async def lines_of(gateway: Gateway, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    response = await gateway.http.get(f"/v1/files/{file_id}/content")
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


async def test_every_line_is_answered_in_order(gateway: Gateway, worker: Worker) -> None:
    batch_id = await submit(gateway, jsonl([line(number) for number in range(30)]))
    found = await ended(gateway, batch_id)
    assert found["status"] == "completed"
    assert found["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
    assert found["error_file_id"] is None
    answers = await lines_of(gateway, found["output_file_id"])
    assert [answer["custom_id"] for answer in answers] == [f"request-{number}" for number in range(30)]
    for answer in answers:
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        body = answer["response"]["body"]
        assert body["id"] == f"chatcmpl-{answer['response']['request_id']}"
        assert body["choices"][0]["message"]["content"].startswith("[simulator] ")


def errors_of(found: dict[str, Any]) -> list[tuple[int | None, str]]:
    return [(fault["line"], fault["code"]) for fault in found["errors"]["data"]]


async def settled(gateway: Gateway, batch_id: str, counts: dict[str, int]) -> None:
    async def so_far() -> bool:
        found = await batch(gateway, batch_id)
        return bool(found["request_counts"] == counts)

    await eventually(so_far, within=30)


async def test_failed_lines_have_the_answer_that_a_request_of_their_own_would_have(
    gateway: Gateway, worker: Worker
) -> None:
    refused = line(1, simulate={"fault": "reject"})
    lines = [line(0), refused, line(2), line(3, simulate={"fault": "error", "attempts": 1})]
    found = await ended(gateway, await submit(gateway, jsonl(lines)))
    assert found["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    answers = await lines_of(gateway, found["output_file_id"])
    assert [answer["custom_id"] for answer in answers] == ["request-0", "request-2", "request-3"]
    [failed] = await lines_of(gateway, found["error_file_id"])
    alone = await gateway.http.post(CHAT, json=refused["body"])
    assert failed["custom_id"] == "request-1"
    assert failed["error"] is None
    assert failed["response"]["status_code"] == alone.status_code == 400
    assert failed["response"]["body"] == alone.json()


async def test_completions_and_embeddings_are_batched_alike(settings: Settings) -> None:
    config = patient_config()
    config["models"]["vectors"] = {"task": "embedding", "engine": "simulator"}
    settings = make_settings(settings.config_path.parent, str(settings.mongodb.uri), settings.mongodb.database, config)
    asked = {
        "/v1/completions": {"model": "sim", "prompt": "once upon"},
        "/v1/embeddings": {"model": "vectors", "input": ["one", "two"]},
    }
    async with gateway_on(settings) as gateway, worker_on(settings):
        for endpoint, body in asked.items():
            one = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
            found = await ended(gateway, await submit(gateway, jsonl([one]), endpoint))
            [answer] = await lines_of(gateway, found["output_file_id"])
            alone = (await gateway.http.post(endpoint, json=body)).json()
            told = answer["response"]["body"]
            assert told.keys() == alone.keys()
            for key in ("object", "model", "data", "usage"):
                assert told.get(key) == alone.get(key)


async def test_a_file_with_faults_fails_with_all_of_them(gateway: Gateway) -> None:
    content = jsonl(
        [
            line(0),
            line(1, custom_id="request-0"),
            line(2) | {"method": "GET"},
            line(3) | {"url": "/v1/embeddings"},
            line(4, stream=True),
            line(5, temperature=7),
            line(6, model="nobody"),
            line(7, model="tesseract"),
        ]
    )
    found = await ended(gateway, await submit(gateway, b"\n" + content + b"{broken\n"))
    assert found["status"] == "failed"
    assert found["request_counts"]["total"] == 0
    assert (found["output_file_id"], found["error_file_id"]) == (None, None)
    assert errors_of(found) == [
        (3, "duplicate_custom_id"),
        (4, "invalid_line"),
        (5, "mismatched_url"),
        (6, "stream_not_allowed"),
        (7, "invalid_request"),
        (8, "model_not_found"),
        (9, "wrong_task"),
        (10, "invalid_json_line"),
    ]
    assert found["errors"]["data"][4]["param"] == "body.temperature"
    assert (await gateway.http.get("/api/jobs")).json()["jobs"] == []


async def test_a_file_for_two_models_fails(settings: Settings) -> None:
    config = patient_config()
    config["models"]["other"] = {"task": "chat", "engine": "simulator"}
    settings = make_settings(settings.config_path.parent, str(settings.mongodb.uri), settings.mongodb.database, config)
    async with gateway_on(settings) as gateway:
        content = jsonl([line(0), line(1, model="sim"), line(2, model="other")])
        found = await ended(gateway, await submit(gateway, content))
    assert errors_of(found) == [(3, "mismatched_model")]


async def test_a_file_without_lines_fails(gateway: Gateway) -> None:
    found = await ended(gateway, await submit(gateway, b"\n \n"))
    assert (found["status"], errors_of(found)) == ("failed", [(None, "empty_file")])


async def test_a_file_with_too_many_lines_fails(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch_work.MOST_LINES == 50_000
    monkeypatch.setattr(batch_work, "MOST_LINES", 3)
    found = await ended(gateway, await submit(gateway, jsonl([line(number) for number in range(4)])))
    assert errors_of(found) == [(None, "too_many_lines")]


async def test_a_file_with_too_many_blank_lines_fails(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_work, "MOST_LINES", 3)
    passes = await ended(gateway, await submit(gateway, b"\n" * 5 + b"x\n"))
    assert errors_of(passes) == [(6, "invalid_json_line")]
    found = await ended(gateway, await submit(gateway, b"\n" * 6 + b"x\n"))
    assert errors_of(found) == [(None, "too_many_lines")]


async def test_what_a_fault_quotes_is_cut(gateway: Gateway) -> None:
    """All of them go into one document, which must not become too large for the database."""
    content = jsonl([line(0) | {"url": "u" * 5_000_000}, *(line(n) | {"k" * 5_000_000: 1} for n in (1, 2, 3))])
    found = await ended(gateway, await submit(gateway, content))
    assert errors_of(found) == [(1, "mismatched_url"), *((number, "invalid_line") for number in (2, 3, 4))]
    assert max(len(fault["message"] + (fault["param"] or "")) for fault in found["errors"]["data"]) <= 2000


async def test_of_many_faults_the_first_hundred_are_told(gateway: Gateway) -> None:
    found = await ended(gateway, await submit(gateway, b"x\n" * 300))
    assert errors_of(found) == [(number, "invalid_json_line") for number in range(1, 101)]


async def test_a_batch_takes_at_most_half_of_the_places(gateway: Gateway) -> None:
    """With a bound of 20 and nobody who works."""
    batch_id = await submit(gateway, jsonl([line(number) for number in range(50)]))
    other = await submit(gateway, jsonl([line(number) for number in range(50)]))
    inside = gateway.broker.batches.inside

    async def full() -> bool:
        return len(await inside("simulator")) == 10

    await eventually(full)
    held = Counter(str(batch) for batch, _ in await inside("simulator"))
    assert held.total() == 10
    if len(held) == 2:
        assert set(held.values()) == {5}
    jobs = (await gateway.http.get("/api/jobs")).json()["jobs"]
    assert {job["priority"] for job in jobs} == {"low"}
    for _ in range(10):
        response = await gateway.http.post("/api/chat", json={"message": "in between"})
        assert response.status_code == 202
    assert (await gateway.http.post("/api/chat", json={"message": "one too many"})).status_code == 503
    for found in (await batch(gateway, batch_id), await batch(gateway, other)):
        assert found["request_counts"] == {"total": 50, "completed": 0, "failed": 0}


async def test_what_the_headers_say_holds_for_each_line(gateway: Gateway) -> None:
    headers = {"X-Priority": "normal", "X-Client-ID": "nightly", "X-Timeout": "7"}
    asked = jsonl([line(0)])
    await submit(gateway, asked, CHAT, **headers)
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        found[:] = await gateway.broker.database.handle["jobs"].find({}).to_list()
        return bool(found)

    await eventually(there)
    [job] = found
    assert (job["priority"], job["client"], job["timeout"]) == ("normal", "nightly", 7.0)
    too_long = await ended(gateway, await submit(gateway, asked, CHAT, **{"X-Timeout": "9999"}))
    assert errors_of(too_long) == [(1, "invalid_timeout")]


async def test_a_cancelled_batch_gives_what_was_done(gateway: Gateway, worker: Worker) -> None:
    lines = [line(0), *(line(number, simulate={"fault": "hang", "attempts": 9}) for number in range(1, 40)), line(40)]
    batch_id = await submit(gateway, jsonl(lines))
    await settled(gateway, batch_id, {"total": 41, "completed": 1, "failed": 0})
    response = await gateway.http.post(f"/v1/batches/{batch_id}/cancel")
    assert response.status_code == 200
    assert response.json()["status"] in ("cancelling", "cancelled")
    found = await ended(gateway, batch_id)
    assert found["status"] == "cancelled"
    assert found["cancelling_at"] <= found["cancelled_at"]
    assert found["request_counts"] == {"total": 41, "completed": 1, "failed": 40}
    assert [answer["custom_id"] for answer in await lines_of(gateway, found["output_file_id"])] == ["request-0"]
    failed = await lines_of(gateway, found["error_file_id"])
    assert [answer["custom_id"] for answer in failed] == [f"request-{number}" for number in range(1, 41)]
    assert {(answer["response"], answer["error"]["code"]) for answer in failed} == {(None, "batch_cancelled")}
    jobs = (await gateway.http.get("/api/jobs", params={"limit": 200})).json()["jobs"]
    assert Counter(job["status"] for job in jobs)["cancelled"] == len(jobs) - 1
    assert (await gateway.http.post(f"/v1/batches/{batch_id}/cancel")).status_code == 200


async def test_a_batch_that_has_ended_cannot_be_cancelled(gateway: Gateway, worker: Worker) -> None:
    batch_id = await submit(gateway, jsonl([line(0)]))
    await ended(gateway, batch_id)
    response = await gateway.http.post(f"/v1/batches/{batch_id}/cancel")
    assert refusal(response) == (409, "batch_finished")


async def test_a_batch_that_is_not_done_in_its_time_expires_with_what_it_has(gateway: Gateway, worker: Worker) -> None:
    lines = [line(0), *(line(number, simulate={"fault": "hang", "attempts": 9}) for number in range(1, 30))]
    batch_id = await submit(gateway, jsonl(lines))
    await settled(gateway, batch_id, {"total": 30, "completed": 1, "failed": 0})
    await gateway.broker.database.batches.update_one({}, [{"$set": {"expires_at": "$$NOW"}}])
    found = await ended(gateway, batch_id)
    assert found["status"] == "expired"
    assert found["expired_at"] is not None
    assert found["request_counts"] == {"total": 30, "completed": 1, "failed": 29}
    assert len(await lines_of(gateway, found["output_file_id"])) == 1
    failed = await lines_of(gateway, found["error_file_id"])
    assert [answer["error"]["code"] for answer in failed] == ["batch_expired"] * 29


async def test_a_line_whose_job_is_cancelled_has_failed(gateway: Gateway) -> None:
    batch_id = await submit(gateway, jsonl([line(0)]))
    jobs: list[dict[str, Any]] = []

    async def there() -> bool:
        jobs[:] = (await gateway.http.get("/api/jobs")).json()["jobs"]
        return bool(jobs)

    await eventually(there)
    assert (await gateway.http.delete(f"/api/jobs/{jobs[0]['request_id']}")).status_code == 200
    found = await ended(gateway, batch_id)
    assert found["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
    [failed] = await lines_of(gateway, found["error_file_id"])
    assert failed["response"]["status_code"] == 409
    assert failed["response"]["body"]["error"]["code"] == "cancelled"


async def test_files_of_a_batch_stay_while_it_needs_them(gateway: Gateway, worker: Worker) -> None:
    content = jsonl([line(0, simulate={"fault": "hang", "attempts": 9})])
    batch_id = await submit(gateway, content)
    await settled(gateway, batch_id, {"total": 1, "completed": 0, "failed": 0})
    file_id = (await batch(gateway, batch_id))["input_file_id"]
    assert refusal(await gateway.http.delete(f"/v1/files/{file_id}")) == (409, "file_in_use")
    await gateway.http.post(f"/v1/batches/{batch_id}/cancel")
    found = await ended(gateway, batch_id)
    assert (await gateway.http.delete(f"/v1/files/{file_id}")).status_code == 200
    answers = found["error_file_id"]
    assert (await gateway.http.get(f"/v1/files/{answers}")).json()["purpose"] == "batch_output"
    assert (await gateway.http.delete(f"/v1/files/{answers}")).status_code == 200


async def test_a_batch_whose_model_is_gone_ends_with_errors(settings: Settings) -> None:
    async with gateway_on(settings) as gateway:
        batch_id = await submit(gateway, jsonl([line(number) for number in range(25)]))
        await settled(gateway, batch_id, {"total": 25, "completed": 0, "failed": 0})
        file_id = (await batch(gateway, batch_id))["input_file_id"]
        assert file_id
    config = patient_config()
    config["models"]["another"] = config["models"].pop("simulator") | {"aliases": []}
    config["defaults"]["chat"] = ["another"]
    changed = make_settings(settings.config_path.parent, str(settings.mongodb.uri), settings.mongodb.database, config)
    async with gateway_on(changed) as gateway:
        # What waits in the queue waits for its model to come back.
        await gateway.broker.queue.cancel_batch(ObjectId(batch_id.removeprefix("batch_")), "cancelled", "By hand.")
        found = await ended(gateway, batch_id)
        assert found["request_counts"] == {"total": 25, "completed": 0, "failed": 25}
        failed = await lines_of(gateway, found["error_file_id"])
        assert [answer["response"]["status_code"] for answer in failed].count(404) >= 15
        assert failed[-1]["response"]["body"]["error"]["code"] == "model_not_found"


async def test_jobs_that_were_let_in_after_the_end_of_their_batch_are_cancelled(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no other batch about."""
    monkeypatch.setattr("gateway.v1.batches.feeder.STRAYS", 0.1)
    async with gateway_on(settings) as gateway:
        async with worker_on(settings):
            batch_id = await submit(gateway, jsonl([line(0)]))
            await ended(gateway, batch_id)
        of = ObjectId(batch_id.removeprefix("batch_"))
        stray = await gateway.broker.queue.submit(NewJob("chat", "simulator", "admin", {}, batch=BatchLine(of, 7)))
        job = await gateway.ended(str(stray.id))
        assert (job["status"], job["error"]["code"]) == ("cancelled", "batch_cancelled")


async def test_each_line_is_asked_which_server_it_wants(settings: Settings) -> None:
    config = patient_config()
    config["models"]["many"] = {
        "task": "chat",
        "engine": "openai",
        "backends": [{"name": "one", "base_url": "http://127.0.0.1:9/v1"}],
    }
    settings = make_settings(settings.config_path.parent, str(settings.mongodb.uri), settings.mongodb.database, config)
    keys = [{}, {"modelKey": "one"}, {"modelKey": "two"}, {}, {"modelKey": "three"}]
    async with gateway_on(settings) as gateway:
        lines = [line(number, model="many", **key) for number, key in enumerate(keys)]
        found = await ended(gateway, await submit(gateway, jsonl(lines)))
    assert errors_of(found) == [(3, "unknown_backend"), (5, "unknown_backend")]
    assert found["errors"]["data"][0]["param"] == "body.modelKey"


async def test_lines_for_a_discovered_model_wait_for_the_worker_that_has_told_of_it(settings: Settings) -> None:
    config = patient_config()
    config["models"]["open"] = {
        "task": "chat",
        "engine": "openai",
        "base_url": "http://127.0.0.1:9/v1",
        "allowed_models": ["org/*"],
        "max_concurrent": 2,
        "max_waiting": 2,
    }
    settings = make_settings(settings.config_path.parent, str(settings.mongodb.uri), settings.mongodb.database, config)
    async with gateway_on(settings) as gateway:
        content = jsonl([line(number, model="org/m") for number in range(8)])
        stored = await gateway.broker.uploads.get(await upload(gateway, content), None)
    # Its file was looked at while a worker was there, which is away now.
    alone = await Broker.open(settings)
    made = await alone.batches.create(NewBatch("admin", "admin", CHAT, stored.id, stored.content, 3600.0))
    assert await alone.batches.begin(made, "open", 8)
    await alone.close()
    async with gateway_on(settings) as gateway:
        jobs: list[dict[str, Any]] = []

        async def fed() -> bool:
            jobs[:] = await gateway.broker.database.handle["jobs"].find({}).to_list()
            return len(jobs) >= 2

        await eventually(fed)
    assert [(job["status"], job["model"], job["payload"]["upstream_model"]) for job in jobs] == [
        ("queued", "open", "org/m")
    ] * 2


async def test_the_same_request_with_the_same_key_is_the_same_batch(gateway: Gateway) -> None:
    asked = {"input_file_id": await upload(gateway, b"x\n"), "endpoint": CHAT, "completion_window": "24h"}
    key = {"Idempotency-Key": "night"}
    first = await gateway.http.post("/v1/batches", json=asked, headers=key)
    assert first.status_code == 200, first.text
    await ended(gateway, first.json()["id"])
    assert (await gateway.http.delete(f"/v1/files/{asked['input_file_id']}")).status_code == 200
    again = await gateway.http.post("/v1/batches", json=asked, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["status"] == "failed"
    assert "idempotent-replayed" not in first.headers
    other = await gateway.http.post("/v1/batches", json=asked | {"metadata": {"a": "b"}}, headers=key)
    assert refusal(other) == (422, "idempotency_conflict")
    assert len((await gateway.http.get("/v1/batches")).json()["data"]) == 1


async def test_who_has_too_many_open_batches_is_told_to_come_back(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batch_store.MOST_OPEN == 100
    monkeypatch.setattr(batch_store, "MOST_OPEN", 1)
    asked = {"input_file_id": await upload(gateway, jsonl([line(0)])), "endpoint": CHAT, "completion_window": "24h"}
    key = {"Idempotency-Key": "night"}
    first = await gateway.http.post("/v1/batches", json=asked, headers=key)
    assert first.status_code == 200, first.text
    refused = await gateway.http.post("/v1/batches", json=asked)
    assert refusal(refused) == (429, "too_many_batches")
    assert int(refused.headers["retry-after"]) > 0
    again = await gateway.http.post("/v1/batches", json=asked, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert (await gateway.http.post(f"/v1/batches/{first.json()['id']}/cancel")).status_code == 200
    await ended(gateway, first.json()["id"])
    assert (await gateway.http.post("/v1/batches", json=asked)).status_code == 200


async def test_what_a_batch_does_not_do_is_refused(gateway: Gateway) -> None:
    asked = {"input_file_id": await upload(gateway, b"{}"), "endpoint": CHAT, "completion_window": "24h"}
    told = {"X-Webhook-URL": "https://example.com/"}
    assert refusal(await gateway.http.post("/v1/batches", json=asked, headers=told)) == (400, "invalid_webhook")


async def test_what_is_said_of_earlier_answers_holds_for_each_line(gateway: Gateway, worker: Worker) -> None:
    content = jsonl([line(0)])
    for batch_id in [await submit(gateway, content, CHAT, **{"X-Cache": "on"}) for _ in range(2)]:
        found = await ended(gateway, batch_id)
        assert found["request_counts"]["completed"] == 1
    jobs = await gateway.broker.database.handle["jobs"].find({}).to_list()
    assert [bool(job.get("fingerprint")) for job in jobs] == [True, True]


async def test_answers_that_were_swept_while_they_were_put_together_are_put_together_again(
    gateway: Gateway, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, slow = FileWriter.finish, 2

    async def swept(writer: FileWriter) -> None:
        nonlocal slow
        if writer.size and "output" in str(writer._about["filename"]) and slow:
            slow -= 1
            raise FileTooSlow("Too little of the file came for longer than an hour; send it again.")
        await finish(writer)

    monkeypatch.setattr(FileWriter, "finish", swept)
    found = await ended(gateway, await submit(gateway, jsonl([line(0)])))
    assert slow == 0
    assert found["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert len(await lines_of(gateway, found["output_file_id"])) == 1


async def test_batches_come_to_their_end_however_many_files_are_being_checked(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await submit(gateway, jsonl([line(0)]))
    await settled(gateway, first, {"total": 1, "completed": 0, "failed": 0})
    going_on = asyncio.Event()
    checked: list[str] = []

    async def run(check: batch_work.Check) -> None:
        checked.append(check.batch.public_id)
        await going_on.wait()
        await check_run(check)

    check_run = batch_work.Check.run
    monkeypatch.setattr(batch_work.Check, "run", run)
    slow = [await submit(gateway, b"x\n") for _ in range(READERS)]

    async def are_checked() -> bool:
        return sorted(checked) == sorted(slow)

    await eventually(are_checked)
    await gateway.http.post(f"/v1/batches/{first}/cancel")
    assert (await ended(gateway, first))["status"] == "cancelled"
    going_on.set()
    assert [(await ended(gateway, batch_id))["status"] for batch_id in slow] == ["failed"] * READERS


async def test_a_timeout_that_is_lowered_holds_for_the_lines_that_are_still_to_come(
    settings: Settings, gateway: Gateway
) -> None:
    """And refuses none of them."""
    batch_id = await submit(gateway, jsonl([line(number) for number in range(25)]), CHAT, **{"X-Timeout": "50"})

    async def full() -> bool:
        return len(await gateway.broker.batches.inside("simulator")) == 10

    await eventually(full)
    lowered = await gateway.http.patch("/admin/models/simulator", json={"timeout": 5.0})
    assert lowered.status_code == 200, lowered.text
    async with worker_on(settings):
        found = await ended(gateway, batch_id)
    assert found["request_counts"] == {"total": 25, "completed": 25, "failed": 0}
    jobs = await gateway.broker.database.handle["jobs"].find({}).to_list()
    assert Counter(job["timeout"] for job in jobs) == {50.0: 10, 5.0: 15}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"endpoint": "/v1/moderations"}, (400, "invalid_request")),
        ({"completion_window": "1h"}, (400, "invalid_request")),
        ({"metadata": {"key": "x" * 513}}, (400, "invalid_request")),
        ({"metadata": {"k" * 65: "x"}}, (400, "invalid_request")),
        ({"colour": "red"}, (400, "invalid_request")),
        ({"input_file_id": "file-000000000000000000000000"}, (404, "file_not_found")),
        ({"input_file_id": "x"}, (404, "file_not_found")),
    ],
)
async def test_a_batch_is_asked_for_rightly_or_not_made(
    gateway: Gateway, changes: dict[str, Any], expected: tuple[int, str]
) -> None:
    asked = {"input_file_id": await upload(gateway, b"{}"), "endpoint": CHAT, "completion_window": "24h"}
    assert refusal(await gateway.http.post("/v1/batches", json=asked | changes)) == expected


async def test_a_file_with_another_purpose_makes_no_batch(gateway: Gateway) -> None:
    form: dict[str, Any] = {"data": {"purpose": "user_data"}, "files": {"file": ("a", b"{}")}}
    file = (await gateway.http.post("/v1/files", **form)).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    response = await gateway.http.post("/v1/batches", json=asked)
    assert refusal(response) == (400, "invalid_request")
    assert response.json()["error"]["param"] == "input_file_id"


async def test_batches_are_listed_newest_first_page_by_page(gateway: Gateway) -> None:
    ids = [await submit(gateway, b"x\n") for _ in range(3)]

    async def listed(**query: Any) -> tuple[list[str], bool]:
        body = (await gateway.http.get("/v1/batches", params=query)).json()
        return [batch["id"] for batch in body["data"]], body["has_more"]

    assert await listed() == (ids[::-1], False)
    assert await listed(limit=2) == ([ids[2], ids[1]], True)
    assert await listed(limit=2, after=ids[1]) == ([ids[0]], False)
    assert refusal(await gateway.http.get("/v1/batches", params={"after": "x"})) == (400, "invalid_cursor")
    assert refusal(await gateway.http.get("/v1/batches", params={"limit": 101})) == (400, "invalid_query")


async def test_only_its_owner_and_admins_know_of_a_batch(gateway: Gateway) -> None:
    bob, eve = await add_user(gateway, "bob"), await add_user(gateway, "eve")
    form: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("a", b"x\n")}}
    file = (await gateway.http.post("/v1/files", headers=bob, **form)).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    assert refusal(await gateway.http.post("/v1/batches", json=asked, headers=eve)) == (404, "file_not_found")
    batch_id = (await gateway.http.post("/v1/batches", json=asked, headers=bob)).json()["id"]
    assert refusal(await gateway.http.get(f"/v1/batches/{batch_id}", headers=eve)) == (404, "batch_not_found")
    assert refusal(await gateway.http.post(f"/v1/batches/{batch_id}/cancel", headers=eve)) == (404, "batch_not_found")
    assert (await gateway.http.get("/v1/batches", headers=eve)).json()["data"] == []
    for headers in (bob, {}):
        assert (await gateway.http.get(f"/v1/batches/{batch_id}", headers=headers)).status_code == 200


async def test_openais_own_client_runs_a_batch(gateway: Gateway, worker: Worker) -> None:
    token = gateway.http.headers["Authorization"].removeprefix("Bearer ")
    client = openai.AsyncOpenAI(base_url="http://roundhouse/v1", api_key=token, http_client=gateway.http)
    file = await client.files.create(file=("in.jsonl", jsonl([line(0), line(1)])), purpose="batch")
    assert await client.files.retrieve(file.id) == file
    made = await client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"night": "1"}
    )
    assert (made.object, made.metadata) == ("batch", {"night": "1"})
    await ended(gateway, made.id)
    found = await client.batches.retrieve(made.id)
    assert found.status == "completed"
    assert found.output_file_id is not None
    answers = (await client.files.content(found.output_file_id)).text.splitlines()
    completion = openai.types.chat.ChatCompletion.model_validate(json.loads(answers[1])["response"]["body"])
    assert (completion.choices[0].message.content or "").startswith("[simulator]")
    assert [batch.id async for batch in client.batches.list(limit=1)] == [made.id]
    assert {one.id async for one in client.files.list(limit=1)} == {file.id, found.output_file_id}
    with pytest.raises(openai.ConflictError):
        await client.batches.cancel(made.id)
    assert (await client.files.delete(file.id)).deleted

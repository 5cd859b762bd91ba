"""Webhooks and images by address, through the gateway's routes, with a receiver of our own."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.asynchronous.database import AsyncDatabase

from config import Settings
from gateway.outbound.guard import Guard
from tests.conditions import eventually
from tests.deployments import Gateway, gateway_on, make_settings, patient_config
from tests.receivers import Message, Receiver, Reply, receiver
from worker.worker import Worker

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
DATA_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
OUTBOUND = {"webhooks": True, "images": True, "allow_private_hosts": ["127.0.0.1"]}
HOOK = "X-Webhook-URL"


@pytest.fixture
def settings(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Settings:
    return make_settings(tmp_path, mongod_uri, database.name, patient_config() | {"outbound": OUTBOUND})


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


async def told(hook: Receiver, number: int = 1) -> Message:
    async def enough() -> bool:
        return len(hook.messages) >= number

    await eventually(enough)
    assert len(hook.messages) == number
    return hook.messages[-1]


async def secret(gateway: Gateway) -> str:
    response = await gateway.http.get("/api/webhook-secret")
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return str(response.json()["secret"])


def refused(response: httpx.Response, status: int, code: str) -> None:
    body = response.json()
    assert (response.status_code, body.get("code") or body["error"]["code"]) == (status, code), response.text


async def test_who_asks_for_it_is_told_of_the_end_of_a_job(gateway: Gateway, worker: Worker, hook: Receiver) -> None:
    body = {"message": "hello", "webhook_url": hook.url()}
    job = (await gateway.http.post("/api/chat", json=body, headers={"X-Client-ID": "me"})).json()
    message = await told(hook)
    said = message.verified(await secret(gateway))
    stored = await gateway.ended(job["request_id"])
    assert said == {
        "type": "job.completed",
        "timestamp": stored["finished_at"],
        "data": {
            "request_id": job["request_id"],
            "status": "completed",
            "task": "chat",
            "model": "simulator",
            "client": "me",
            "created_at": stored["created_at"],
            "finished_at": stored["finished_at"],
            "attempts": 1,
            "error": None,
            "links": {"self": f"/api/jobs/{job['request_id']}"},
        },
    }
    assert message.headers["content-type"] == "application/json"
    assert message.headers["user-agent"].startswith("Roundhouse/")
    assert "authorization" not in message.headers


async def test_the_deliveries_of_a_job_can_be_looked_at(gateway: Gateway, worker: Worker, hook: Receiver) -> None:
    async def unwilling(_: Message) -> Reply:
        return 500, {}, b"no room"

    hook.reply = unwilling
    job = (await gateway.http.post("/api/chat", json={"message": "x", "webhook_url": hook.url()})).json()["request_id"]

    deliveries: list[dict[str, Any]] = []

    async def tried() -> bool:
        deliveries[:] = (await gateway.http.get(f"/api/jobs/{job}/deliveries")).json()["deliveries"]
        return bool(deliveries) and bool(deliveries[0]["attempts"])

    await eventually(tried)
    # As it was then: by now there may have been a second attempt.
    [found] = deliveries
    [attempt] = found.pop("attempts")
    assert found.pop("created_at") < found.pop("next_attempt_at")
    assert found == {
        "id": f"msg_{job}_completed",
        "event": "job.completed",
        "url": hook.url(),
        "status": "pending",
    }
    assert attempt.pop("seconds") < 5
    assert attempt.pop("at")
    assert attempt == {"status": 500, "error": "The receiver answered 500.", "response": "no room"}


async def test_deliveries_are_for_the_jobs_owner_alone(gateway: Gateway, hook: Receiver) -> None:
    from gateway.users import Users

    job = (await gateway.http.post("/api/chat", json={"message": "x", "webhook_url": hook.url()})).json()["request_id"]
    mine = await secret(gateway)
    await Users(gateway.broker.database.handle).create("bob", "bobs-long-password", "user")
    await gateway.sign_in("bob", "bobs-long-password")
    refused(await gateway.http.get(f"/api/jobs/{job}/deliveries"), 404, "job_not_found")
    assert await secret(gateway) != mine
    refused(await gateway.http.get("/api/jobs/zzz/deliveries"), 404, "job_not_found")


async def test_each_way_in_takes_a_webhook(gateway: Gateway, worker: Worker, hook: Receiver) -> None:
    """Bodies, forms, queries and headers, of which the headers go before."""
    chat = {"model": "simulator", "messages": [{"role": "user", "content": "hi"}]}
    ocr = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA_URL}}]}]}
    header, other = {HOOK: hook.url("/header")}, {"webhook_url": hook.url("/body")}
    sent = [
        await gateway.http.post("/api/chat", json={"message": "x"}, headers=header),
        await gateway.http.post("/api/chat", json={"message": "x"} | other, headers=header),
        await gateway.http.post("/api/chat/stream", json={"message": "x"}, headers=header),
        await gateway.http.post("/v1/chat/completions", json=chat, headers=header),
        await gateway.http.post("/v1/chat/completions", json={**chat, "stream": True}, headers=header),
        await gateway.http.post("/v1/completions", json={"model": "simulator", "prompt": "x"}, headers=header),
        await gateway.http.post("/v1/inference/complete", json={"prompt": "x"}, headers=header),
        await gateway.http.post("/api/ocr", content=PNG, headers=header),
        await gateway.http.post("/api/chat", json={"message": "x"} | other),
        await gateway.http.post("/api/chat/stream", json={"message": "x"} | other),
        await gateway.http.post("/api/ocr", json=ocr | other),
        await gateway.http.post("/api/ocr", files={"file": PNG}, data=other | {"webhook_events": "job.completed"}),
        await gateway.http.post("/api/ocr", content=PNG, params=other),
    ]  # fmt: skip
    for response in sent:
        assert response.status_code in (200, 202), response.text
    await told(hook, len(sent))
    assert sorted(message.path for message in hook.messages) == ["/body"] * 5 + ["/header"] * 8
    assert len({message.id for message in hook.messages}) == len(sent)


async def test_only_the_events_that_were_asked_for_are_told(gateway: Gateway, worker: Worker, hook: Receiver) -> None:
    broken = {"message": "x", "simulate": {"fault": "reject"}}
    for events in ("job.completed", "job.timeout,job.cancelled", "job.failed"):
        headers = {HOOK: hook.url("/" + events), "X-Webhook-Events": events}
        job = (await gateway.http.post("/api/chat", json=broken, headers=headers)).json()
        assert (await gateway.ended(job["request_id"]))["status"] == "failed"
    message = await told(hook)
    assert message.path == "/job.failed"
    assert json.loads(message.body)["data"]["error"]["code"]


async def test_a_job_that_is_answered_by_an_earlier_one_is_told_of_too(
    gateway: Gateway, worker: Worker, hook: Receiver
) -> None:
    first = (await gateway.http.post("/api/ocr", content=PNG)).json()["request_id"]
    await gateway.ended(first)
    second = (await gateway.http.post("/api/ocr", content=PNG, headers={HOOK: hook.url()})).json()
    assert second["status"] == "completed"
    assert (await told(hook)).id == f"msg_{second['request_id']}_completed"


async def test_after_a_rotation_the_secret_before_holds_for_a_day(
    gateway: Gateway, worker: Worker, hook: Receiver
) -> None:
    old = await secret(gateway)
    rotated = (await gateway.http.post("/api/webhook-secret/rotate")).json()
    assert rotated["secret"] == await secret(gateway) != old
    assert rotated["previous_until"] is not None
    await gateway.http.post("/api/chat", json={"message": "x", "webhook_url": hook.url()})
    message = await told(hook)
    assert message.verified(old) == message.verified(rotated["secret"])


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/", "http://169.254.169.254/", "http://[::1]:9/", "http://127.0.0.2/", "http://2130706433/",
     "ftp://example.com/", "http://user:pw@example.com/", "http://example.com:22/", "nonsense"],
)  # fmt: skip
async def test_addresses_that_are_not_public_are_refused_at_the_submit(gateway: Gateway, url: str) -> None:
    chat = {"model": "simulator", "messages": [{"role": "user", "content": "hi"}]}
    refused(await gateway.http.post("/api/chat", json={"message": "x", "webhook_url": url}), 400, "url_refused")
    refused(await gateway.http.post("/api/chat", json={"message": "x"}, headers={HOOK: url}), 400, "url_refused")
    refused(await gateway.http.post("/v1/chat/completions", json=chat, headers={HOOK: url}), 400, "url_refused")
    refused(await gateway.http.post("/api/ocr", content=PNG, params={"webhook_url": url}), 400, "url_refused")
    assert await gateway.broker.database.jobs.count_documents({}) == 0


async def test_no_name_is_looked_up_for_who_sends_too_much(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def admit(_: Guard, url: str) -> None:
        asked.append(url)

    monkeypatch.setattr(Guard, "admit", admit)
    config = patient_config() | {"outbound": OUTBOUND, "rate_limit": {"requests_per_minute": 1, "burst": 1}}
    settings = make_settings(settings.config_path.parent, str(settings.mongodb.uri), settings.mongodb.database, config)
    async with gateway_on(settings) as gateway:
        for expected in (202, 429):
            hook = {HOOK: "https://example.com/"}
            response = await gateway.http.post("/api/chat", json={"message": "x"}, headers=hook)
            assert response.status_code == expected, response.text
    assert asked == ["https://example.com/"]


async def test_a_webhook_that_makes_no_sense_is_refused(gateway: Gateway) -> None:
    async def post(headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return await gateway.http.post("/api/chat", json={"message": "x"} | body, headers=headers)

    hook = "https://example.com/"
    refused(await post({"X-Webhook-Events": "job.failed"}), 400, "invalid_webhook")
    refused(await post({HOOK: hook, "X-Webhook-Events": "job.started"}), 400, "invalid_webhook")
    refused(await post({HOOK: hook, "X-Webhook-Events": ""}), 400, "invalid_webhook")
    refused(await post(webhook_events=["job.failed"]), 400, "invalid_request")
    refused(await post(webhook_url=hook, webhook_events=["job.other"]), 400, "invalid_request")
    refused(await post(webhook_url=hook, webhook_events=[]), 400, "invalid_request")


async def test_nothing_is_told_or_fetched_where_the_configuration_does_not_allow_it(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    async with gateway_on(make_settings(tmp_path, mongod_uri, database.name)) as gateway:
        hook = "https://example.com/"
        refused(
            await gateway.http.post("/api/chat", json={"message": "x", "webhook_url": hook}), 403, "webhooks_disabled"
        )
        refused(await gateway.http.post("/api/ocr", content=PNG, headers={HOOK: hook}), 403, "webhooks_disabled")
        refused(await gateway.http.post("/v1/chat/completions", json=shows(hook)), 400, "url_refused")


# ── Images ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def shows(*urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"model": "simulator", "messages": [{"role": "user", "content": parts}], "max_tokens": 2}


async def payload(gateway: Gateway, response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    job = await gateway.broker.reader.get(response.headers["x-request-id"], None)
    return [part["image_url"]["url"] for part in job.payload["messages"][0]["content"]]


def serving(body: bytes, status: int = 200, **headers: str) -> Any:
    async def reply(_: Message) -> Reply:
        return status, headers, body

    return reply


async def test_an_image_is_fetched_once_and_the_job_has_it(gateway: Gateway, worker: Worker) -> None:
    async with receiver(serving(PNG, **{"Content-Type": "text/html"})) as server:
        url = server.url("/a.png")
        response = await gateway.http.post("/v1/chat/completions", json=shows(url, DATA_URL, url))
        assert await payload(gateway, response) == [DATA_URL] * 3
        [message] = server.messages
        assert "authorization" not in message.headers


async def test_a_redirect_of_an_image_is_followed_where_it_leads_to_a_good_address(
    gateway: Gateway, worker: Worker
) -> None:
    async with receiver(serving(PNG)) as good, receiver(serving(b"", 302, Location=good.url())) as server:
        response = await gateway.http.post("/v1/chat/completions", json=shows(server.url()))
        assert await payload(gateway, response) == [DATA_URL]


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/", "http://127.0.0.2:9/", "file:///etc/passwd", "//[::1]/"]
)  # fmt: skip
async def test_a_redirect_to_a_private_address_is_refused(gateway: Gateway, target: str) -> None:
    async with receiver(serving(b"", 302, Location=target)) as server:
        refused(await gateway.http.post("/v1/chat/completions", json=shows(server.url())), 400, "url_refused")


async def test_what_is_no_image_or_does_not_come_is_not_fetched(gateway: Gateway) -> None:
    async def post(server: Receiver) -> None:
        refused(await gateway.http.post("/v1/chat/completions", json=shows(server.url())), 400, "url_not_fetched")

    limit = gateway.settings.server.max_upload
    for reply in (
        serving(b"<html>secret</html>"),
        serving(b"%PDF-1.7 "),
        serving(b""),
        serving(PNG, 404),
        serving(PNG, 206),
        serving(PNG + bytes(limit)),
    ):
        async with receiver(reply) as server:
            await post(server)
    async with receiver() as server:
        server.reply = serving(b"", 302, Location=server.url())
        await post(server)
        assert len(server.messages) == 4
        await server.close()
        await post(server)
    assert await gateway.broker.database.jobs.count_documents({}) == 0


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "FILE:///etc/passwd", "ftp://example.com/a.png", "/etc/passwd", "s3://bucket/a.png", "",
     "data:image/png,notbase64", "data:image/png;base64,!!!!", "data:text/html;base64,PGh0bWw+",
     "data:image/png;base64,aHR0cDovLzEyNy4wLjAuMS8=", "data:application/pdf;base64,JVBERi0xLjcK", "data:;base64,",
     "data:image/svg+xml;base64,PHN2Zy8+", " http://example.com/", "data:video/mp4;base64,AAAA", "blob:x"],
)  # fmt: skip
async def test_nothing_reaches_an_engine_that_it_would_fetch_or_that_is_no_image(gateway: Gateway, url: str) -> None:
    refused(await gateway.http.post("/v1/chat/completions", json=shows(url)), 400, "invalid_request")
    assert await gateway.broker.database.jobs.count_documents({}) == 0


async def test_an_image_goes_on_in_one_form_however_it_was_written(gateway: Gateway, worker: Worker) -> None:
    encoded = base64.encodebytes(PNG).decode()
    for head in ("DATA:image/jpeg;base64,", "data:;base64,", "data:text/plain;charset=x;BASE64,"):
        response = await gateway.http.post("/v1/chat/completions", json=shows(head + encoded))
        assert await payload(gateway, response) == [DATA_URL]


async def test_a_line_of_a_batch_takes_an_image_only_as_such(gateway: Gateway) -> None:
    from gateway.v1.batches.lines import LineError, request_of

    def line(url: str) -> bytes:
        body = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": shows(url)}
        return json.dumps(body).encode()

    assert request_of(line(DATA_URL), "/v1/chat/completions").work.payload["messages"]
    with pytest.raises(LineError) as refusal:
        request_of(line("https://example.com/a.png"), "/v1/chat/completions")
    assert refusal.value.code == "url_refused"

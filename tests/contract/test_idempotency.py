"""``Idempotency-Key``: the same request sent again is the same job, however often and in whichever form."""

import asyncio
import base64
from pathlib import Path

import pytest

from gateway.arrival import Arrival
from gateway.users import Users
from tests import documents
from tests.contract.ocr_jobs import page, read
from tests.deployments import Gateway
from worker.worker import Worker

SAMPLES = Path(__file__).parents[2] / "samples"
KEY = {"Idempotency-Key": "order 66"}


async def test_the_same_request_again_is_the_same_job(gateway: Gateway) -> None:
    first = await gateway.http.post("/api/chat", json={"message": "hi"}, headers=KEY)
    again = await gateway.http.post("/api/chat", json={"message": "hi"}, headers=KEY)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["request_id"] == again.json()["request_id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"


async def test_the_same_document_in_another_form_is_the_same_job(gateway: Gateway) -> None:
    page = documents.page_png()
    url = f"data:image/png;base64,{base64.b64encode(page).decode()}"
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    responses = [
        await gateway.http.post("/api/ocr", content=page, headers=KEY),
        await gateway.http.post("/api/ocr", files={"file": ("page.png", page)}, headers=KEY),
        await gateway.http.post("/api/ocr", json={"messages": messages}, headers=KEY),
    ]
    assert len({response.json()["request_id"] for response in responses}) == 1
    assert await gateway.broker.database.handle["files.files"].count_documents({}) == 1


async def test_the_same_key_with_another_content_is_refused(gateway: Gateway) -> None:
    await gateway.http.post("/api/chat", json={"message": "hi"}, headers=KEY)
    for body in ({"message": "ho"}, {"message": "hi", "model": "simulator"}):
        other = await gateway.http.post("/api/chat", json=body, headers=KEY)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


async def test_the_same_key_with_another_document_is_refused(gateway: Gateway) -> None:
    await gateway.http.post("/api/ocr", content=documents.page_png(), headers=KEY)
    other = await gateway.http.post("/api/ocr", content=(SAMPLES / "letter.pdf").read_bytes(), headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


async def test_a_key_belongs_to_its_subject(gateway: Gateway) -> None:
    first = await gateway.http.post("/api/chat", json={"message": "hi"}, headers=KEY)
    await Users(gateway.broker.database.handle).create("bob", "bobs-password", "user")
    await gateway.sign_in("bob", "bobs-password")
    other = await gateway.http.post("/api/chat", json={"message": "hi"}, headers=KEY)
    assert other.status_code == 202
    assert other.json()["request_id"] != first.json()["request_id"]


async def test_a_repeated_request_gets_the_result_without_running_again(gateway: Gateway, worker: Worker) -> None:
    answers = [await gateway.http.post("/api/chat?wait=30", json={"message": "hi"}, headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["attempts"] == 1


async def test_a_request_that_meets_its_like_while_it_is_answered_is_told_so(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await read(gateway, page(1))

    async def nobody_yet(*_: object) -> None:
        """Both have looked before either is stored."""

    monkeypatch.setattr(Arrival, "earlier", nobody_yet)
    files = {"file": ("letter.pdf", documents.scanned_pdf(1))}
    first, second = [await gateway.http.post("/api/ocr?wait=1", files=files, headers=KEY) for _ in range(2)]
    assert (first.status_code, second.json()) == (200, first.json())
    assert first.json()["cached_from"] is not None
    assert ("idempotent-replayed" in first.headers, second.headers.get("idempotent-replayed")) == (False, "true")


async def test_the_same_key_many_times_at_once_is_one_job(gateway: Gateway) -> None:
    page = documents.page_png()
    responses = await asyncio.gather(*(gateway.http.post("/api/ocr", content=page, headers=KEY) for _ in range(12)))
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["request_id"] for response in responses}) == 1
    assert await gateway.broker.database.jobs.count_documents({}) == 1
    assert await gateway.broker.database.handle["files.files"].count_documents({}) == 1


async def test_a_repeated_request_needs_no_room(gateway: Gateway) -> None:
    first = await gateway.http.post("/api/chat", json={"message": "hi"}, headers=KEY)
    await asyncio.gather(*(gateway.http.post("/api/chat", json={"message": "hi"}) for _ in range(19)))
    assert (await gateway.http.post("/api/chat", json={"message": "hi"})).status_code == 503
    again = await gateway.http.post("/api/chat", json={"message": "hi"}, headers=KEY)
    assert (again.status_code, again.json()["request_id"]) == (202, first.json()["request_id"])


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tbed"])
async def test_a_key_that_cannot_be_kept_is_refused(gateway: Gateway, key: str) -> None:
    response = await gateway.http.post("/api/chat", json={"message": "hi"}, headers={"Idempotency-Key": key})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_idempotency_key")

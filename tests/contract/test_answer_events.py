"""Tokens among the events of a job, and the plain routes that answer with them."""

import json
from typing import Any

from broker.job import Status
from tests.conditions import eventually
from tests.deployments import Gateway
from worker.worker import Worker

HELLO = {"message": "hello"}
Told = tuple[str, str, dict[str, Any]]


def events_of(text: str) -> list[Told]:
    """(id, name, data) of each event."""
    told = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            told.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return told


def text_of(told: list[Told]) -> str:
    return "".join(data["text"] for _, name, data in told if name == "token")


async def answer_of(gateway: Gateway, job: str) -> str:
    body = (await gateway.http.get(f"/api/jobs/{job}", params={"wait": 20})).json()
    assert body["status"] == "completed"
    return str(body["result"]["message"]["content"])


async def test_a_chat_is_told_as_it_is_generated(gateway: Gateway, worker: Worker) -> None:
    response = await gateway.http.post("/api/chat/stream", json=HELLO)
    assert response.headers["content-type"].startswith("text/event-stream")
    told = events_of(response.text)
    names = [name for _, name, _ in told]
    assert names[0] == "state"
    assert names[-2:] == ["state", "end"]
    assert names.count("token") == 21
    assert text_of(told) == await answer_of(gateway, response.headers["x-request-id"])
    assert told[-1][2] == {"status": "completed", "error": None}


async def test_who_is_cut_off_goes_on_after_any_event(gateway: Gateway, worker: Worker) -> None:
    response = await gateway.http.post("/api/chat/stream", json=HELLO)
    told, path = events_of(response.text), f"/api/jobs/{response.headers['x-request-id']}/events"
    tokens = [event for event in told if event[1] == "token"]
    for number, (event_id, _, _) in enumerate(tokens, 1):
        rest = events_of((await gateway.http.get(path, headers={"Last-Event-ID": event_id})).text)
        assert [data for _, name, data in rest if name == "token"] == [data for _, _, data in tokens[number:]]
        assert rest[-1][1] == "end"
    over = await gateway.http.get(path, headers={"Last-Event-ID": told[-1][0]})
    assert over.status_code == 204


async def test_a_chat_that_is_submitted_to_be_streamed_can_be_followed(gateway: Gateway, worker: Worker) -> None:
    job = (await gateway.http.post("/api/chat", json={**HELLO, "stream": True})).json()["request_id"]
    told = events_of((await gateway.http.get(f"/api/jobs/{job}/events")).text)
    assert text_of(told) == await answer_of(gateway, job)


async def test_a_chat_that_is_not_has_no_tokens_to_tell(gateway: Gateway, worker: Worker) -> None:
    job = (await gateway.http.post("/api/chat", json=HELLO)).json()["request_id"]
    told = events_of((await gateway.http.get(f"/api/jobs/{job}/events")).text)
    assert {name for _, name, _ in told} == {"state", "end"}


async def test_an_attempt_that_fails_voids_what_it_told(gateway: Gateway, worker: Worker) -> None:
    fault, soon = {"simulate": {"fault": "hang", "after": 10}}, {"X-Timeout": "4"}
    response = await gateway.http.post("/api/chat/stream", json={**HELLO, **fault}, headers=soon)
    told = events_of(response.text)
    begun = [number for number, (_, name, _) in enumerate(told) if name == "restart"]
    assert len(begun) == 1
    assert text_of(told[begun[0] :]) == await answer_of(gateway, response.headers["x-request-id"])
    assert text_of(told[: begun[0]])


async def test_an_answer_whose_pieces_are_gone_is_told_whole(gateway: Gateway, worker: Worker) -> None:
    response = await gateway.http.post("/api/chat/stream", json=HELLO)
    job, half = response.headers["x-request-id"], events_of(response.text)[10][0]
    await gateway.broker.database.chunks.delete_many({})
    for known, restarts in ((None, 0), (half, 1)):
        headers = {} if known is None else {"Last-Event-ID": known}
        told = events_of((await gateway.http.get(f"/api/jobs/{job}/events", headers=headers)).text)
        names = [name for _, name, _ in told]
        assert (names.count("token"), names.count("restart")) == (1, restarts)
        assert text_of(told) == await answer_of(gateway, job)
        last = next(event_id for event_id, name, _ in told if name == "token")
        again = events_of((await gateway.http.get(f"/api/jobs/{job}/events", headers={"Last-Event-ID": last})).text)
        assert "token" not in [name for _, name, _ in again]


async def test_a_failure_is_told_by_the_end(gateway: Gateway, worker: Worker) -> None:
    fault = {"simulate": {"fault": "reject"}}
    told = events_of((await gateway.http.post("/api/chat/stream", json={**HELLO, **fault})).text)
    assert told[-1][1] == "end"
    assert told[-1][2]["status"] == "failed"
    assert told[-1][2]["error"]["code"] == "engine_rejected_input"


async def test_what_cannot_be_accepted_is_refused_before_the_stream_begins(gateway: Gateway) -> None:
    response = await gateway.http.post("/api/chat/stream", json={**HELLO, "model": "none"})
    assert (response.status_code, response.json()["code"]) == (404, "model_not_found")
    assert response.headers["content-type"] == "application/problem+json"


async def test_the_same_key_again_is_the_same_answer(gateway: Gateway, worker: Worker) -> None:
    key = {"Idempotency-Key": "one"}
    first, second = [await gateway.http.post("/api/chat/stream", json=HELLO, headers=key) for _ in range(2)]
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["x-request-id"] == first.headers["x-request-id"]
    assert text_of(events_of(second.text)) == text_of(events_of(first.text))


async def test_a_text_is_gone_on_with(gateway: Gateway, worker: Worker) -> None:
    response = await gateway.http.post("/v1/inference/complete", json={"prompt": "Once", "max_tokens": 3})
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["text"].startswith("[simulator] ")
    assert (body["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 3)
    assert body["request_id"] == response.headers["x-request-id"]
    stream = await gateway.http.post("/v1/inference/stream", json={"prompt": "Once", "max_tokens": 3})
    assert text_of(events_of(stream.text)) == body["text"]


async def test_a_completion_that_fails_is_told_as_openai_tells_it(gateway: Gateway, worker: Worker) -> None:
    refused = await gateway.http.post(
        "/v1/inference/complete", json={"prompt": "Once", "simulate": {"fault": "reject"}}
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "engine_rejected_input")


async def test_a_client_finds_out_what_it_may_ask_for(gateway: Gateway, worker: Worker) -> None:
    async def listed() -> dict[str, Any]:
        found = (await gateway.http.get("/api/models")).json()["models"]
        return {model["name"]: model for model in found}

    async def ready() -> bool:
        return bool((await listed())["simulator"]["state"] == "ready")

    await eventually(ready)
    models = await listed()
    assert models.keys() == gateway.settings.models.keys()
    assert (models["simulator"]["other_names"], models["simulator"]["task"]) == (["sim"], "chat")
    assert len(models["simulator"]["served_by"]) == 1


async def test_a_long_conversation_is_kept_beside_its_job(gateway: Gateway, worker: Worker) -> None:
    question = {"role": "user", "content": "word " * 60_000}
    response = await gateway.http.post("/v1/chat/completions", json={"model": "simulator", "messages": [question]})
    assert response.json()["usage"]["prompt_tokens"] == 60_000
    stored = await gateway.broker.reader.get(response.headers["x-request-id"], None)
    assert stored.status is Status.COMPLETED
    assert stored.payload_file is not None
    assert "messages" not in stored.payload
    assert await gateway.broker.files.size(stored.payload_file) > 300_000

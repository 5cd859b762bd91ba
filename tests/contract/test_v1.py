"""OpenAI's API on gateways and workers in this process, with the simulator."""

import asyncio
import json
from typing import Any

import pytest

from tests.conditions import eventually
from tests.deployments import Gateway
from worker.worker import Worker

HELLO = {"model": "simulator", "messages": [{"role": "user", "content": "hello"}]}


def data_of(text: str) -> list[Any]:
    """What the events of a stream hold."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def ids_of(text: str) -> list[str]:
    return [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]


async def test_a_chat_is_answered_whole(gateway: Gateway, worker: Worker) -> None:
    response = await gateway.http.post("/v1/chat/completions", json=HELLO)
    assert response.status_code == 200, response.text
    answer = response.json()
    job = await gateway.ended(response.headers["x-request-id"])
    assert answer["id"] == f"chatcmpl-{job['request_id']}"
    assert (answer["object"], answer["model"]) == ("chat.completion", "simulator")
    [choice] = answer["choices"]
    assert choice["message"]["content"].startswith("[simulator] ")
    assert choice["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 20, "total_tokens": 21}


async def test_a_stream_tells_the_same_in_pieces(gateway: Gateway, worker: Worker) -> None:
    whole = (await gateway.http.post("/v1/chat/completions", json=HELLO)).json()
    asked = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
    response = await gateway.http.post("/v1/chat/completions", json=asked)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, end, usage, done = data_of(response.text)
    assert done == "[DONE]"
    assert usage["usage"] == whole["usage"]
    assert usage["choices"] == []
    assert end["choices"][0]["finish_reason"] == "stop"
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len(chunks) == 21


async def test_a_stream_goes_on_after_any_of_its_events(gateway: Gateway, worker: Worker) -> None:
    whole = await gateway.http.post("/v1/chat/completions", json={**HELLO, "stream": True})
    job, events = whole.headers["x-request-id"], whole.text.split("\n\n")
    for told, event_id in enumerate(ids_of(whole.text), 1):
        rest = await gateway.http.get(
            f"/v1/chat/completions/chatcmpl-{job}", params={"stream": "true"}, headers={"Last-Event-ID": event_id}
        )
        assert rest.text == "\n\n".join(events[told:])


@pytest.mark.parametrize(("headers", "status"), [({}, "cancelled"), ({"Idempotency-Key": "mine"}, "queued")])
async def test_a_job_goes_on_without_its_gateway_only_where_somebody_may_come_back_for_it(
    gateway: Gateway, headers: dict[str, str], status: str
) -> None:
    asking = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=HELLO, headers=headers))

    async def stored() -> bool:
        return await gateway.broker.database.jobs.count_documents({}) == 1

    await eventually(stored)
    gateway.broker.feed.close()
    response = await asking
    assert (response.status_code, response.json()["error"]["code"]) == (503, "gateway_stopping")
    assert response.headers["retry-after"] == "1"
    [job] = await gateway.broker.database.jobs.find().to_list()
    assert job["status"] == status

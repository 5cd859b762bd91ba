"""OpenAI's Responses API on gateways and workers in this process, by OpenAI's own client."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from pymongo.asynchronous.database import AsyncDatabase
from starlette.requests import Request
from starlette.responses import Response as Answer
from starlette.responses import StreamingResponse

from broker.payloads import INLINE_LIMIT
from config import Settings
from gateway.users import Users
from gateway.v1.responses.streams import SPAN
from gateway.v1.responses.work import MOST_ECHOED
from tests.clients.published import published
from tests.conditions import eventually
from tests.deployments import Gateway, listening, make_settings, patient_config, worker_on
from tests.upstreams import Behaviour, Upstream
from worker.worker import Worker

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
HELLO = {"model": "simulator", "input": "hello"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class City(BaseModel):
    name: str
    people: int


class Model(Upstream):
    """Calls the function that it is offered, says what it is asked for in JSON, and else how many messages it got."""

    made_up: dict[str, Any] | None = None

    async def chat(self, request: Request) -> Answer:
        if self.next:
            return await super().chat(request)
        asked = await request.json()
        self.asked.append(asked)
        return StreamingResponse(self._stream(self._pieces(asked)), media_type="text/event-stream")

    def _pieces(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        if asked.get("tools") and asked["messages"][-1]["role"] != "tool":
            if self.made_up:
                return [{"delta": {"tool_calls": [self.made_up]}}]
            call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
            pieces = [{"function": {"arguments": part}, "index": 0} for part in ('{"city":', '"Ulm"}')]
            return [{"delta": {"reasoning": "I have to look."}}] + [
                {"delta": {"tool_calls": [piece]}} for piece in (call, *pieces)
            ]
        if asked.get("response_format"):
            text = '{"name":"Ulm","people":126000}'
            return [{"delta": {"content": text[start : start + 7]}} for start in range(0, len(text), 7)]
        words = [str(len(asked["messages"])), " so", " far"]
        if not asked.get("logprobs"):
            return [{"delta": {"content": word}} for word in words]
        return [{"delta": {"content": word}, "logprobs": {"content": [_logprob(word)]}} for word in words]

    async def _stream(self, pieces: list[dict[str, Any]]) -> AsyncIterator[str]:
        for piece in pieces:
            yield _sse({"choices": [{"index": 0, **piece, "finish_reason": None}]})
        reason = "tool_calls" if "tool_calls" in pieces[-1]["delta"] else "stop"
        yield _sse({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
        yield _sse({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, **details}})
        yield "data: [DONE]\n\n"


def _sse(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def _logprob(word: str) -> dict[str, Any]:
    one = {"token": word, "logprob": -0.25, "bytes": [*word.encode()]}
    return {**one, "top_logprobs": [one]}


@pytest.fixture
async def upstream() -> AsyncIterator[Model]:
    model = Model()
    async with model.serving():
        yield model


@pytest.fixture
def settings(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]], upstream: Model) -> Settings:
    config = patient_config()
    config["models"] |= {
        "theirs": {"task": "chat", "engine": "openai", "base_url": upstream.url},
        # 50 s of an answer.
        "slow": {"task": "chat", "engine": "simulator", "tokens_per_second": 20, "tokens": 1000},
    }
    return make_settings(tmp_path, mongod_uri, database.name, config)


@pytest.fixture
async def online(settings: Settings) -> AsyncIterator[Gateway]:
    async with listening(settings) as gateway:
        yield gateway


@pytest.fixture
async def worker(settings: Settings, online: Gateway) -> AsyncIterator[Worker]:
    async with worker_on(settings) as worker:
        yield worker


def _base(gateway: Gateway) -> dict[str, Any]:
    key = gateway.http.headers["Authorization"].removeprefix("Bearer ")
    return {"base_url": gateway.http.base_url.join("/v1"), "api_key": key, "max_retries": 0}


@pytest.fixture
async def client(online: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(**_base(online)) as client:
        yield client


def events_of(text: str) -> list[dict[str, Any]]:
    """Each held strictly against what OpenAI has published, and its lines against each other."""
    found = []
    for block in text.split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        EVENTS.validate_json(lines["data"], strict=True)
        event = json.loads(lines["data"])
        assert lines["event"] == event["type"]
        if "response" in event:
            published(Response, json.dumps(event["response"]))
        found.append(event)
    return found


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


async def streamed(gateway: Gateway, **asked: Any) -> str:
    response = await gateway.http.post("/v1/responses", json={**HELLO, "stream": True, **asked})
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    return response.text


async def got(gateway: Gateway, response_id: str, **query: Any) -> httpx.Response:
    response = await gateway.http.get(f"/v1/responses/{response_id}", params=query)
    if response.status_code == 200 and not query:
        published(Response, response.content)
    return response


async def reaches(gateway: Gateway, response_id: str, *states: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def reached() -> bool:
        nonlocal found
        found = (await got(gateway, response_id)).json()
        return found["status"] in states

    await eventually(reached)
    return found


async def test_a_response_is_a_job(online: Gateway, worker: Worker, client: openai.AsyncOpenAI) -> None:
    raw = await client.responses.with_raw_response.create(
        model="simulator", input="hello", metadata={"of": "me"}, extra_headers={"X-Client-ID": "desk"}
    )
    published(Response, raw.text)
    response = raw.parse()
    assert response.output_text.startswith("[simulator] ")
    assert (response.status, response.metadata) == ("completed", {"of": "me"})
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (1, 20)
    assert response.id == f"resp_{raw.headers['x-request-id']}"
    job = await online.ended(raw.headers["x-request-id"])
    assert (job["status"], job["client"]) == ("completed", "desk")
    again = await client.responses.retrieve(response.id)
    assert again.model_dump() == response.model_dump()


async def test_the_client_that_waits_in_a_thread_is_served_too(online: Gateway, worker: Worker) -> None:
    def ask() -> tuple[list[str], str]:
        with openai.OpenAI(**_base(online)) as client:
            whole = client.responses.create(model="simulator", input="hello").output_text
            with client.responses.stream(model="simulator", input="hello") as stream:
                texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
                assert stream.get_final_response().output_text == whole
        return texts, whole

    texts, whole = await asyncio.to_thread(ask)
    assert "".join(texts) == whole
    assert len(texts) == 21


async def test_a_stream_tells_what_is_got_later(online: Gateway, worker: Worker) -> None:
    events = events_of(await streamed(online))
    assert names(events)[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names(events)[4:25] == ["output_text.delta"] * 21
    assert names(events)[25:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event["sequence_number"] for event in events] == [*range(29)]
    assert (await got(online, events[-1]["response"]["id"])).json() == events[-1]["response"]


async def test_it_goes_on_after_each_of_its_events_on_any_gateway(
    online: Gateway, worker: Worker, settings: Settings
) -> None:
    text = await streamed(online)
    blocks, events = text.split("\n\n"), events_of(text)
    path = f"/v1/responses/{events[0]['response']['id']}"
    async with listening(settings) as other:
        for told, event in enumerate(events, 1):
            number = str(event["sequence_number"])
            by_query = await other.http.get(path, params={"stream": "true", "starting_after": number})
            by_header = await online.http.get(path, params={"stream": "true"}, headers={"Last-Event-ID": number})
            assert by_query.text == by_header.text == "\n\n".join(blocks[told:])


async def test_one_in_the_background_goes_on_without_its_client(
    online: Gateway, worker: Worker, client: openai.AsyncOpenAI
) -> None:
    response = await client.responses.create(model="simulator", input="hello", background=True)
    assert (response.status, response.background, response.output) == ("queued", True, [])
    while response.status in ("queued", "in_progress"):
        response = await client.responses.retrieve(response.id)
    assert response.output_text.startswith("[simulator] ")
    cancelled = await client.responses.cancel(response.id)
    assert cancelled.status == "completed"


async def test_a_stream_in_the_background_is_left_and_taken_up_by_the_client_library(
    online: Gateway, worker: Worker, client: openai.AsyncOpenAI, settings: Settings
) -> None:
    told: list[Any] = []
    stream = await client.responses.create(model="slow", input="hello", background=True, stream=True)
    async for event in stream:
        told.append(event)
        if len(told) == 12:
            break
    await stream.close()
    assert [event.type for event in told[:3]] == ["response.created", "response.queued", "response.in_progress"]
    response_id = told[0].response.id
    async with listening(settings) as other, openai.AsyncOpenAI(**_base(other)) as again:
        rest = await again.responses.retrieve(response_id, stream=True, starting_after=told[-1].sequence_number)
        async for event in rest:
            told.append(event)
            if len(told) == 20:
                await again.responses.cancel(response_id)
    assert [event.sequence_number for event in told] == [*range(len(told))]
    assert (told[-1].type, told[-1].code) == ("error", "cancelled")
    assert (await reaches(online, response_id, "cancelled"))["output"] == []


async def test_who_hangs_up_has_his_response_cancelled(online: Gateway, worker: Worker) -> None:
    async with online.http.stream("POST", "/v1/responses", json={**HELLO, "model": "slow", "stream": True}) as answer:
        job = answer.headers["x-request-id"]
        async for line in answer.aiter_lines():
            if "output_text.delta" in line:
                break
    assert (await reaches(online, f"resp_{job}", "cancelled"))["error"] is None
    refused = await online.http.post(f"/v1/responses/resp_{job}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "response_not_background")


async def test_the_model_is_asked_to_call_functions_and_told_what_they_gave(
    online: Gateway, worker: Worker, client: openai.AsyncOpenAI, upstream: Model
) -> None:
    events = events_of(await streamed(online, model="theirs", input="Weather in Ulm?", tools=[WEATHER]))
    response = Response.model_validate(events[-1]["response"])
    reasoning, call = response.output
    assert reasoning.type == "reasoning"
    assert call.type == "function_call"
    assert (call.call_id, json.loads(call.arguments)) == ("call_1", {"city": "Ulm"})
    assert names(events).count("function_call_arguments.delta") == 2
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
    tools: Any = [WEATHER]
    by_id = await client.responses.create(
        model="theirs",
        previous_response_id=response.id,
        input=[output],
        tools=tools,
    )
    question: Any = {"role": "user", "content": "Weather in Ulm?"}
    turns: Any = [question, *response.output, output]
    by_items = await client.responses.create(
        model="theirs",
        input=turns,
        tools=tools,
    )
    assert by_id.output_text == by_items.output_text == "3 so far"
    asked = upstream.asked[1]["messages"]
    assert asked == upstream.asked[2]["messages"]
    assert [message["role"] for message in asked] == ["user", "assistant", "tool"]
    assert asked[1]["tool_calls"][0]["function"]["arguments"] == '{"city":"Ulm"}'


async def test_an_answer_of_a_shape_is_parsed(
    online: Gateway, worker: Worker, client: openai.AsyncOpenAI, upstream: Model
) -> None:
    parsed = await client.responses.parse(model="theirs", input="Ulm?", text_format=City)
    assert parsed.output_parsed == City(name="Ulm", people=126000)
    async with client.responses.stream(model="theirs", input="Ulm?", text_format=City) as stream:
        assert (await stream.get_final_response()).output_parsed == parsed.output_parsed
    schema = upstream.asked[0]["response_format"]["json_schema"]
    assert (schema["name"], schema["strict"]) == ("City", True)


async def test_log_probabilities_are_told_where_they_are_asked_for(
    online: Gateway, worker: Worker, upstream: Model
) -> None:
    include = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    events = events_of(await streamed(online, model="theirs", **include))
    [message] = events[-1]["response"]["output"]
    told = message["content"][0]["logprobs"]
    assert [one["token"] for one in told] == ["1", " so", " far"]
    assert told[0]["top_logprobs"] == [{"token": "1", "logprob": -0.25, "bytes": [49]}]
    assert (upstream.asked[0]["logprobs"], upstream.asked[0]["top_logprobs"]) == (True, 1)
    assert (await got(online, events[-1]["response"]["id"])).json() == events[-1]["response"]


async def test_a_conversation_goes_on_for_many_turns_and_can_branch(
    online: Gateway, worker: Worker, client: openai.AsyncOpenAI, upstream: Model
) -> None:
    first = await client.responses.create(model="theirs", input="Turn 0", instructions="Be brief.")
    response = first
    for turn in range(1, 12):
        response = await client.responses.create(model="theirs", input=f"Turn {turn}", previous_response_id=response.id)
        assert response.output_text == f"{2 * turn + 1} so far"
    # Instructions hold for one response alone.
    assert [message["role"] for message in upstream.asked[-1]["messages"]] == ["user", "assistant"] * 11 + ["user"]
    branch = await client.responses.create(
        model="theirs", input="Other", instructions="Be long.", previous_response_id=first.id
    )
    assert [message["content"] for message in upstream.asked[-1]["messages"]] == [
        "Be long.",
        "Turn 0",
        "2 so far",
        "Other",
    ]
    items = [item.model_dump() async for item in client.responses.input_items.list(branch.id, order="asc", limit=2)]
    assert [item["content"][0]["text"] for item in items] == ["Turn 0", "2 so far", "Other"]
    page = await online.http.get(f"/v1/responses/{branch.id}/input_items", params={"limit": 2})
    published(ResponseItemList, page.content)
    assert [item["id"] for item in page.json()["data"]] == [items[2]["id"], items[1]["id"]]
    assert page.json()["has_more"]
    wrong = await online.http.get(f"/v1/responses/{branch.id}/input_items", params={"after": "msg_x"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_cursor")


async def test_a_long_conversation_is_kept_whole(
    online: Gateway, worker: Worker, client: openai.AsyncOpenAI, upstream: Model
) -> None:
    long = "word " * 100_000
    response = await client.responses.create(model="theirs", input=long)
    await client.responses.create(model="theirs", input="And?", previous_response_id=response.id)
    assert upstream.asked[-1]["messages"][0]["content"] == long
    page = (await online.http.get(f"/v1/responses/{response.id}/input_items")).json()
    assert page["data"][0]["content"][0]["text"] == long


async def test_a_conversation_does_not_grow_beyond_what_one_request_may_have(
    online: Gateway, worker: Worker, client: openai.AsyncOpenAI
) -> None:
    most = online.settings.server.max_upload * 4 // 3 + 2**20
    many = [{"role": "user", "content": "word " * 190_000} for _ in range(most // 2**20 - 1)]
    first = await client.responses.create(model="theirs", input=cast(Any, many))
    went_on = await client.responses.create(model="theirs", input="And?", previous_response_id=first.id)
    again = cast(Any, many[:4])
    with pytest.raises(openai.APIStatusError) as refusal:
        await client.responses.create(model="theirs", input=again, previous_response_id=went_on.id)
    assert (refusal.value.status_code, refusal.value.code) == (413, "payload_too_large")


async def test_long_instructions_are_kept_once_and_told_all_the_same(
    online: Gateway, worker: Worker, client: openai.AsyncOpenAI
) -> None:
    for size in (MOST_ECHOED, MOST_ECHOED + 1, INLINE_LIMIT + 1):
        told = "x" * size
        response = await client.responses.create(model="theirs", input="hello", instructions=told)
        assert response.instructions == told
        assert (await got(online, response.id)).json()["instructions"] == told
        stream = await streamed(online, instructions=told)
        for event in events_of(stream):
            assert event.get("response", {"instructions": told})["instructions"] == told
        again = await got(online, json.loads(stream.split("data: ")[1].split("\n")[0])["response"]["id"], stream="true")
        assert again.text == stream
        job = await online.broker.reader.get(response.id.removeprefix("resp_"), None)
        assert len(job.asked["echo"]) < MOST_ECHOED + 2000
        assert (job.payload_file is not None) == (size > INLINE_LIMIT)


async def test_only_what_is_ones_own_and_completed_is_gone_on_with(online: Gateway, worker: Worker) -> None:
    await Users(online.broker.database.handle).create("anna", "annas-password", "user")
    mine = (await online.http.post("/v1/responses", json=HELLO)).json()["id"]
    running = (await online.http.post("/v1/responses", json={**HELLO, "model": "slow", "background": True})).json()[
        "id"
    ]
    unkept = (await online.http.post("/v1/responses", json={**HELLO, "store": False})).json()["id"]
    chat = await online.http.post("/v1/chat/completions", json={"model": "simulator", "messages": [_said()]})
    for previous, code in (
        (running, "previous_response_not_completed"),
        (unkept, "previous_response_not_found"),
        (f"resp_{chat.headers['x-request-id']}", "previous_response_not_found"),
        ("resp_000000000000000000000000", "previous_response_not_found"),
    ):
        refused = await online.http.post("/v1/responses", json={**HELLO, "previous_response_id": previous})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
        assert refused.json()["error"]["param"] == "previous_response_id"
    await online.http.post(f"/v1/responses/{running}/cancel")
    theirs = {"Authorization": f"Bearer {await online.token('anna', 'annas-password')}"}
    refused = await online.http.post("/v1/responses", json={**HELLO, "previous_response_id": mine}, headers=theirs)
    assert refused.json()["error"]["code"] == "previous_response_not_found"
    assert (await online.http.get(f"/v1/responses/{mine}", headers=theirs)).status_code == 404


def _said() -> dict[str, str]:
    return {"role": "user", "content": "hello"}


async def test_a_failure_is_told_to_who_waits_follows_and_asks_later(online: Gateway, worker: Worker) -> None:
    asked = {**HELLO, "simulate": {"fault": "reject", "attempts": 9}}
    refused = await online.http.post("/v1/responses", json=asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "engine_rejected_input")
    events = events_of(await streamed(online, **asked))
    assert (names(events)[0], names(events)[-1]) == ("created", "failed")
    failed = events[-1]["response"]
    assert failed["error"]["code"] == "invalid_prompt"
    assert "(engine_rejected_input)" in failed["error"]["message"]
    assert (await got(online, failed["id"])).json() == failed


async def test_an_answer_that_is_generated_anew_is_never_told_on(
    online: Gateway, worker: Worker, upstream: Model
) -> None:
    lost = asyncio.Event()
    upstream.next.append(Behaviour(fault="drop", gate=lost))
    text = ""
    asked = {"model": "theirs", "input": "hello", "stream": True}
    async with online.http.stream("POST", "/v1/responses", json=asked) as answer:
        async for line in answer.aiter_lines():
            text += line + "\n"
            if "output_text.delta" in line:
                lost.set()
    events = events_of(text)
    error = events[-1]
    assert (error["type"], error["code"]) == ("error", "stream_restarted")
    # It has no number of its own: the client goes on after the last one that it was told.
    assert error["sequence_number"] == events[-2]["sequence_number"]
    done = await reaches(online, events[0]["response"]["id"], "completed")
    path = f"/v1/responses/{done['id']}"
    for number in (event["sequence_number"] for event in events[2:-1]):
        refused = await online.http.get(path, params={"stream": "true", "starting_after": number})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "stream_restarted")
    anew = events_of((await got(online, done["id"], stream="true")).text)
    assert [event["sequence_number"] for event in anew] == [0, 1, *range(SPAN + 2, SPAN + 11)]
    assert anew[-1]["response"] == done


async def test_an_attempt_of_which_nothing_was_told_is_not_missed(
    online: Gateway, worker: Worker, upstream: Model
) -> None:
    upstream.next.append(Behaviour(status=500))
    events = events_of(await streamed(online, model="theirs"))
    assert names(events)[-1] == "completed"
    assert events[2]["sequence_number"] > SPAN


async def test_a_stream_whose_pieces_are_gone_is_told_at_once(online: Gateway, worker: Worker) -> None:
    events = events_of(await streamed(online))
    await online.broker.database.chunks.delete_many({})
    response_id = events[0]["response"]["id"]
    again = events_of((await got(online, response_id, stream="true")).text)
    assert names(again).count("output_text.delta") == 1
    assert again[-1]["response"] == events[-1]["response"]
    for number in (event["sequence_number"] for event in again):
        rest = await got(online, response_id, stream="true", starting_after=number)
        assert events_of(rest.text) == [event for event in again if event["sequence_number"] > number]
    late = await got(online, response_id, stream="true", starting_after=10)
    assert (late.status_code, late.json()["error"]["code"]) == (410, "stream_expired")


async def test_one_that_was_not_streamed_can_be_followed_all_the_same(online: Gateway, worker: Worker) -> None:
    begun = (await online.http.post("/v1/responses", json={**HELLO, "background": True})).json()
    events = events_of((await got(online, begun["id"], stream="true")).text)
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert names(events)[-1] == "completed"
    assert names(events).count("output_text.delta") == 1


async def test_one_that_is_cut_at_its_limit_is_incomplete(
    online: Gateway, worker: Worker, client: openai.AsyncOpenAI
) -> None:
    response = await client.responses.create(model="simulator", input="hello", max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert (await client.responses.retrieve(response.id)).model_dump() == response.model_dump()


async def test_the_same_request_again_is_the_same_response(online: Gateway, worker: Worker) -> None:
    for asked in (HELLO, {**HELLO, "background": True}, {**HELLO, "stream": True}):
        key = {"Idempotency-Key": json.dumps(asked)}
        first = await online.http.post("/v1/responses", json=asked, headers=key)
        await reaches(online, f"resp_{first.headers['x-request-id']}", "completed")
        again = await online.http.post("/v1/responses", json=asked, headers=key)
        assert again.headers["x-request-id"] == first.headers["x-request-id"]
        assert again.headers["idempotent-replayed"] == "true"
        if asked is not HELLO and "background" in asked:
            assert again.json()["status"] == "completed"
        else:
            assert again.text == first.text
        other = await online.http.post("/v1/responses", json={**asked, "metadata": {"a": "b"}}, headers=key)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")


async def test_a_request_that_was_taken_is_known_though_what_it_went_on_with_is_gone(
    online: Gateway, worker: Worker
) -> None:
    first = (await online.http.post("/v1/responses", json=HELLO)).json()["id"]
    for more in ({}, {"background": True}):
        key, asked = {"Idempotency-Key": f"key {more}"}, {**HELLO, "previous_response_id": first, **more}
        taken = await online.http.post("/v1/responses", json=asked, headers=key)
        await reaches(online, f"resp_{taken.headers['x-request-id']}", "completed")
        await online.http.delete(f"/v1/responses/{first}")
        again = await online.http.post("/v1/responses", json=asked, headers=key)
        assert (again.status_code, again.headers["x-request-id"]) == (200, taken.headers["x-request-id"])
        first = again.json()["id"]


async def test_calls_without_an_id_and_with_made_up_names_are_gone_on_with(
    online: Gateway, worker: Worker, upstream: Model
) -> None:
    """And what Gemini wants back with a call it gets."""
    extra = {"google": {"thought_signature": "abc"}}
    call = {
        "id": "",
        "type": "function",
        "function": {"name": "get weather", "arguments": "{}"},
        "extra_content": extra,
    }
    upstream.made_up = call
    response = await online.http.post("/v1/responses", json=HELLO | {"model": "theirs", "tools": [WEATHER]})
    (called,) = response.json()["output"]
    output = {"type": "function_call_output", "call_id": called["call_id"], "output": "Rain"}
    asked = {"model": "theirs", "input": [output], "previous_response_id": response.json()["id"], "tools": [WEATHER]}
    again = await online.http.post("/v1/responses", json=asked)
    assert again.status_code == 200, again.text
    (told,) = upstream.asked[-1]["messages"][1]["tool_calls"]
    assert told == {**call, "id": called["call_id"]}


async def test_a_number_that_is_too_large_is_refused(online: Gateway, worker: Worker) -> None:
    tool = json.dumps(WEATHER).replace('"object"', '"object", "maxProperties": 1e999', 1)
    content = json.dumps(HELLO)[:-1] + f', "background": true, "tools": [{tool}]}}'
    refused = await online.http.post("/v1/responses", content=content, headers={"Content-Type": "application/json"})
    assert (refused.status_code, "too large" in refused.json()["error"]["message"]) == (400, True), refused.text


async def test_what_is_deleted_or_not_to_be_stored_is_not_there_any_more(
    online: Gateway, worker: Worker, client: openai.AsyncOpenAI
) -> None:
    response = await client.responses.create(model="simulator", input="hello")
    await client.responses.delete(response.id)
    running = await client.responses.create(model="slow", input="hello", background=True)
    await client.responses.delete(running.id)
    unkept = await client.responses.create(model="simulator", input="hello", store=False)
    for response_id in (response.id, running.id, unkept.id):
        for method, path in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
            answer = await online.http.request(method, f"/v1/responses/{response_id}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
    job = await online.ended(running.id.removeprefix("resp_"))
    assert job["status"] == "cancelled"


async def test_head_does_not_wait_for_events(online: Gateway, worker: Worker) -> None:
    begun = (await online.http.post("/v1/responses", json={**HELLO, "model": "slow", "background": True})).json()
    async with asyncio.timeout(10):
        head = await online.http.head(f"/v1/responses/{begun['id']}", params={"stream": "true"})
    assert head.headers["content-type"].startswith("text/event-stream")
    await online.http.post(f"/v1/responses/{begun['id']}/cancel")

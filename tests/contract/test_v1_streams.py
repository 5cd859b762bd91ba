"""Streams of OpenAI's API, and where they go on, with pieces that the test stores itself."""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from pymongo.errors import AutoReconnect
from starlette.requests import Request

from broker import chunk_feed, chunks
from broker.cancellation import cancel_all
from broker.chunk_feed import Place
from broker.chunks import Chunk
from broker.job import Job, NewJob, Status
from gateway import calls
from gateway.calls import Call
from gateway.context import Context
from gateway.event_log import Known
from gateway.problems import Problem
from gateway.v1.generation import OpenaiForm
from gateway.v1.streams import answer_events
from gateway.websocket.subscription import Subscription
from tests.contract.test_v1 import HELLO, data_of, ids_of
from tests.deployments import Gateway
from worker.worker import Worker


@pytest.fixture
def shared(gateway: Gateway) -> Context:
    """What the gateway's routes share."""
    transport = gateway.http._transport
    assert isinstance(transport, httpx.ASGITransport)
    found: Context = transport.app.state.context  # type: ignore[attr-defined]
    return found


async def held(gateway: Gateway, **more: Any) -> Job:
    """A chat whose worker is the test."""
    payload = {"messages": HELLO["messages"]}
    new = NewJob("chat", "simulator", "admin", payload, stream=True, asked={"model": "simulator"}, **more)
    await gateway.broker.queue.submit(new)
    [job] = await gateway.claimed("simulator")
    return job


async def say(gateway: Gateway, job: Job, first: int, *texts: str) -> None:
    events = [json.dumps([{"index": 0, "delta": {"content": text}}]) for text in texts]
    await gateway.broker.chunks.add([(job, Chunk(job.id, str(job.token), first, events))])


RESULT = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "onetwothree"}, "finish_reason": "stop"}]
}


async def test_an_answer_whose_beginning_is_gone_is_told_whole(gateway: Gateway) -> None:
    job = await held(gateway)
    for number, text in enumerate(("one", "two", "three")):
        await say(gateway, job, number, text)
    await gateway.broker.queue.complete(job, {"result": RESULT, "chunks": 3})
    path, stream = f"/v1/chat/completions/{job.id}", {"stream": "true"}
    whole = await gateway.http.get(path, params=stream)
    await gateway.broker.database.chunks.delete_one({"_id.job": job.id, "_id.last": 0})
    anew, end, done = data_of((await gateway.http.get(path, params=stream)).text)
    assert anew["choices"][0]["delta"]["content"] == "onetwothree"
    assert (end["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")
    first, second, *_ = ids_of(whole.text)
    rest = data_of((await gateway.http.get(path, params=stream, headers={"Last-Event-ID": first})).text)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in rest[:-1]] == ["two", "three", None]
    await gateway.broker.database.chunks.delete_one({"_id.job": job.id, "_id.last": 2})
    refused = await gateway.http.get(path, params=stream, headers={"Last-Event-ID": second})
    assert (refused.status_code, refused.json()["error"]["code"]) == (410, "stream_expired")


async def test_a_slow_reader_whose_pieces_go_meanwhile_is_told_so(
    gateway: Gateway, shared: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He has been told some: the whole would be a second beginning."""
    monkeypatch.setattr(chunk_feed, "KEPT", 0)
    monkeypatch.setattr(chunks, "_AT_ONCE", 1)
    job = await held(gateway)
    for number, text in enumerate(("one", "two", "three")):
        await say(gateway, job, number, text)
    await gateway.broker.queue.complete(job, {"result": RESULT, "chunks": 3})
    for place in (None, Place(str(job.token), 1)):
        async with aclosing(answer_events(shared, job, place)) as events:
            told = [await anext(events)]
            await gateway.broker.database.chunks.delete_one({"_id.job": job.id, "_id.last": 2})
            with pytest.raises(Problem) as caught:
                told += [event async for event in events]
        assert caught.value.code == "stream_expired"
        assert b"onetwothree" not in b"".join(told)
        await say(gateway, job, 2, "three")


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/v1/chat/completions", "what is this?"),
        ("/v1/chat/completions", f"{'a' * 32}-7"),
        ("/v1/responses", "what is this?"),
        ("/v1/responses", "7"),
        ("/api/chat/stream", f"processing.1;0/?;;;{'a' * 32}-7;end"),
    ],
)
async def test_a_new_stream_is_told_from_its_beginning_whatever_was_told_of_others(
    gateway: Gateway, worker: Worker, path: str, known: str
) -> None:
    bodies = {"/api/chat/stream": {"message": "hello"}, "/v1/responses": {"model": "simulator", "input": "hello"}}
    body = {**bodies.get(path, HELLO), **({} if path == "/api/chat/stream" else {"stream": True})}
    response = await gateway.http.post(path, json=body, headers={"Last-Event-ID": known})
    assert response.status_code == 200, response.text
    plain = await gateway.http.post(path, json=body)
    assert response.text.count("delta") == plain.text.count("delta") > 20
    assert "restart" not in response.text
    listed = (await gateway.http.get("/api/jobs")).json()["jobs"]
    assert [job["status"] for job in listed] == ["completed"] * 2


async def test_a_stream_that_is_asked_for_again_by_its_key_goes_on(gateway: Gateway, worker: Worker) -> None:
    body, key = {**HELLO, "stream": True}, {"Idempotency-Key": "one"}
    whole = (await gateway.http.post("/v1/chat/completions", json=body, headers=key)).text
    known = ids_of(whole)[9]
    rest = await gateway.http.post("/v1/chat/completions", json=body, headers={**key, "Last-Event-ID": known})
    assert ids_of(rest.text) == ids_of(whole)[10:]
    refused = await gateway.http.post("/v1/chat/completions", json=body, headers={**key, "Last-Event-ID": "?"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_event_id")


async def test_the_same_key_for_an_answer_in_another_form_is_refused(gateway: Gateway, worker: Worker) -> None:
    key, usage = {"Idempotency-Key": "one"}, {"stream_options": {"include_usage": True}}
    path, stream = "/v1/chat/completions", {**HELLO, "stream": True}
    assert (await gateway.http.post(path, json=stream, headers=key)).status_code == 200
    other = await gateway.http.post(path, json={**stream, **usage}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")


async def test_head_does_not_wait_for_an_answer(gateway: Gateway) -> None:
    job = await held(gateway)
    async with asyncio.timeout(10):
        head = await gateway.http.head(f"/v1/chat/completions/{job.id}")
        stream = await gateway.http.head(f"/v1/chat/completions/{job.id}", params={"stream": "true"})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == "application/json"
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert {head.headers["x-request-id"], stream.headers["x-request-id"]} == {str(job.id)}
    assert (await gateway.http.head(f"/v1/chat/completions/{'0' * 24}")).status_code == 404


async def test_who_follows_a_job_that_waits_is_not_sent_its_payload_each_time(
    gateway: Gateway, shared: Context
) -> None:
    new = NewJob("chat", "simulator", "admin", {"messages": ["x" * 50_000]}, stream=True, asked={"echo": "y", "a": 1})
    await gateway.broker.queue.submit(new)
    job = await gateway.broker.reader.standing(new.id)
    assert (job.id, job.payload, job.asked, job.stream) == (new.id, {}, {"a": 1}, True)


async def test_what_was_generated_before_a_failure_is_told(gateway: Gateway, worker: Worker) -> None:
    """Also what was still being gathered when the engine failed."""
    body = {**HELLO, "stream": True, "simulate": {"fault": "reject", "after": 10}}
    told = data_of((await gateway.http.post("/v1/chat/completions", json=body)).text)
    assert told[-1]["error"]["code"]
    assert len(told) == 12


async def test_a_job_whose_client_has_gone_is_cancelled_though_the_database_is_away_for_a_moment(
    gateway: Gateway, shared: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, cancel, tries = await held(gateway), gateway.broker.queue.cancel, 0

    async def flaky(*args: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise AutoReconnect("no primary")
        await cancel(*args)

    monkeypatch.setattr(gateway.broker.queue, "cancel", flaky)
    call = Call(Request({"type": "http"}), shared, OpenaiForm(), cancels=True)
    await call.abandon(job)
    assert (await gateway.broker.reader.get(str(job.id), None)).status is Status.CANCELLED
    await call.abandon(job)
    assert tries == 4


async def test_a_job_whose_client_has_gone_goes_on_where_the_database_is_away_for_long(
    gateway: Gateway, shared: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = await held(gateway)

    async def away(*_: Any) -> None:
        raise AutoReconnect("no primary")

    monkeypatch.setattr(gateway.broker.queue, "cancel", away)
    monkeypatch.setattr(calls, "PATIENCE", 0.5)
    async with asyncio.timeout(10):
        await Call(Request({"type": "http"}), shared, OpenaiForm(), cancels=True).abandon(job)
    assert f"job {job.id} goes on without its client" in caplog.text


@pytest.mark.parametrize(("kinds", "watched"), [(["state", "token"], 1), (["state"], 0)])
async def test_only_who_is_to_be_told_of_tokens_has_them_kept(
    gateway: Gateway, shared: Context, kinds: list[str], watched: int
) -> None:
    job, said = await held(gateway), asyncio.Event()

    async def say_(message: Callable[[], str]) -> None:
        if json.loads(message())["type"] == "state":
            said.set()

    subscription = Subscription(shared, say_, frozenset(kinds), Known())
    running = asyncio.create_task(subscription.run(str(job.id), None))
    async with asyncio.timeout(10):
        await said.wait()
    assert len(shared.chunk_feed._recent) == watched
    await cancel_all([running])
    assert not shared.chunk_feed._recent

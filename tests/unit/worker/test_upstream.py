"""What becomes of a request to one server: what it refuses by name, how it fails in mid-answer, what it quotes."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from broker.errors import EngineError, EngineInputError, UpstreamBusy
from worker.engines.access import Access, Server
from worker.engines.base import Result
from worker.engines.upstream import Upstream

Reply = Callable[[dict[str, Any]], bytes]


def event(content: Any) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def word(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


END = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + b"data: [DONE]\n\n"


def answer(body: bytes, status: int = 200, kind: str = "text/event-stream") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def refusal(status: int, message: str) -> bytes:
    return answer(json.dumps({"error": {"message": message}}).encode(), status, "application/json")


@asynccontextmanager
async def upstream_that(reply: Reply, **access: Any) -> AsyncIterator[tuple[Upstream, list[dict[str, Any]]]]:
    """A server that answers each request by what ``reply`` makes of its body, and hangs up; and the bodies it got."""
    asked: list[dict[str, Any]] = []
    served = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        asked.append(json.loads(await reader.readexactly(int(length[1])) if length else b"{}"))
        writer.write(reply(asked[-1]))
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.transport.abort()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    upstream = Upstream(Server("The server", url, Access(1.0, 1.0, **access)))
    try:
        yield upstream, asked
    finally:
        await upstream.close()
        listener.close()
        await asyncio.gather(*served)


async def text_of(upstream: Upstream, **payload: Any) -> str:
    async with asyncio.timeout(5), aclosing(upstream.run("chat", "theirs", {"messages": [], **payload})) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, Result):
                return str(chunk.value["choices"][0]["message"]["content"])
    raise AssertionError("A run ends with a Result or an error.")


async def failure_of(upstream: Upstream) -> EngineError:
    with pytest.raises(EngineError) as failure:
        await text_of(upstream)
    return failure.value


# ── What it refuses by name ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["stream_options", "max_completion_tokens"])
async def test_what_a_refusal_quotes_of_one_request_changes_no_other(name: str) -> None:
    def reply(body: dict[str, Any]) -> bytes:
        if "tools" in body:
            return refusal(400, f"Invalid schema for function '{body['tools'][0]}': 'x' is not supported.")
        return answer(word("Good day") + END)

    async with upstream_that(reply) as (upstream, asked):
        with pytest.raises(EngineInputError, match="Invalid schema"):
            await text_of(upstream, max_tokens=5, tools=[name])
        assert await text_of(upstream, max_tokens=7) == "Good day"
    assert (asked[-1]["stream_options"], asked[-1]["max_tokens"]) == ({"include_usage": True}, 7)


async def test_what_is_refused_after_a_word_is_not_asked_again() -> None:
    refused = event({"error": {"message": "schema 'stream_options' is not supported", "code": 400}})
    async with upstream_that(lambda _: answer(word("Half ") + refused)) as (upstream, asked):
        assert isinstance(await failure_of(upstream), EngineInputError)
    assert len(asked) == 1


# ── How it ends ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_that_has_said_it_is_done_is_whole_though_its_connection_breaks() -> None:
    whole = word("Good day") + END
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with upstream_that(lambda _: head + b"%x\r\n%s\r\n" % (len(whole), whole)) as (upstream, _):
        assert await text_of(upstream) == "Good day"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_status_that_is_told_in_mid_stream_is_as_one_that_is_answered(status: int) -> None:
    told = event({"error": {"message": "EngineCore died", "code": status}})
    async with upstream_that(lambda _: answer(word("Half ") + told)) as (upstream, _):
        failure = await failure_of(upstream)
    assert isinstance(failure, UpstreamBusy)
    assert (failure.code, failure.details, failure.permanent) == ("upstream_error", {"status": status}, False)
    assert "The server failed in mid-stream: EngineCore died" in failure.message


async def test_a_key_that_is_refused_in_mid_stream_is_named_as_such() -> None:
    told = event({"error": {"message": "expired", "code": 401}})
    async with upstream_that(lambda _: answer(told)) as (upstream, _):
        assert (await failure_of(upstream)).code == "upstream_refused_key"


@pytest.mark.parametrize("error", ["overloaded", {"message": "no", "code": "server_error"}, {"code": 1301}])
async def test_a_failure_in_mid_stream_without_a_status_is_the_servers(error: Any) -> None:
    async with upstream_that(lambda _: answer(event({"error": error}))) as (upstream, _):
        failure = await failure_of(upstream)
    assert (failure.code, failure.details, failure.permanent) == ("upstream_error", {}, False)


# ── What it quotes ───────────────────────────────────────────────────────────────────────────────────────────────

KEYS = {"headers": {"Authorization": "Bearer sk-hunter2", "api-key": "hunter2-too"}, "query": {"key": "my-hunter2"}}
QUOTED = "Authorization: Bearer sk-hunter2, sk-hunter2, hunter2-too, ?key=my-hunter2"


@pytest.mark.parametrize(
    "reply",
    [
        refusal(401, QUOTED),
        refusal(400, QUOTED),
        answer(QUOTED.encode(), 500, "text/plain"),
        # What is told of it is cut off in the middle of a key.
        *(refusal(500, "x" * length + "sk-hunter2") for length in range(990, 998, 3)),
        answer(event({"error": {"message": QUOTED, "code": 500}})),
        answer(event({"error": QUOTED})),
        answer(f"data: {QUOTED}\n\n".encode()),
        answer(event([QUOTED])),
    ],
)
async def test_no_key_that_a_server_quotes_is_told(reply: bytes) -> None:
    async with upstream_that(lambda _: reply, **KEYS) as (upstream, _):
        message = (await failure_of(upstream)).message
    assert "hunter" not in message
    assert "sk-" not in message


# ── What it lists ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_models_are_listed_as_the_server_wants_them_named() -> None:
    listed = json.dumps({"data": [{"id": "models/llama.gguf"}, {"id": "qwen"}]}).encode()
    async with upstream_that(lambda _: answer(listed, kind="application/json")) as (upstream, _):
        assert await upstream.models() == ["models/llama.gguf", "qwen"]

"""The engine for upstreams, against real HTTP servers that fail in all the ways there are."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from broker.errors import (
    BackendsHeldBack,
    EngineError,
    EngineInputError,
    UpstreamBusy,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from config import OpenaiSettings
from config.upstreams import BackendSettings
from tests.conditions import eventually
from tests.upstreams import Behaviour, Upstream, upstreams
from worker.backends.backend import Backend
from worker.engines import upstream
from worker.engines.base import Delta, Request, Result
from worker.engines.openai import OpenaiEngine
from worker.engines.upstream import _message_of

HELLO = [{"role": "user", "content": "hello"}]


def request(timeout: float | None = 5.0, **payload: Any) -> Request:
    return Request("job", 1, {"messages": HELLO, **payload}, timeout=timeout)


async def text_of(engine: OpenaiEngine, asked: Request | None = None) -> str:
    """Reads no further than to the result, as attempts do."""
    text = ""
    async with aclosing(engine.run(asked or request())) as chunks:
        async for chunk in chunks:
            match chunk:
                case Delta():
                    text += chunk.text
                case Result(value):
                    assert value["choices"][0]["message"]["content"] == text
                    return text
    raise AssertionError("A run ends with a Result or an error.")


@asynccontextmanager
async def engine_for(*servers: Upstream, **entry: Any) -> AsyncIterator[OpenaiEngine]:
    """One upstream as an entry of its own, several as backends called a, b, c …"""
    where: dict[str, Any] = {"base_url": servers[0].url}
    if len(servers) > 1:
        where = {"backends": [{"name": "abcdef"[i], "base_url": one.url} for i, one in enumerate(servers)]}
    settings = OpenaiSettings.model_validate(
        {"task": "chat", "engine": "openai", "model": "theirs", "timeout": 5, **where, **entry}
    )
    engine = OpenaiEngine("ours", settings)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


# ── What goes there ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_headers_and_a_query_go_with_each_request_as_azure_needs_them() -> None:
    async with upstreams(1) as (server,):
        entry = {"headers": {"api-key": "s3cret"}, "query": {"api-version": "2024-10-21"}}
        async with engine_for(server, **entry) as engine:
            assert await text_of(engine) == "Good day"
            assert "s3cret" not in repr(engine.backends())
    assert server.headers[0]["api-key"] == "s3cret"
    assert "authorization" not in server.headers[0]
    assert server.queries == [{"api-version": "2024-10-21"}]


async def test_each_backend_has_its_own_key_and_its_own_name_of_the_model() -> None:
    async with upstreams(2) as (one, other):
        backends = [
            {"name": "a", "base_url": one.url, "api_key": "first"},
            {"name": "b", "base_url": other.url, "model": "elsewhere", "api_key": "second"},
        ]
        async with engine_for(one, other, backends=backends) as engine:
            for _ in range(2):
                await text_of(engine)
    assert (one.headers[0]["authorization"], one.asked[0]["model"]) == ("Bearer first", "theirs")
    assert (other.headers[0]["authorization"], other.asked[0]["model"]) == ("Bearer second", "elsewhere")


async def test_what_is_ours_never_goes_there() -> None:
    async with upstreams(2) as (one, other), engine_for(one, other) as engine:
        ours = {"modelKey": "b", "upstream_model": "another", "adapter": "x", "simulate": {"fault": "crash"}}
        await text_of(engine, request(**ours, seed=7))
    assert one.asked == []
    [asked] = other.asked
    assert set(asked) == {"messages", "seed", "model", "stream", "stream_options"}
    assert asked["model"] == "another"


@pytest.mark.parametrize(
    ("message", "given", "taken"),
    [
        ("Unknown parameter: 'stream_options'.", "stream_options", None),
        ("Unrecognized request argument supplied: stream_options", "stream_options", None),
        (
            "Unsupported parameter: 'max_tokens' is not supported here. Use 'max_completion_tokens' instead.",
            "max_tokens",
            "max_completion_tokens",
        ),
    ],
)
async def test_what_a_server_refuses_by_name_is_said_otherwise_from_then_on(
    message: str, given: str, taken: str | None
) -> None:
    async with upstreams(1) as (server,), engine_for(server) as engine:
        server.next.append(Behaviour(status=400, message=message))
        for _ in range(2):
            assert await text_of(engine, request(max_tokens=9)) == "Good day"
    assert [given in asked for asked in server.asked] == [True, False, False]
    if taken is not None:
        assert [asked.get(taken) for asked in server.asked] == [None, 9, 9]


async def test_a_number_that_is_too_large_is_refused_as_it_is() -> None:
    """A vLLM names both parameters then."""
    told = "'max_tokens' or 'max_completion_tokens' is too large: 9. This model's maximum context length is 8."
    async with upstreams(1) as (server,), engine_for(server) as engine:
        server.usual = Behaviour(status=400, message=told)
        with pytest.raises(EngineInputError, match="too large"):
            await text_of(engine, request(max_tokens=9))
    assert len(server.asked) == 1


async def test_an_engine_that_was_stopped_and_started_answers_again() -> None:
    async with upstreams(1) as (server,), engine_for(server) as engine:
        assert await text_of(engine) == "Good day"
        await engine.stop()
        await engine.start()
        assert await text_of(engine) == "Good day"


# ── How it fails ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["hang", "stall"])
async def test_a_server_that_is_silent_for_too_long_is_named(fault: Any) -> None:
    async with upstreams(1) as (server,), engine_for(server, read_timeout=0.2) as engine:
        server.usual = Behaviour(fault=fault)
        with pytest.raises(UpstreamTimeout, match=f"The upstream of ours at {server.url} was silent") as failure:
            await text_of(engine)
        assert (failure.value.code, failure.value.permanent) == ("upstream_timeout", False)


async def test_an_answer_has_no_more_time_than_its_attempt() -> None:
    async with upstreams(1) as (server,), engine_for(server) as engine:
        server.usual = Behaviour(fault="stall")
        with pytest.raises(UpstreamTimeout, match="longer than the time that the request has"):
            await text_of(engine, request(timeout=0.3))


async def test_an_address_where_nobody_picks_up_is_not_waited_for_long() -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for caller in (first, second):  # more than are queued: nobody else gets through
            caller.setblocking(False)
            caller.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        settings = OpenaiSettings(task="chat", engine="openai", base_url=url, connect_timeout=0.2)
        engine = OpenaiEngine("ours", settings)
        with pytest.raises(UpstreamTimeout, match=f"The upstream of ours at {url} could not be connected to in time"):
            await text_of(engine)
        await engine.stop()


async def test_a_connection_that_breaks_off_in_mid_answer_is_a_failure_of_the_server() -> None:
    async with upstreams(1) as (server,), engine_for(server) as engine:
        server.usual = Behaviour(fault="drop")
        with pytest.raises(UpstreamUnreachable):
            await text_of(engine)
        [state] = engine.backends()
        assert state.last_error is not None
        assert server.url in state.last_error


@pytest.mark.parametrize("where", ["api_key", "headers"])
async def test_a_key_that_cannot_be_sent_is_in_no_message(where: str) -> None:
    """Wherever it came from: settings do not let it pass."""
    secret = SecretStr("sk-hunter2\n")
    async with upstreams(1) as (server,):
        backend = BackendSettings(name="a", base_url=server.url)
        given: dict[str, Any] = {"api_key": secret} if where == "api_key" else {"headers": {"api-key": secret}}
        entry = OpenaiSettings(task="chat", engine="openai", base_url=server.url)
        one = Backend("The upstream of ours", backend.model_copy(update=given), entry)
        with pytest.raises(EngineError) as raised:
            await one.upstream.models()
        await one.close()
    assert "cannot be sent" in raised.value.message
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("task", ["chat", "embedding"])
async def test_an_answer_that_cannot_be_decoded_is_a_failure_of_the_server(task: str) -> None:
    async with upstreams(1) as (server,), engine_for(server) as engine:
        server.usual = Behaviour(headers={"Content-Encoding": "gzip"})
        with pytest.raises(UpstreamUnreachable):
            await text_of(engine, Request("job", 1, {"messages": HELLO, "input": ["x"]}, task=task, timeout=5.0))


def test_errors_of_gemini_come_in_a_list() -> None:
    assert _message_of([{"error": {"code": 400, "message": "API key not valid"}}]) == "API key not valid"


# ── Several of them ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_another_server_is_asked_where_one_fails_before_it_has_answered() -> None:
    async with upstreams(2) as (one, other), engine_for(one, other) as engine:
        one.usual = Behaviour(status=500)
        assert [await text_of(engine) for _ in range(4)] == ["Good day"] * 4
    assert len(one.asked) >= 1
    assert len(other.asked) == 4


@pytest.mark.parametrize("status", [401, 404, 429, 503])
async def test_what_is_one_servers_own_fault_is_asked_of_another(status: int) -> None:
    async with upstreams(2) as (one, other), engine_for(one, other) as engine:
        one.usual = Behaviour(status=status)
        assert await text_of(engine) == "Good day"
    assert (len(one.asked), len(other.asked)) == (1, 1)


async def test_what_is_wrong_with_the_input_is_asked_of_nobody_else() -> None:
    async with upstreams(2) as (one, other), engine_for(one, other) as engine:
        one.usual = other.usual = Behaviour(status=400)
        with pytest.raises(EngineInputError):
            await text_of(engine)
        assert {state.state for state in engine.backends()} == {"closed"}
    assert len(one.asked) + len(other.asked) == 1


@pytest.mark.parametrize("fault", ["drop", "stall", "unfinished"])
async def test_no_two_answers_are_joined(fault: Any) -> None:
    """Once a word of it is out, an attempt has failed with its server."""
    patience = 2 if fault == "stall" else 5
    async with upstreams(2) as (one, other), engine_for(one, other, read_timeout=patience) as engine:
        one.usual = Behaviour(fault=fault)
        with pytest.raises(EngineError):
            await text_of(engine)
    assert (len(one.asked), len(other.asked)) == (1, 0)


async def test_when_all_have_failed_the_last_one_is_named() -> None:
    async with upstreams(3) as servers, engine_for(*servers) as engine:
        for server in servers:
            server.usual = Behaviour(status=502, message="gone")
        with pytest.raises(UpstreamBusy, match=r"The backend c of ours .* answered 502: gone"):
            await text_of(engine)
    assert [len(server.asked) for server in servers] == [1, 1, 1]


async def test_a_request_that_names_a_server_goes_to_no_other() -> None:
    async with upstreams(2) as (one, other), engine_for(one, other) as engine:
        one.usual = Behaviour(status=500)
        with pytest.raises(UpstreamBusy):
            await text_of(engine, request(modelKey="a"))
        with pytest.raises(EngineInputError, match="no backend 'z', but a, b"):
            await text_of(engine, request(modelKey="z"))
    assert len(other.asked) == 0


async def test_a_server_gets_no_more_at_once_than_it_may() -> None:
    gate = asyncio.Event()
    async with upstreams(2) as (one, other):
        backends = [{"name": name, "base_url": s.url, "max_concurrent": 1} for name, s in (("a", one), ("b", other))]
        one.usual = other.usual = Behaviour(gate=gate)
        async with engine_for(one, other, backends=backends) as engine:
            answers = [asyncio.create_task(text_of(engine)) for _ in range(6)]

            async def both_busy() -> bool:
                return len(one.asked) == len(other.asked) == 1

            await eventually(both_busy)
            assert [state.running for state in engine.backends()] == [1, 1]
            gate.set()
            assert await asyncio.gather(*answers) == ["Good day"] * 6
            assert [state.running for state in engine.backends()] == [0, 0]
    assert len(one.asked) + len(other.asked) == 6


# ── Left alone ───────────────────────────────────────────────────────────────────────────────────────────────────

BREAKER = {"failures": 2, "window": 60, "pause": 2.0}


async def test_a_server_that_keeps_failing_is_left_alone_and_then_tried_by_one_request() -> None:
    async with upstreams(1) as (server,), engine_for(server, breaker=BREAKER) as engine:
        server.usual = Behaviour(status=500)
        for _ in range(2):
            with pytest.raises(UpstreamBusy):
                await text_of(engine)
        with pytest.raises(BackendsHeldBack, match="left alone") as held:
            await text_of(engine)
        assert 0 < held.value.retry_after <= BREAKER["pause"]
        assert (len(server.asked), engine.backends()[0].state) == (2, "open")
        gate = asyncio.Event()
        server.usual = Behaviour(gate=gate)

        async def half_open() -> bool:
            return engine.backends()[0].state == "half-open"

        await eventually(half_open)
        async with aclosing(engine.run(request())) as probe:
            # Its first word lets the others in again, its end is not waited for.
            assert isinstance(await anext(probe), Delta)
            assert engine.backends()[0].state == "closed"
            gate.set()
            assert await text_of(engine) == "Good day"


async def test_who_waits_for_room_goes_to_a_server_that_is_left_alone_no_more() -> None:
    gate = asyncio.Event()
    async with upstreams(2) as (one, other):
        backends = [{"name": name, "base_url": s.url, "max_concurrent": 1} for name, s in (("a", one), ("b", other))]
        async with engine_for(one, other, backends=backends, breaker=BREAKER) as engine:
            other.usual = Behaviour(status=500)
            for _ in range(2):
                with pytest.raises(UpstreamBusy):
                    await text_of(engine, request(modelKey="b"))
            one.usual, other.usual = Behaviour(gate=gate), Behaviour()
            busy = asyncio.create_task(text_of(engine))

            async def under_way() -> bool:
                return len(one.asked) == 1

            await eventually(under_way)
            state = engine.backends()[1]
            assert (state.state, state.last_error is not None) == ("open", True)
            assert await text_of(engine) == "Good day"
            assert not busy.done()
            gate.set()
            await busy
            assert engine.backends()[1].last_error is None
    assert (len(one.asked), len(other.asked)) == (1, 3)


async def test_a_server_is_left_alone_for_as_long_as_it_asks() -> None:
    async with upstreams(2) as (one, other), engine_for(one, other) as engine:
        one.usual = Behaviour(status=429, headers={"Retry-After": "120"})
        assert [await text_of(engine) for _ in range(5)] == ["Good day"] * 5
        state, _ = engine.backends()
    assert len(one.asked) == 1
    assert state.state == "open"
    assert 110 < state.retry_in <= 120


# ── What they list ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_servers_are_asked_for_their_models_only_where_that_is_wanted() -> None:
    async with upstreams(1) as (server,):
        async with engine_for(server) as engine:
            await text_of(engine)
            assert engine.listed() == ()
        assert server.looks == 0
        server.models = ["z-allowed", "a-forbidden", "models/llama"]
        async with engine_for(server, allowed_models=["z-*"]) as engine:

            async def looked() -> bool:
                return len(engine.listed()) == 3

            await eventually(looked)
            assert engine.listed() == ("z-allowed", "a-forbidden", "models/llama")


async def test_names_that_cannot_be_shown_are_not_listed() -> None:
    async with upstreams(1) as (server,):
        server.models = ["good", "a\0b", "a\nb", None]  # type: ignore[list-item]
        async with engine_for(server, allowed_models=["*"]) as engine:

            async def looked() -> bool:
                return engine.listed() == ("good",)

            await eventually(looked)


async def test_a_listed_model_is_asked_of_the_server_that_lists_it() -> None:
    async with upstreams(2) as (one, other):
        other.models = ["special"]
        async with engine_for(one, other, allowed_models=["*"]) as engine:

            async def looked() -> bool:
                return engine.listed() == ("special", "theirs")

            await eventually(looked)
            for _ in range(3):
                await text_of(engine, request(upstream_model="special"))
    assert [asked["model"] for asked in other.asked] == ["special"] * 3
    assert one.asked == []


async def test_a_list_that_cannot_be_read_ends_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.backends.discovery.EVERY", 0.05)
    async with upstreams(2) as (one, other):
        one.headers_of_lists = {"Content-Encoding": "gzip"}
        other.models = ["special"]
        async with engine_for(one, other, allowed_models=["*"]) as engine:

            async def looked() -> bool:
                return engine.listed() == ("special",) and one.looks > 1

            await eventually(looked)
            one.headers_of_lists = {}

            async def all_there() -> bool:
                return engine.listed() == ("special", "theirs")

            await eventually(all_there)


async def test_a_fault_of_our_own_ends_no_search_either(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("worker.backends.discovery.EVERY", 0.05)
    async with upstreams(1) as (server,):
        faults = [ZeroDivisionError("ours"), RecursionError("ours")]
        models = upstream.Upstream.models

        async def faulty(self: upstream.Upstream) -> list[str]:
            if faults:
                raise faults.pop()
            return await models(self)

        monkeypatch.setattr(upstream.Upstream, "models", faulty)
        async with engine_for(server, allowed_models=["*"]) as engine:

            async def looked() -> bool:
                return engine.listed() == ("theirs",)

            await eventually(looked)
    assert "ZeroDivisionError" in caplog.text

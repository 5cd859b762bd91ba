import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from broker.errors import EngineError, EngineInputError, EngineNotRunning, EngineUnavailable
from config import OpenaiSettings, SimulatorSettings
from tests.conditions import eventually
from tests.ports import free_port
from worker.engines.base import Delta, Engine, Footprint, Loadable, Request, Result
from worker.engines.openai import OpenaiEngine
from worker.engines.simulator import LoadableSimulator, Simulator

CHAT = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0.0}


def request(attempt: int = 1, **payload: Any) -> Request:
    return Request("job", attempt, CHAT | payload)


async def run(engine: Engine, request: Request) -> tuple[str, Result | None]:
    text, result = "", None
    async for chunk in engine.run(request):
        if isinstance(chunk, Delta):
            text += chunk.text
        if isinstance(chunk, Result):
            result = chunk
    return text, result


def simulator(**options: Any) -> Simulator:
    settings = {"tokens_per_second": 10_000, "tokens": 5, "faults": True} | options
    return Simulator(SimulatorSettings(task="chat", engine="simulator", **settings))


async def test_the_simulator_says_that_it_is_one_and_what_it_streams_is_its_result() -> None:
    text, result = await run(simulator(), request())
    assert text.startswith("[simulator] ")
    assert result is not None
    [choice] = result.value["choices"]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert result.value["usage"] == {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}


async def test_the_simulator_is_deterministic_and_heeds_the_prompt() -> None:
    again = [await run(simulator(), request()) for _ in range(2)]
    other, _ = await run(simulator(), request(messages=[{"role": "user", "content": "else"}]))
    assert again[0] == again[1]
    assert other != again[0][0]


async def test_the_simulator_stops_at_max_tokens() -> None:
    _, result = await run(simulator(), request(max_tokens=2))
    assert result is not None
    [choice] = result.value["choices"]
    assert (choice["finish_reason"], result.value["usage"]["completion_tokens"]) == ("length", 2)


async def test_faults_befall_the_attempts_asked_for_and_only_where_they_are_allowed() -> None:
    fault = {"simulate": {"fault": "error", "attempts": 1}}
    with pytest.raises(EngineError):
        await run(simulator(), request(1, **fault))
    assert (await run(simulator(), request(2, **fault)))[1] is not None
    assert (await run(simulator(faults=False), request(1, **fault)))[1] is not None


async def test_garbage_ends_without_a_result() -> None:
    with pytest.raises(EngineError, match="without a finish_reason"):
        await run(simulator(), request(simulate={"fault": "garbage", "after": 2}))


def loadable(**options: Any) -> LoadableSimulator:
    settings = {"tokens_per_second": 10_000, "tokens": 5, "memory": 1000} | options
    return LoadableSimulator(SimulatorSettings(task="chat", engine="simulator", **settings))


async def test_a_simulator_that_takes_memory_is_loaded_put_to_sleep_and_woken() -> None:
    engine = loadable()
    assert isinstance(engine, Loadable)
    assert not isinstance(simulator(), Loadable)
    assert (await engine.unable(), engine.need(5000), await engine.healthy()) == (None, 1000, False)
    with pytest.raises(EngineNotRunning):
        await run(engine, request())
    await engine.start()
    assert (await engine.footprint(), await engine.healthy()) == (Footprint(1000, 0), True)
    await engine.sleep()
    assert (await engine.footprint(), await engine.healthy()) == (Footprint(0, 1000), True)
    await engine.wake()
    assert await run(engine, request()) == await run(simulator(), request())
    await engine.stop()
    assert (await engine.footprint(), await engine.healthy()) == (Footprint(0, 0), False)


async def test_a_simulator_takes_its_time_to_load_and_a_tenth_of_it_to_wake() -> None:
    engine, phases, loop = loadable(load_time=0.5), [], asyncio.get_running_loop()
    engine.on_phase = phases.append
    began = loop.time()
    await engine.start()
    started = loop.time()
    await engine.sleep()
    await engine.wake()
    assert phases == ["starting", "loading"]
    assert started - began >= 0.5
    assert 0.05 <= loop.time() - started < 0.4


async def test_what_is_sent_to_a_simulator_that_sleeps_hangs_until_it_is_woken() -> None:
    engine = loadable()
    await engine.start()
    await engine.sleep()
    sent = asyncio.ensure_future(run(engine, request()))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(sent), 0.2)
    await engine.wake()
    assert (await sent)[1] is not None


async def _is_true(value: bool) -> bool:
    return value


@asynccontextmanager
async def upstream(answer: Callable[[HttpRequest], Awaitable[Response]]) -> AsyncIterator[OpenaiEngine]:
    """A real HTTP server that answers chat completions, and the engine in front of it."""
    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: _is_true(server.started))
    settings = OpenaiSettings(
        task="chat", engine="openai", base_url=f"http://127.0.0.1:{port}/v1", model="theirs", timeout=5
    )
    engine = OpenaiEngine("ours", settings)
    try:
        yield engine
    finally:
        await engine.stop()
        server.should_exit = True
        await serving


def sse(*events: str) -> Response:
    return Response("".join(f"data: {event}\n\n" for event in events), media_type="text/event-stream")


def piece(content: str | None, finish: str | None = None) -> str:
    import json

    return json.dumps({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]})


async def test_an_upstreams_stream_becomes_the_result() -> None:
    asked: list[dict[str, Any]] = []

    async def answer(http: HttpRequest) -> Response:
        asked.append(await http.json())
        usage = '{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}'
        return sse(piece("Good "), piece("day"), piece(None, "stop"), usage, "[DONE]")

    async with upstream(answer) as engine:
        text, result = await run(engine, request(simulate={"fault": "crash"}))
    assert text == "Good day"
    assert result is not None
    [choice] = result.value["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Good day", "stop")
    assert result.value["usage"]["total_tokens"] == 3
    assert (asked[0]["model"], asked[0]["stream"], asked[0]["messages"]) == ("theirs", True, CHAT["messages"])
    assert "simulate" not in asked[0]


@pytest.mark.parametrize("ends", [True, False])
async def test_a_connection_is_kept_where_the_stream_ends_and_no_answer_waits_for_one_that_does_not(ends: bool) -> None:
    connections: set[Any] = set()
    for_ever = asyncio.Event()

    async def events() -> AsyncIterator[str]:
        for event in (piece("Good day"), piece(None, "stop"), "[DONE]"):
            yield f"data: {event}\n\n"
            await asyncio.sleep(0)  # each is sent by itself
        if not ends:
            await for_ever.wait()

    async def answer(http: HttpRequest) -> Response:
        connections.add(http.client)
        return StreamingResponse(events(), media_type="text/event-stream")

    async with upstream(answer) as engine:
        for _ in range(3):
            assert (await run(engine, request()))[0] == "Good day"
        for_ever.set()
    assert len(connections) == (1 if ends else 3)


@pytest.mark.parametrize("reason", [None, "abort", "error"])
async def test_done_without_the_reason_of_a_finished_answer_is_a_failure(reason: str | None) -> None:
    async def answer(http: HttpRequest) -> Response:
        return sse(piece("Good"), piece("day", reason), "[DONE]")

    async with upstream(answer) as engine:
        with pytest.raises(EngineError) as failure:
            await run(engine, request())
    assert (failure.value.code, failure.value.permanent) == ("answer_cut_off", False)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, EngineInputError),
        (422, EngineInputError),
        (401, EngineInputError),
        (429, EngineUnavailable),
        (500, EngineUnavailable),
        (503, EngineUnavailable),
    ],
)
async def test_an_upstreams_refusal_is_permanent_where_asking_again_is_in_vain(
    status: int, kind: type[EngineError]
) -> None:
    async def answer(http: HttpRequest) -> Response:
        return JSONResponse({"error": {"message": "context too long"}}, status)

    async with upstream(answer) as engine:
        with pytest.raises(kind, match="context too long"):
            await run(engine, request())


@pytest.mark.parametrize("event", ["{", "[]", '{"error": {"message": "out of memory"}}'])
async def test_what_is_no_chunk_is_a_failure(event: str) -> None:
    async def answer(http: HttpRequest) -> Response:
        return sse(piece("Good"), event)

    async with upstream(answer) as engine:
        with pytest.raises(EngineError):
            await run(engine, request())


@pytest.mark.parametrize(
    ("code", "permanent"), [(400, True), (422, True), (500, False), ("server_error", False), (None, False)]
)
async def test_what_is_refused_when_the_stream_has_begun_is_permanent_too(code: object, permanent: bool) -> None:
    async def answer(http: HttpRequest) -> Response:
        return sse(json.dumps({"error": {"message": "no such schema", "code": code}}), "[DONE]")

    async with upstream(answer) as engine:
        with pytest.raises(EngineError, match="no such schema") as failure:
            await run(engine, request())
    assert failure.value.permanent is permanent


async def test_an_upstream_that_is_not_there_is_named() -> None:
    port = free_port()
    settings = OpenaiSettings(task="chat", engine="openai", base_url=f"http://127.0.0.1:{port}/v1")
    engine = OpenaiEngine("ours", settings)
    with pytest.raises(EngineUnavailable, match=f"ours at http://127.0.0.1:{port}"):
        await run(engine, request())
    await engine.stop()

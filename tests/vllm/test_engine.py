"""The vLLM engine on the real vLLM: it starts, answers, refuses, and stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from broker.errors import EngineError, EngineInputError, EngineUnavailable
from tests.vllm.conftest import engine_of
from tests.vllm.processes import named as named
from tests.vllm.processes import record_of
from worker.engine_log import Phase
from worker.engine_process import socket_in
from worker.engines.base import Delta, Request, Result
from worker.engines.vllm import VllmEngine

# A start takes half a minute, so that one engine serves all tests; the last one ends it.
pytestmark = pytest.mark.asyncio(loop_scope="module")

# Seconds after which vLLM itself cuts off what still runs when it is told to stop: the entry's `timeout`.
CUT_OFF_AFTER = 10


def request(text: str = "hi", **options: Any) -> Request:
    return Request("job", 1, {"messages": [{"role": "user", "content": text}], "temperature": 0.0} | options)


async def answer(engine: VllmEngine, asked: Request, begun: asyncio.Event | None = None) -> tuple[str, dict[str, Any]]:
    """``begun`` is set with the first text."""
    text = ""
    async with aclosing(engine.run(asked)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, Delta):
                text += chunk.text
                if begun is not None:
                    begun.set()
            if isinstance(chunk, Result):
                return text, dict(chunk.value)
    raise AssertionError("no result")


async def until_running(engine: VllmEngine, asked: Request) -> "asyncio.Task[tuple[str, dict[str, Any]]]":
    """A request of which the first text has come."""
    begun = asyncio.Event()
    task = asyncio.create_task(answer(engine, asked, begun))
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    waiting.cancel()
    assert begun.is_set(), task.exception() if task.done() else "nothing came"
    return task


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unstarted(python: str, tiny: Path, home: Path) -> AsyncIterator[VllmEngine]:
    engine = engine_of(python, tiny, home, timeout=CUT_OFF_AFTER)
    yield engine
    await engine.stop(grace=0.0)


@pytest_asyncio.fixture(loop_scope="module")
async def engine(unstarted: VllmEngine) -> VllmEngine:
    """One that is ready."""
    if not await unstarted.healthy():
        await unstarted.start()
    return unstarted


@pytest_asyncio.fixture(loop_scope="module")
async def direct(engine: VllmEngine, home: Path) -> AsyncIterator[httpx.AsyncClient]:
    """To the engine itself, past everything that is ours."""
    (directory,) = (home / "run" / "engines").iterdir()
    transport = httpx.AsyncHTTPTransport(uds=str(socket_in(directory)))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=60.0) as client:
        yield client


async def test_a_start_tells_its_phases_and_the_engine_is_healthy(unstarted: VllmEngine, home: Path) -> None:
    phases: list[Phase] = []
    unstarted.on_phase = phases.append
    assert not await unstarted.healthy()
    await unstarted.start()
    assert await unstarted.healthy()
    assert phases == [Phase.STARTING, Phase.LOADING, Phase.COMPILING, Phase.READY]
    (directory,) = (home / "run" / "engines").iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700


async def test_a_chat_is_streamed_and_its_tokens_are_counted(engine: VllmEngine) -> None:
    text, result = await answer(engine, request(max_tokens=40))
    (choice,) = result["choices"]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert len(text) == 40, "a token is a character"
    assert choice["finish_reason"] == "length"
    # The template: "<s>user: hi\nassistant: ".
    assert result["usage"]["prompt_tokens"] == 1 + len("user: hi\nassistant: ")
    assert result["usage"]["completion_tokens"] == 40
    assert (await answer(engine, request(max_tokens=40)))[0] == text


async def test_ten_chats_run_side_by_side(engine: VllmEngine) -> None:
    asked = [request(f"prompt {number}", max_tokens=100) for number in range(10)]
    results = await asyncio.gather(*(answer(engine, one) for one in asked))
    assert [result["usage"]["completion_tokens"] for _, result in results] == [100] * 10


@pytest.mark.parametrize(
    ("options", "words"),
    [({"max_tokens": 50000}, "32768"), ({"temperature": -1.0}, "temperature")],
    ids=["more tokens than the context", "a value out of range"],
)
async def test_what_vllm_refuses_is_permanent_with_its_words(
    engine: VllmEngine, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(EngineInputError, match=words) as failure:
        await answer(engine, request(**options))
    assert failure.value.permanent


async def test_a_prompt_longer_than_the_context_is_permanent(engine: VllmEngine) -> None:
    with pytest.raises(EngineInputError, match="32768"):
        await answer(engine, request("x" * 40_000, max_tokens=10))
    assert await engine.healthy()


async def test_an_answer_that_vllm_has_aborted_is_a_failure(engine: VllmEngine, direct: httpx.AsyncClient) -> None:
    running = await until_running(engine, request(max_tokens=20_000))
    assert (await direct.post("/abort_requests", json={})).json() == {"status": "aborted", "aborted": 1}
    with pytest.raises(EngineError) as failure:
        await running
    assert not failure.value.permanent
    assert await engine.healthy()


async def said(client: httpx.AsyncClient, body: dict[str, Any], begun: asyncio.Event) -> str:
    """All that vLLM sends, however it ends. ``begun`` is set with the first of it."""
    text = ""
    with suppress(httpx.TransportError):
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for piece in response.aiter_text():
                text += piece
                begun.set()
    return text


async def test_a_stop_lets_finish_what_can_and_what_is_cut_off_is_a_failure(
    engine: VllmEngine, home: Path, direct: httpx.AsyncClient
) -> None:
    record, begun = record_of(home), asyncio.Event()
    endless: dict[str, Any] = {"max_tokens": 30_000}
    body = {**request(**endless).payload, "model": "tiny", "stream": True}
    raw = asyncio.create_task(said(direct, body, begun))
    cut_off = await until_running(engine, request(**endless))
    short = await until_running(engine, request(max_tokens=100))
    await asyncio.wait_for(begun.wait(), 60)
    # vLLM does not always come to its end after it has cut off what runs.
    await engine.stop(grace=CUT_OFF_AFTER + 5.0)
    assert (await short)[1]["usage"]["completion_tokens"] == 100
    # What may look like an orderly end on the wire, a last `data: [DONE]`, is none: no reason goes before it.
    assert '"finish_reason":"' not in await raw
    with pytest.raises(EngineError):
        await cut_off
    assert record.members() == []
    assert list((home / "run" / "engines").iterdir()) == []
    with pytest.raises(EngineUnavailable, match="does not run"):
        await answer(engine, request())

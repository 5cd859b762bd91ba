"""The vLLM engine on the real vLLM: it starts, answers, and whatever of it is killed, nothing is left."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.errors import EngineError, EngineInputError, EngineUnavailable
from tests.vllm.conftest import engine_of
from worker.engine_log import Phase
from worker.engine_process import RECORD
from worker.engine_record import EngineRecord, Process
from worker.engines.base import Delta, Request, Result
from worker.engines.vllm import VllmEngine

# A start takes half a minute, so that one engine serves many tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")


def request(text: str = "hi", **options: Any) -> Request:
    return Request("job", 1, {"messages": [{"role": "user", "content": text}], "temperature": 0.0} | options)


# Far more than any test waits for.
LONG: dict[str, Any] = {"max_tokens": 30_000, "ignore_eos": True}


async def answer(engine: VllmEngine, asked: Request) -> tuple[str, dict[str, Any]]:
    text, result = "", None
    async for chunk in engine.run(asked):
        if isinstance(chunk, Delta):
            text += chunk.text
        if isinstance(chunk, Result):
            result = dict(chunk.value)
    assert result is not None
    return text, result


def record_of(home: Path) -> EngineRecord:
    (directory,) = (home / "run" / "engines").iterdir()
    record = EngineRecord.read(directory / RECORD)
    assert record is not None
    return record


def named(members: list[Process], title: str) -> int:
    return next(p.pid for p in members if title in Path(f"/proc/{p.pid}/cmdline").read_text())


def segments(members: list[Process]) -> set[Path]:
    """The shared memory that they have mapped."""
    maps = "".join(Path(f"/proc/{process.pid}/maps").read_text() for process in members)
    return {Path(word) for word in maps.split() if word.startswith("/dev/shm/psm_")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(python: str, tiny: Path, home: Path) -> AsyncIterator[VllmEngine]:
    engine = engine_of(python, tiny, home, stall_timeout=3.0)
    yield engine
    await engine.stop(grace=0.0)


@pytest_asyncio.fixture(loop_scope="module")
async def engine(shared: VllmEngine) -> VllmEngine:
    """One that is ready, started again where the test before has killed it."""
    if not await shared.healthy():
        await shared.start()
    return shared


async def until_running(engine: VllmEngine, asked: Request) -> "asyncio.Task[tuple[str, dict[str, Any]]]":
    """A request of which the first text has come."""
    begun = asyncio.Event()

    async def run() -> tuple[str, dict[str, Any]]:
        text = ""
        async with aclosing(engine.run(asked)) as chunks:
            async for chunk in chunks:
                begun.set()
                if isinstance(chunk, Result):
                    return text, dict(chunk.value)
                assert isinstance(chunk, Delta)
                text += chunk.text
        raise AssertionError("no result")

    task = asyncio.create_task(run())
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=30)
    waiting.cancel()
    assert begun.is_set(), task.exception() if task.done() else "nothing came"
    return task


async def test_a_start_tells_its_phases_and_the_engine_is_healthy(shared: VllmEngine, home: Path) -> None:
    phases: list[Phase] = []
    shared.on_phase = phases.append
    assert not await shared.healthy()
    await shared.start()
    assert await shared.healthy()
    assert phases == [Phase.STARTING, Phase.LOADING, Phase.COMPILING, Phase.READY]
    (directory,) = (home / "run" / "engines").iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700


async def test_a_chat_is_streamed_and_its_tokens_are_counted(engine: VllmEngine) -> None:
    text, result = await answer(engine, request(max_tokens=40, ignore_eos=True))
    assert result["message"] == {"role": "assistant", "content": text}
    assert result["finish_reason"] == "length"
    # The template: "<s>user: hi\nassistant: ", a token for each byte.
    assert result["usage"]["prompt_tokens"] == 1 + len("user: hi\nassistant: ")
    assert result["usage"]["completion_tokens"] == 40
    assert (await answer(engine, request(max_tokens=40, ignore_eos=True)))[0] == text


async def test_ten_chats_run_side_by_side(engine: VllmEngine) -> None:
    asked = [request(f"prompt {number}", max_tokens=100, ignore_eos=True) for number in range(10)]
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


@pytest.mark.parametrize("victim", ["api_server", "VLLM::EngineCore", "VLLM::Worker"])
async def test_a_killed_process_is_noticed_within_two_seconds_and_nothing_is_left(
    engine: VllmEngine, home: Path, victim: str
) -> None:
    record = record_of(home)
    members = record.members()
    memory = segments(members)
    assert memory
    running = await until_running(engine, request(**LONG))
    death = asyncio.create_task(engine.until_death())
    begin = time.monotonic()
    os.kill(named(members, victim), signal.SIGKILL)
    reason = await asyncio.wait_for(death, 10)
    took = time.monotonic() - begin
    assert record.members() == []
    assert not any(path.exists() for path in memory), "shared memory outlives the engine"
    assert took < 2, f"{took:.2f} s until the death was noticed"
    assert reason
    with pytest.raises(EngineUnavailable) as failure:
        await running
    assert failure.value.code == "engine_died"
    assert not await engine.healthy()


async def test_an_engine_that_hangs_is_killed_after_its_time_and_says_so(engine: VllmEngine, home: Path) -> None:
    record = record_of(home)
    running = await until_running(engine, request(**LONG))
    os.kill(named(record.members(), "VLLM::Worker"), signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(EngineError) as failure:
        await asyncio.wait_for(running, 20)
    assert failure.value.code == "engine_stalled"
    assert 2 < time.monotonic() - begin < 8
    assert record.members() == []


async def test_a_stop_lets_what_runs_finish(engine: VllmEngine, home: Path) -> None:
    record = record_of(home)
    running = await until_running(engine, request(max_tokens=1500, ignore_eos=True))
    assert not running.done()
    await engine.stop(grace=30.0)
    _, result = await running
    assert result["usage"]["completion_tokens"] == 1500
    assert record.members() == []
    assert list((home / "run" / "engines").iterdir()) == []
    with pytest.raises(EngineUnavailable, match="does not run"):
        await answer(engine, request())

"""Sleep and wake of the real vLLM. On the CPU its sleep frees nothing, so this is about states: what is asleep is sent
nothing, and what was woken has answered before anybody relies on it."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from broker.errors import EngineError, EngineNotRunning
from tests.vllm.conftest import settings_of
from tests.vllm.processes import named, record_of
from tests.vllm.test_engine import answer, request
from worker.engines.base import Loadable
from worker.engines.vllm import VllmEngine
from worker.engines.vllm_control import Patience

# A start takes half a minute: one engine serves all of these, in their order.
pytestmark = pytest.mark.asyncio(loop_scope="module")

GIB = 2**30
# Seconds that a wake may take here.
PATIENCE = 3.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(python: str, tiny: Path, home: Path) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine("tiny", settings_of(python, tiny), home, patience=Patience(move=PATIENCE))
    assert await engine.unable() is None
    await engine.start()
    yield engine
    await engine.stop(grace=0.0)


def direct(engine: VllmEngine) -> httpx.AsyncClient:
    """Past our engine to vLLM."""
    assert engine.address is not None
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=engine.address), base_url="http://vllm")


async def is_sleeping(engine: VllmEngine) -> bool:
    async with direct(engine) as client:
        return bool((await client.get("/is_sleeping")).json()["is_sleeping"])


async def test_what_it_takes_of_main_memory_is_measured(engine: VllmEngine) -> None:
    assert isinstance(engine, Loadable)
    assert engine.need(8 * GIB) is None, "it is not known before it has been loaded"
    found = await engine.footprint()
    assert found is not None
    assert GIB // 2 < found.device < 6 * GIB
    assert not engine.can_sleep, "its sleep frees nothing"


async def test_it_sleeps_and_wakes_and_says_the_same_as_before(engine: VllmEngine) -> None:
    text, _ = await answer(engine, request(max_tokens=20, ignore_eos=True))
    await engine.sleep()
    assert await is_sleeping(engine)
    assert await engine.healthy()
    await engine.wake()
    assert not await is_sleeping(engine)
    assert (await answer(engine, request(max_tokens=20, ignore_eos=True)))[0] == text


async def test_asleep_it_refuses_at_once_what_vllm_would_leave_hanging(engine: VllmEngine) -> None:
    await engine.sleep()
    async with direct(engine) as client:
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=chat, timeout=2.0)
    with pytest.raises(EngineNotRunning, match="sleeps"):
        await asyncio.wait_for(answer(engine, request(max_tokens=1)), 1)
    await engine.wake()
    await answer(engine, request(max_tokens=1))


async def test_a_wake_that_hangs_fails_in_time_and_nothing_is_left_of_the_engine(
    engine: VllmEngine, home: Path
) -> None:
    record = record_of(home)
    await engine.sleep()
    os.kill(named(record.members(), "VLLM::EngineCore"), signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(EngineError) as failure:
        await engine.wake()
    assert failure.value.code == "wake_failed"
    assert PATIENCE <= time.monotonic() - begin < PATIENCE + 2
    with pytest.raises(EngineNotRunning):
        await answer(engine, request(max_tokens=1))
    await engine.stop(grace=0.0)
    assert record.members() == []

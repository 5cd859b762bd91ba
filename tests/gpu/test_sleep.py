"""Sleep of the real vLLM on a real GPU: it gives its memory back, and answers the same when it has woken.

VLLM_GPU_PYTHON names an interpreter with vLLM for CUDA. The model is tiny; what it holds is its KV cache.
"""

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from config import VllmSettings
from tests.vllm.test_engine import answer, request
from worker.engines.vllm import VllmEngine
from worker.gpus import Gpus

GPUS = Gpus()
PYTHON = os.environ.get("VLLM_GPU_PYTHON", "")
pytestmark = [
    pytest.mark.skipif(not GPUS.devices(), reason=GPUS.why_none),
    pytest.mark.skipif(not PYTHON, reason="VLLM_GPU_PYTHON names no interpreter with vLLM"),
    pytest.mark.asyncio(loop_scope="module"),
]

GIB = 2**30
MEMORY = 10 * GIB
_MAKE = Path(__file__).parent.parent / "vllm" / "make_tiny_llama.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the tiny model in it."""
    home = tmp_path_factory.mktemp("home")
    subprocess.run([PYTHON, _MAKE, home / "tiny"], check=True, capture_output=True)
    return home


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(home: Path) -> AsyncIterator[VllmEngine]:
    entry = {"task": "chat", "engine": "vllm", "model": str(home / "tiny"), "python": PYTHON, "memory": MEMORY}
    engine = VllmEngine("tiny", VllmSettings.model_validate(entry | {"max_model_len": 2048}), home)
    engine.gpus = [GPUS.devices()[0].uuid]
    assert await engine.unable() is None
    await engine.start()
    yield engine
    await engine.stop(grace=0.0)


async def held(engine: VllmEngine) -> int:
    found = await engine.footprint()
    assert found is not None
    return found.device


async def test_it_takes_what_it_was_given_and_sleep_gives_most_of_that_back(engine: VllmEngine) -> None:
    assert engine.can_sleep
    free, loaded = GPUS.devices()[0].free, await held(engine)
    assert 0.5 * MEMORY < loaded < 1.2 * MEMORY
    text, _ = await answer(engine, request(max_tokens=20, ignore_eos=True))
    await engine.sleep()
    assert GPUS.devices()[0].free - free > loaded / 2
    assert await held(engine) < loaded / 2
    await engine.wake()
    assert abs(await held(engine) - loaded) < 0.1 * loaded
    assert (await answer(engine, request(max_tokens=20, ignore_eos=True)))[0] == text

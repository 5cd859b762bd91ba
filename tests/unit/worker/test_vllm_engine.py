"""What the vLLM engine says where it cannot run. How it runs is told by tests/vllm, on the real one."""

import sys
from pathlib import Path
from typing import Any

import pytest

from broker.errors import EngineUnavailable
from config import VllmSettings
from worker.engines.base import Request
from worker.engines.vllm import VllmEngine

# An interpreter without any packages.
BARE = '#!/bin/sh\nexec {python} -S -I "$@"\n'


def engine(home: Path, **options: Any) -> VllmEngine:
    return VllmEngine("tiny", VllmSettings.model_validate({"task": "chat", "engine": "vllm"} | options), home)


async def refusal(engine: VllmEngine) -> EngineUnavailable:
    with pytest.raises(EngineUnavailable) as failure:
        await engine.start()
    await engine.stop()
    return failure.value


async def test_weights_that_are_not_there_are_named_with_the_command_that_gets_them(tmp_path: Path) -> None:
    error = await refusal(engine(tmp_path, python=sys.executable, model="somebody/tiny"))
    assert error.code == "weights_missing"
    assert "roundhouse pull tiny" in error.message


async def test_an_interpreter_without_vllm_is_named(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(BARE.format(python=sys.executable))
    bare.chmod(0o755)
    error = await refusal(engine(tmp_path, python=str(bare), model=str(tmp_path)))
    assert (error.code, str(bare) in error.message) == ("vllm_missing", True)


async def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = await refusal(engine(tmp_path, python="/nonexistent/python", model=str(tmp_path)))
    assert (error.code, "/nonexistent/python" in error.message) == ("vllm_missing", True)


async def test_without_a_gpu_a_build_for_gpus_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (await refusal(engine(tmp_path, model=str(tmp_path)))).code == "no_gpu"


async def test_an_engine_that_does_not_run_is_asked_nothing(tmp_path: Path) -> None:
    stopped = engine(tmp_path)
    assert not await stopped.healthy()
    with pytest.raises(EngineUnavailable) as failure:
        await anext(stopped.run(Request("job", 1, {"messages": []})))
    assert failure.value.code == "engine_not_running"

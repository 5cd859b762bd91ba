"""Starts of the real vLLM that fail, and workers that are killed while theirs runs."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.errors import EngineUnavailable
from tests.conditions import eventually
from tests.vllm.conftest import engine_of
from tests.vllm.processes import records_in
from worker.engine_process import sweep_leftovers
from worker.engine_record import EngineRecord

# A worker of which only the engine matters here.
WORKER = """
import asyncio, pathlib, sys
from tests.vllm.conftest import engine_of
async def main():
    python, model, home = sys.argv[1:]
    engine = engine_of(python, pathlib.Path(model), pathlib.Path(home))
    await engine.start()
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def reason_of(python: str, model: Path, home: Path, **options: Any) -> EngineUnavailable:
    engine = engine_of(python, model, home, **options)
    with pytest.raises(EngineUnavailable) as failure:
        await engine.start()
    assert list((home / "run" / "engines").iterdir()) == [], "nothing is left of it"
    return failure.value


async def test_a_bad_flag_is_named(python: str, tiny: Path, tmp_path: Path) -> None:
    error = await reason_of(python, tiny, tmp_path, args=["--no-such-flag"])
    assert error.code == "engine_start_failed"
    assert "bad flag" in error.message
    assert "--no-such-flag" in error.message


async def test_a_directory_without_a_model_is_named(python: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    error = await reason_of(python, empty, tmp_path)
    assert "model not found" in error.message
    assert str(empty) in error.message


async def test_too_little_memory_is_named(python: str, tiny: Path, tmp_path: Path) -> None:
    error = await reason_of(python, tiny, tmp_path, env={"VLLM_CPU_KVCACHE_SPACE": "100000"})
    assert "out of memory" in error.message


@asynccontextmanager
async def loading(
    python: str, model: Path, home: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, EngineRecord]]:
    """A worker with an engine that has begun its core."""
    with (home / "worker.log").open("wb") as log:
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, python, str(model), str(home)), stdout=log, stderr=log
        )
    try:

        async def has_a_core() -> bool:
            return any(len(record.members()) >= 3 for record in records_in(home))

        await eventually(has_a_core, within=300)
        (record,) = records_in(home)
        yield worker, record
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.wait()


async def test_a_killed_worker_leaves_nothing_of_its_engine(python: str, tiny: Path, tmp_path: Path) -> None:
    async with loading(python, tiny, tmp_path) as (worker, record):
        worker.kill()

        async def nothing_left() -> bool:
            return not record.members() and not record.guard.alive()

        await eventually(nothing_left, within=60)


async def test_killed_with_its_guard_it_is_swept_by_the_next_worker(python: str, tiny: Path, tmp_path: Path) -> None:
    async with loading(python, tiny, tmp_path) as (worker, record):
        assert await sweep_leftovers(tmp_path) == 0, "its worker lives"
        record.guard.send(signal.SIGSTOP)  # so that it does nothing before it is killed
        worker.kill()
        await worker.wait()
        record.guard.send(signal.SIGKILL)
        assert await sweep_leftovers(tmp_path) == 1
        assert record.members() == []
        assert list((tmp_path / "run" / "engines").iterdir()) == []

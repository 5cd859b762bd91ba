"""An engine's process from this side of the guard, with a real program in the engine's place."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from broker.daemons import ProcessRecord
from broker.errors import EngineUnavailable
from tests.conditions import eventually
from worker.engine_guard import REST_GRACE
from worker.engine_log import Phase
from worker.engine_process import (
    _WATCH,
    RECORD,
    EngineProcess,
    remove_start_directory,
    socket_in,
    start_directory,
    sweep_leftovers,
)
from worker.engine_record import EngineRecord

PROGRAM = Path(__file__).with_name("engine_program.py")
Start = Callable[..., Awaitable[EngineProcess]]


def ignore(phase: Phase) -> None:
    """For tests that are not about progress."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return start_directory(tmp_path, "tiny")


@pytest.fixture
async def start(tmp_path: Path, directory: Path) -> AsyncIterator[Start]:
    begun: list[EngineProcess] = []

    async def run(*habits: str) -> EngineProcess:
        socket = socket_in(directory)
        process = EngineProcess(
            [sys.executable, str(PROGRAM), str(socket), *habits],
            dict(os.environ),
            socket=socket,
            log=tmp_path / "logs" / "engine-tiny.log",
            record=directory / RECORD,
        )
        begun.append(process)
        await process.start()
        return process

    yield run
    for process in begun:
        await process.stop(grace=0.0)
    remove_start_directory(directory)


async def record_in(directory: Path) -> EngineRecord:
    async def written() -> bool:
        return EngineRecord.read(directory / RECORD) is not None

    await eventually(written)
    record = EngineRecord.read(directory / RECORD)
    assert record is not None
    return record


async def test_a_start_goes_through_its_phases_and_is_ready(start: Start) -> None:
    process = await start("slow")
    phases: list[Phase] = []
    await process.until_ready(phases.append, timeout=20)
    assert phases == [Phase.STARTING, Phase.LOADING, Phase.COMPILING, Phase.READY]
    assert process.alive
    assert await process.healthy()


async def test_a_start_that_fails_says_why(start: Start, tmp_path: Path) -> None:
    process = await start("fails")
    with pytest.raises(EngineUnavailable, match=r"out of memory: torch\.OutOfMemoryError") as failure:
        await process.until_ready(ignore, timeout=20)
    assert failure.value.code == "engine_start_failed"
    assert "engine-tiny.log" in failure.value.message
    assert not process.alive
    assert process.status == 1


async def test_reasons_are_those_of_this_start_and_not_of_one_before(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "engine-tiny.log"
    log.parent.mkdir()
    log.write_text("ValueError: of yesterday\n")
    process = await start("never")
    assert process.last_errors() in ("", "up")


async def test_a_program_that_is_not_there_is_named(tmp_path: Path, directory: Path) -> None:
    process = EngineProcess(
        ["/nonexistent/python"],
        dict(os.environ),
        socket=socket_in(directory),
        log=tmp_path / "engine.log",
        record=directory / RECORD,
    )
    await process.start()
    with pytest.raises(EngineUnavailable, match="/nonexistent/python cannot be started"):
        await process.until_ready(ignore, timeout=20)
    await process.stop(grace=0.0)


async def test_a_start_that_takes_too_long_is_ended(start: Start, directory: Path) -> None:
    process = await start("never", "core")
    record = await record_in(directory)
    with pytest.raises(EngineUnavailable, match=r"not ready after 0\.5 s") as failure:
        await process.until_ready(ignore, timeout=0.5)
    assert failure.value.code == "engine_start_timeout"
    assert record.members() == []


async def test_a_killed_leader_is_noticed_within_two_seconds_with_nothing_left(start: Start, directory: Path) -> None:
    process = await start("core")
    await process.until_ready(ignore, timeout=20)
    record = await record_in(directory)
    begin = time.monotonic()
    record.leader.send(signal.SIGKILL)
    await asyncio.wait_for(process.exited.wait(), 20)
    assert time.monotonic() - begin < 10  # on a machine that has other work, and without it:
    assert REST_GRACE <= 1.0
    assert record.members() == []
    assert process.why() == "it was killed by SIGKILL"


async def test_an_engine_that_says_that_it_is_ill_is_ended_within_two_seconds(start: Start, directory: Path) -> None:
    process = await start("sick", "core", "deaf")
    record = await record_in(directory)
    await process.until_ready(ignore, timeout=20)
    await asyncio.wait_for(process.exited.wait(), 20)  # on a machine that has other work, and without it:
    assert _WATCH + REST_GRACE < 2.0
    assert record.members() == []


async def test_a_killed_guard_leaves_nothing(start: Start, directory: Path) -> None:
    process = await start("core", "deaf")
    await process.until_ready(ignore, timeout=20)
    record = await record_in(directory)
    record.guard.send(signal.SIGKILL)
    await asyncio.wait_for(process.exited.wait(), 10)
    assert record.members() == []
    assert not (directory / RECORD).exists()


async def test_a_stop_is_gentle_while_there_is_time(start: Start) -> None:
    process = await start("core")
    await process.until_ready(ignore, timeout=20)
    await process.stop(grace=10.0)
    assert process.status == 0
    await process.stop(grace=10.0)


async def test_leftovers_of_a_killed_worker_are_swept_and_what_is_attended_is_not(
    start: Start, tmp_path: Path, directory: Path
) -> None:
    process = await start("core", "deaf")
    await process.until_ready(ignore, timeout=20)
    assert await sweep_leftovers(tmp_path) == 0
    assert process.alive
    other = start_directory(tmp_path, "other")
    record = await record_in(directory)
    # As if the worker that runs this guard were another, which is gone.
    EngineRecord(record.leader, record.guard, owner=1).write(other / RECORD)
    sweep = asyncio.create_task(sweep_leftovers(tmp_path))
    record.guard.send(signal.SIGKILL)
    assert await sweep == 1
    assert record.members() == []
    assert not other.exists()


def _record(pid: int, started: int | None, boot: str | None) -> ProcessRecord:
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ProcessRecord(pid, started or int(stat[19]), boot or ProcessRecord.current().boot)


async def test_a_record_of_another_boot_or_another_process_harms_nobody(tmp_path: Path) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    try:
        for place, (started, boot) in enumerate([(1, None), (None, "another-boot")]):
            there = start_directory(tmp_path, f"old{place}")
            leader = _record(bystander.pid, started, boot)
            EngineRecord(leader, leader, owner=1).write(there / RECORD)
        assert await sweep_leftovers(tmp_path) == 0
        assert bystander.returncode is None
        assert _record(bystander.pid, None, None).alive()
        assert list((tmp_path / "run" / "engines").iterdir()) == []
    finally:
        bystander.kill()
        await bystander.wait()


async def test_a_path_too_long_for_a_socket_is_got_round(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 25)
    home.mkdir()
    there = start_directory(home, "somebody/big")
    socket = socket_in(there)
    assert len(str(socket)) < 100
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    remove_start_directory(there)
    assert not socket.parent.exists()
    assert not there.exists()

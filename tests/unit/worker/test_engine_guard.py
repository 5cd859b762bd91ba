"""The guard with real processes: whatever is killed, nothing of the engine is left."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conditions import eventually
from worker.engine_guard import ORPHAN_GRACE, REST_GRACE
from worker.engine_record import EngineRecord

PROGRAM = Path(__file__).with_name("engine_program.py")
# Seconds for which a machine that has other work may keep everything waiting.
BUSY = 10.0


def runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Guarded:
    """A guard with the engine program under it, which is up. ``pids``: of the engine's processes by name."""

    def __init__(self, directory: Path, *habits: str, grace: float = 5.0) -> None:
        self.record = directory / "engine.json"
        program = [sys.executable, str(PROGRAM), str(directory / "socket"), *habits]
        self.guard = subprocess.Popen(
            [sys.executable, "-m", "worker.engine_guard", str(self.record), str(grace), "--", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.guard.stdin is not None
        assert self.guard.stdout is not None
        self.stdin, self.stdout = self.guard.stdin, self.guard.stdout
        self.pids: dict[str, int] = {}
        while (line := self.stdout.readline().split()) != ["up"]:
            self.pids[line[0]] = int(line[1])
        record = EngineRecord.read(self.record)
        assert record is not None
        self.engine = record
        self.pids["leader"] = record.leader.pid

    def left(self) -> list[str]:
        return [name for name, pid in self.pids.items() if runs(pid)]

    async def nothing_left(self) -> bool:
        return not self.left()

    def tell(self, line: str) -> None:
        self.stdin.write(line)
        self.stdin.flush()


@contextmanager
def guarded(directory: Path, *habits: str, grace: float = 5.0) -> Iterator[Guarded]:
    found = Guarded(directory, *habits, grace=grace)
    try:
        yield found
    finally:
        found.stdin.close()
        found.guard.wait(20)
        found.stdout.close()
        found.engine.kill()


def test_the_engine_leads_a_group_of_its_own_and_is_recorded_until_it_has_ended(tmp_path: Path) -> None:
    with guarded(tmp_path, "core") as engine:
        assert engine.engine.guard.pid == engine.guard.pid
        assert engine.engine.attended()
        members = {process.pid for process in engine.engine.members()}
        assert members == set(engine.pids.values())
        assert engine.guard.pid not in members
        engine.tell("5\n")
        assert engine.guard.wait(10) == 0, "the leader's own status"
    assert not engine.record.exists()


async def test_when_the_worker_is_gone_nothing_is_left_however_stubborn(tmp_path: Path) -> None:
    with guarded(tmp_path, "core", "escaped", "deaf", grace=60) as engine:
        assert len(engine.pids) == 3
        begin = time.monotonic()
        engine.stdin.close()
        assert engine.guard.wait(20) == 128 + signal.SIGKILL
        assert time.monotonic() - begin < ORPHAN_GRACE + REST_GRACE + BUSY
        assert engine.left() == []


async def test_a_killed_leader_takes_the_orphans_with_it_within_two_seconds(tmp_path: Path) -> None:
    with guarded(tmp_path, "core", "escaped") as engine:
        begin = time.monotonic()
        engine.engine.leader.send(signal.SIGKILL)
        assert engine.guard.wait(20) == 128 + signal.SIGKILL
        assert engine.left() == []
        assert time.monotonic() - begin < BUSY
    assert REST_GRACE <= 1.0, "on a machine that has nothing else to do"
    assert not engine.record.exists()


def test_what_cleans_up_after_the_others_gets_to_do_so(tmp_path: Path) -> None:
    with guarded(tmp_path, "tracker", "worker") as engine:
        engine.engine.leader.send(signal.SIGKILL)
        engine.guard.wait(10)
        assert engine.stdout.read() == "cleaned\n"
        assert engine.left() == []


async def test_killed_with_its_guard_the_engine_is_found_by_its_record(tmp_path: Path) -> None:
    with guarded(tmp_path, "core") as engine:
        engine.guard.kill()
        engine.guard.wait(10)

        async def leader_ended() -> bool:
            return "leader" not in engine.left()

        await eventually(leader_ended)
        assert engine.left() == ["core"], "an orphan whose leader and guard are gone"
        assert not engine.engine.attended()
        assert engine.engine.kill()
        await eventually(engine.nothing_left)
        assert not engine.engine.kill()


WORKER = """
import subprocess, sys
guard = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
print("guard", guard.pid, flush=True)
guard.wait()
"""


@contextmanager
def owned(directory: Path) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A worker process with a guard and an engine under it; with it the pids of these."""
    program = [sys.executable, str(PROGRAM), str(directory / "socket"), "core", "escaped"]
    guard = [sys.executable, "-m", "worker.engine_guard", str(directory / "engine.json"), "60", "--", *program]
    with subprocess.Popen([sys.executable, "-c", WORKER, *guard], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        told = [worker.stdout.readline().split() for _ in range(4)]
        yield worker, [int(line[1]) for line in told if line != ["up"]]
        worker.kill()


async def test_a_kill_of_the_worker_process_ends_guard_and_engine(tmp_path: Path) -> None:
    with owned(tmp_path) as (worker, pids):
        found = EngineRecord.read(tmp_path / "engine.json")
        assert found is not None
        assert (found.owner, len(pids)) == (worker.pid, 3)
        worker.kill()

        async def all_gone() -> bool:
            return not any(runs(pid) for pid in [*pids, found.leader.pid])

        await eventually(all_gone)


async def test_an_engine_that_heeds_no_sigterm_is_killed_after_the_time_that_it_was_given(tmp_path: Path) -> None:
    with guarded(tmp_path, "deaf", grace=60) as engine:
        begin = time.monotonic()
        engine.tell("0.5\n")
        assert engine.guard.wait(40) == 128 + signal.SIGKILL
        assert 0.5 <= time.monotonic() - begin < 30


async def test_a_sigterm_to_the_guard_ends_the_engine(tmp_path: Path) -> None:
    with guarded(tmp_path, "core") as engine:
        engine.guard.send_signal(signal.SIGTERM)
        assert engine.guard.wait(10) == 0
        assert engine.left() == []


def test_the_time_to_end_can_be_shortened_but_not_drawn_out(tmp_path: Path) -> None:
    with guarded(tmp_path, "deaf", grace=60) as engine:
        begin = time.monotonic()
        engine.tell("60\n")
        engine.tell("0.2\n")
        engine.tell("60\n")
        engine.guard.wait(40)
        assert time.monotonic() - begin < 30


@pytest.mark.parametrize("program", ["/nonexistent/python", "/etc/passwd"])
def test_a_program_that_cannot_be_started_is_named(tmp_path: Path, program: str) -> None:
    record = tmp_path / "engine.json"
    done = subprocess.run(
        [sys.executable, "-m", "worker.engine_guard", str(record), "1", "--", program],
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 127
    assert program in done.stderr
    assert not record.exists()

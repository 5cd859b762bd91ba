"""The embedded mongod against kill -9 of itself and of whoever starts it, with real processes throughout."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo import AsyncMongoClient

from broker.daemons import ProcessRecord
from broker.errors import MongodError
from broker.mongod import EmbeddedMongod, MongodKeeper
from broker.mongodset import Polls

ROOT = Path(__file__).parents[2]

# Calls ensure(), but kills itself with SIGKILL before or after the n-th call of one of the functions it is made of.
KILLED_AT = """
import asyncio, functools, inspect, os, pathlib, signal, sys
from broker import mongod, mongodset
home, module, name, when, count = sys.argv[1:]
module = {"mongod": mongod, "mongodset": mongodset}[module]
function, calls = getattr(module, name), 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted():
    global calls
    calls += 1
    return calls == int(count)

async def awaited(*args, **kwargs):
    due = counted()
    if due and when == "before": die()
    result = await function(*args, **kwargs)
    if due: die()
    return result

def called(*args, **kwargs):
    due = counted()
    if due and when == "before": die()
    result = function(*args, **kwargs)
    if due: die()
    return result

setattr(module, name, awaited if inspect.iscoroutinefunction(function) else called)
asyncio.run(mongod.EmbeddedMongod(pathlib.Path(home), cache=0.25).ensure())
"""

ENSURE = """
import asyncio, pathlib, sys
from broker.mongod import EmbeddedMongod
print(asyncio.run(EmbeddedMongod(pathlib.Path(sys.argv[1]), cache=0.25).ensure()))
"""


def python(script: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def mongods(home: Path) -> list[int]:
    """The pids of all mongods that run on this state directory."""
    data = str(home / "mongod/data")
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        arguments = process.info["cmdline"] or []
        if data in arguments and "sh" not in arguments and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


@pytest.fixture
async def mongod(tmp_path: Path) -> AsyncIterator[EmbeddedMongod]:
    mongod = EmbeddedMongod(tmp_path, cache=0.25)
    yield mongod
    await mongod.stop()
    assert mongods(tmp_path) == []


def state(mongod: EmbeddedMongod) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((mongod.directory / "mongod.json").read_text())
    return fields


async def store(uri: str, **document: Any) -> None:
    async with AsyncMongoClient[dict[str, Any]](uri, w="majority", journal=True) as client:
        await client.trial.notes.insert_one(document)


async def stored(uri: str) -> list[str]:
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        return [note["text"] async for note in client.trial.notes.find(sort=[("text", 1)])]


def kill(mongod: EmbeddedMongod) -> None:
    pid = mongod.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def gone(mongod: EmbeddedMongod) -> None:
    """Killed, and no longer there."""
    record = ProcessRecord.read(mongod.directory / "process.json")
    assert record is not None
    kill(mongod)
    async for _ in Polls(10):
        if not record.alive():
            return
    raise AssertionError(f"process {record.pid} outlives SIGKILL")


async def test_mongod_starts_once_and_is_found_again(mongod: EmbeddedMongod, tmp_path: Path) -> None:
    uri = await mongod.ensure()
    first = mongod.status()
    assert first.running
    assert uri.endswith(f"127.0.0.1:{first.port}/?replicaSet=roundhouse&authSource=admin")
    assert await EmbeddedMongod(tmp_path).ensure() == uri
    assert mongod.status() == first
    await store(uri, text="kept")
    await mongod.stop()
    assert not mongod.status().running
    assert await mongod.ensure() == uri
    assert await stored(uri) == ["kept"]


async def test_nobody_gets_in_without_the_password(mongod: EmbeddedMongod, tmp_path: Path) -> None:
    await mongod.ensure()
    assert (tmp_path / "mongod").stat().st_mode & 0o077 == 0
    for name in ("mongod.json", "keyfile", "process.json", "mongod.log"):
        assert (tmp_path / "mongod" / name).stat().st_mode & 0o177 == 0, name
    async with AsyncMongoClient[dict[str, Any]]("127.0.0.1", mongod.status().port, directConnection=True) as client:
        with pytest.raises(Exception, match="requires authentication"):
            await client.trial.notes.find_one()
        with pytest.raises(Exception, match="requires authentication"):
            await client.admin.command("createUser", "intruder", pwd="x", roles=["root"])


async def test_many_processes_at_once_start_one_mongod(mongod: EmbeddedMongod, tmp_path: Path) -> None:
    processes = [python(ENSURE, tmp_path) for _ in range(6)]
    answers = [await asyncio.to_thread(process.communicate) for process in processes]
    assert [error for _, error in answers] == [""] * 6
    assert {uri.strip() for uri, _ in answers} == {await mongod.ensure()}
    assert mongods(tmp_path) == [mongod.status().pid]


async def test_mongod_killed_comes_back_with_its_data_at_its_address(mongod: EmbeddedMongod, tmp_path: Path) -> None:
    uri = await mongod.ensure()
    for text in ("a", "b", "c"):
        await store(uri, text=text)
        kill(mongod)
        assert await mongod.ensure() == uri
    assert await stored(uri) == ["a", "b", "c"]
    assert mongods(tmp_path) == [mongod.status().pid]


BEFORE_MONGOD = [
    ("mongod", "free_port", "before", 1),
    ("mongod", "write_durably", "before", 1),
    ("mongod", "write_durably", "after", 1),
    ("mongod", "launch", "before", 1),
]
WITH_MONGOD = [
    ("mongod", "launch", "after", 1),
    ("mongod", "until_primary", "before", 1),
    ("mongodset", "_initiate", "before", 1),
    ("mongodset", "_initiate", "after", 1),
    ("mongod", "create_user", "before", 1),
    ("mongod", "create_user", "after", 1),
    ("mongodset", "write_durably", "before", 2),
    ("mongodset", "write_durably", "after", 2),
]


@pytest.mark.parametrize(
    ("module", "name", "when", "count", "mongod_too"),
    [(*step, False) for step in BEFORE_MONGOD + WITH_MONGOD] + [(*step, True) for step in WITH_MONGOD],
)
async def test_a_set_up_killed_between_two_steps_is_completed_by_the_next(
    mongod: EmbeddedMongod, tmp_path: Path, module: str, name: str, when: str, count: int, mongod_too: bool
) -> None:
    process = python(KILLED_AT, tmp_path, module, name, when, count)
    _, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == -signal.SIGKILL, errors
    if mongod_too:
        for pid in mongods(tmp_path):
            os.kill(pid, signal.SIGKILL)
    uri = await mongod.ensure()
    await store(uri, text="kept")
    assert await stored(uri) == ["kept"]
    assert mongods(tmp_path) == [mongod.status().pid]


async def test_a_set_up_killed_at_any_moment_again_and_again_ends_well(mongod: EmbeddedMongod, tmp_path: Path) -> None:
    begin = time.monotonic()
    process = python(ENSURE, tmp_path / "rehearsal")
    await asyncio.to_thread(process.communicate)
    whole = time.monotonic() - begin
    await EmbeddedMongod(tmp_path / "rehearsal").stop()
    for step in range(10):
        process = python(ENSURE, tmp_path)
        try:
            await asyncio.to_thread(process.communicate, timeout=whole * (step + 1) / 11)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.communicate)
        assert len(mongods(tmp_path)) <= 1
    uri = await mongod.ensure()
    await store(uri, text="kept")
    assert await stored(uri) == ["kept"]
    assert mongods(tmp_path) == [mongod.status().pid]


class Squatter:
    """Another program on a port: it hangs up on whoever calls."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None

    async def take(self, port: int) -> None:
        self._server = await asyncio.start_server(self._hang_up, "127.0.0.1", port)

    async def leave(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _hang_up(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()


@pytest.fixture
async def squatter() -> AsyncIterator[Squatter]:
    squatter = Squatter()
    yield squatter
    await squatter.leave()


@pytest.mark.parametrize("step", ["write_durably", "create_user"])
async def test_a_port_lost_during_the_first_set_up_is_exchanged(
    mongod: EmbeddedMongod, tmp_path: Path, squatter: Squatter, step: str
) -> None:
    process = python(KILLED_AT, tmp_path, "mongod", step, "before", 1)
    await asyncio.to_thread(process.communicate)
    if step == "create_user":
        await gone(mongod)
    lost = state(mongod)["port"]
    await squatter.take(lost)
    uri = await mongod.ensure()
    assert mongod.status().port != lost
    await store(uri, text="kept")
    assert await stored(uri) == ["kept"]


async def test_a_mongod_whose_port_was_taken_moves_and_keeps_its_data(
    mongod: EmbeddedMongod, tmp_path: Path, squatter: Squatter
) -> None:
    former = await mongod.ensure()
    await store(former, text="kept")
    await mongod.stop()
    await squatter.take(state(mongod)["port"])
    uri = await mongod.ensure()
    assert uri != former
    assert await stored(uri) == ["kept"]
    kill(mongod)
    assert await mongod.ensure() == uri
    assert await stored(uri) == ["kept"]


async def test_a_move_cut_short_by_a_kill_is_completed(
    mongod: EmbeddedMongod, tmp_path: Path, squatter: Squatter
) -> None:
    await store(await mongod.ensure(), text="kept")
    await mongod.stop()
    await squatter.take(state(mongod)["port"])
    process = python(KILLED_AT, tmp_path, "mongod", "until_primary", "before", 1)
    await asyncio.to_thread(process.communicate)
    assert process.returncode == -signal.SIGKILL
    assert await stored(await mongod.ensure()) == ["kept"]


async def test_a_revived_mongod_does_not_move_but_names_the_taken_port_and_the_file(
    mongod: EmbeddedMongod, squatter: Squatter
) -> None:
    uri = await mongod.ensure()
    port = state(mongod)["port"]
    assert not await mongod.revive()
    await gone(mongod)
    await squatter.take(port)
    with pytest.raises(MongodError, match=rf"port {port}, which mongod needs \(.*mongod\.json\)"):
        await mongod.revive()
    await squatter.leave()
    assert await mongod.revive()
    assert await mongod.ensure() == uri


@pytest.fixture
def innocent() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has nothing to do with us."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


async def test_a_pid_that_now_is_another_program_is_spared(
    mongod: EmbeddedMongod, innocent: "subprocess.Popen[bytes]"
) -> None:
    uri = await mongod.ensure()
    path = mongod.directory / "process.json"
    stale = json.dumps(json.loads(path.read_text()) | {"pid": innocent.pid})
    await gone(mongod)
    path.write_text(stale)
    assert await mongod.ensure() == uri
    await mongod.stop()
    path.write_text(stale)
    await mongod.stop()
    assert innocent.poll() is None


async def test_a_mongod_without_its_record_is_not_joined_by_a_second_one(
    mongod: EmbeddedMongod, tmp_path: Path
) -> None:
    """A record can be lost with a state directory that two machines or containers share."""
    uri = await mongod.ensure()
    record, running = (tmp_path / "mongod/process.json").read_text(), mongods(tmp_path)
    (tmp_path / "mongod/process.json").unlink()
    with pytest.raises(MongodError, match="DBPathInUse"):
        await mongod.ensure()
    assert mongods(tmp_path) == running
    (tmp_path / "mongod/process.json").write_text(record)
    await mongod.stop()
    await mongod.ensure()
    assert uri.split("@")[0] in await mongod.ensure()


async def test_a_mongod_that_hangs_is_stopped_by_force(mongod: EmbeddedMongod) -> None:
    await mongod.ensure()
    pid = mongod.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await mongod.stop(timeout=0.5)
    assert not psutil.pid_exists(pid)


async def test_the_keeper_starts_what_was_killed_and_leaves_what_was_stopped(mongod: EmbeddedMongod) -> None:
    uri = await mongod.ensure()
    before = mongod.status()
    keepers = [asyncio.create_task(MongodKeeper(mongod, interval=0.05).run()) for _ in range(3)]
    await store(uri, text="kept")
    kill(mongod)
    assert await stored(uri) == ["kept"]  # the client waits for its server, as all of Roundhouse does
    after = mongod.status()
    assert after.running
    assert (after.pid, after.port) != (before.pid, before.port)
    assert after.port == before.port
    await mongod.stop()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(MongodKeeper(mongod, interval=0.001).run(), 0.5)
    assert not mongod.status().running
    for keeper in keepers:
        assert not keeper.done()
        keeper.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)


async def test_the_keeper_goes_on_trying_while_the_port_is_taken(
    mongod: EmbeddedMongod, squatter: Squatter, caplog: pytest.LogCaptureFixture
) -> None:
    uri = await mongod.ensure()
    port = mongod.status().port
    assert port is not None
    await gone(mongod)
    await squatter.take(port)
    keeper = asyncio.create_task(MongodKeeper(mongod, interval=0.05).run())
    async for _ in Polls(10):
        if "cannot be kept up" in caplog.text:
            break
    assert f"Another program has taken port {port}" in caplog.text
    await squatter.leave()
    async for _ in Polls(10):
        if mongod.status().running:
            break
    assert await mongod.ensure() == uri
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)


async def test_a_log_that_has_grown_is_put_aside_while_mongod_runs(mongod: EmbeddedMongod) -> None:
    await mongod.ensure()
    mongod.limit_log()
    assert not mongod.log.with_suffix(".log.1").exists()
    os.truncate(mongod.log, 51 * 2**20)
    mongod.limit_log()
    # mongod may have written another line before it began a new file.
    assert mongod.log.with_suffix(".log.1").stat().st_size >= 51 * 2**20
    async for _ in Polls(10):
        if mongod.log.exists() and mongod.log.stat().st_size > 0:
            break
    assert mongod.log.stat().st_size < 2**20
    assert mongod.status().running


async def test_a_locale_that_does_not_exist_is_no_hindrance(
    mongod: EmbeddedMongod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY.nonsense")
    await mongod.ensure()
    assert mongod.status().running

"""`roundhouse models …` and `roundhouse ps` against a gateway that is a process of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.cancellation import cancel_all
from broker.database import Database
from broker.desired import Desired, DesiredModels
from broker.registry import ModelState, Registry
from tests.conditions import eventually
from tests.system import System


@pytest.fixture
def system(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Iterator[System]:
    with System(tmp_path, mongod_uri, database.name) as system:
        system.gateway()
        yield system


class Beating:
    """A worker's heartbeat, which says ``state`` of the simulator; and the requests that it sees."""

    def __init__(self, database: Database) -> None:
        self._registry = Registry(database)
        self._desired = DesiredModels(database)
        self.state = ModelState(False, "stopped", version=0)
        self.seen: list[Desired] = []

    async def run(self) -> None:
        while True:
            desired = await self._desired.one("simulator")
            await self._registry.heartbeat("w1", "box", 7, {"simulator": self.state}, draining=False)
            self.seen.append(desired)
            await asyncio.sleep(0.2)


@pytest.fixture
async def beating(system: System, database: AsyncDatabase[dict[str, Any]]) -> AsyncIterator[Beating]:
    beating = Beating(Database(database.client, database))
    task = asyncio.create_task(beating.run())

    async def heard() -> bool:
        return bool(beating.seen)

    await eventually(heard)
    yield beating
    await cancel_all([task])


async def roundhouse(system: System, *command: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    done = await asyncio.to_thread(system.run, *command)
    return done.returncode, done.stdout, done.stderr


async def requested(beating: Beating, version: int) -> None:
    async def seen() -> bool:
        return beating.seen[-1].version == version

    await eventually(seen, within=60.0)


async def test_without_a_worker_nothing_can_be_started(system: System) -> None:
    assert await roundhouse(system, "ps") == (0, "No worker is alive; start one by `roundhouse worker`.\n", "")
    status, _, told = await roundhouse(system, "models", "start", "sim")
    assert status == 1
    assert told.rstrip().endswith("(cannot_start)")


async def test_a_start_is_waited_for_and_then_seen(system: System, beating: Beating) -> None:
    assert await roundhouse(system, "models", "pin", "simulator") == (
        0,
        "simulator: stopped; wanted: pinned\n",
        "",
    )
    starting = asyncio.create_task(roundhouse(system, "models", "start", "sim", "--wait"))
    await requested(beating, 1)
    beating.state = ModelState(True, "ready", version=1)
    status, shown, told = await starting
    assert (status, shown) == (0, "simulator: ready; wanted: running, pinned\n")
    assert told.splitlines()[-1:] in ([], ["sim: ready"])
    _, shown, _ = await roundhouse(system, "models")
    (line,) = [line for line in shown.splitlines() if line.startswith("simulator ")]
    assert line.split() == ["simulator", "chat", "simulator", "1", "0/10", "0/10", "ready", "running,", "pinned"]
    _, shown, _ = await roundhouse(system, "ps")
    assert shown.splitlines()[1].split()[:3] == ["w1", "box", "7"]


async def test_a_restart_that_fails_ends_the_command_with_the_reason(system: System, beating: Beating) -> None:
    failing = asyncio.create_task(roundhouse(system, "models", "restart", "simulator", "--wait"))
    await requested(beating, 1)
    beating.state = ModelState(False, "failed", reason="out of memory", version=1)
    status, shown, told = await failing
    assert (status, shown) == (1, "")
    assert told.splitlines()[-1] == "roundhouse: simulator could not be started: out of memory"

"""Three mongod as a replica set on loopback, to be killed, stepped down and cut off by a test."""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect, OperationFailure

from broker.database import Database
from broker.mongodpath import find_mongod
from tests.conditions import eventually
from tests.failover.network import CLIENTS, HOST, ROOT, Network
from tests.ports import free_port

NAME = "failover"

# Becomes mongod, which ends with this process, a kill -9 included.
_LAUNCHER = """
import os, signal, sys
from broker.parent import die_with_parent
die_with_parent(signal.SIGKILL)
os.execv(sys.argv[1], sys.argv[1:])
"""
_SETTINGS = {
    # Beyond what a busy machine lets a primary be silent for: else members that are well are deposed.
    "electionTimeoutMillis": 4000,
    "heartbeatIntervalMillis": 100,
    "heartbeatTimeoutSecs": 2,
    "catchUpTimeoutMillis": 1000,
}
# The first: seconds beyond which a member gives up reading from one that has vanished; 5 by default.
_PARAMETERS = {
    "oplogNetworkTimeoutBufferSeconds": "1",
    "enableTestCommands": "1",
    "diagnosticDataCollectionEnabled": "false",
    "shutdownTimeoutMillisForSignaledShutdown": "100",
}
_PATIENCE = 60.0
# NotYetInitialized, and what a member says while its state changes.
_PASSING = (94, 11602, 13436)


@dataclass
class Member:
    """``port`` is where it listens, ``address`` the port that everybody knows and that the network leads there."""

    name: str
    directory: Path
    port: int
    address: int
    process: "subprocess.Popen[bytes] | None" = None

    async def command(self, name: str, value: Any = 1, **options: Any) -> dict[str, Any]:
        """Asks this very member, past the network and whatever its state."""
        async with self.client() as client:
            answer: dict[str, Any] = await client.admin.command(name, value, **options)
            return answer

    def client(self) -> AsyncMongoClient[dict[str, Any]]:
        return AsyncMongoClient(HOST, self.port, directConnection=True, serverSelectionTimeoutMS=5000, tz_aware=True)


class ReplicaSet:
    """``async with ReplicaSet() as replicas``: a primary and two secondaries, all ended and deleted at the end."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="roundhouse-failover-")
        self._network = Network()
        self._binary = find_mongod()
        self.members: list[Member] = []

    @property
    def uri(self) -> str:
        hosts = ",".join(f"{HOST}:{member.address}" for member in self.members)
        return f"mongodb://{hosts}/?replicaSet={NAME}"

    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if error is not None:
            for member in self.members:
                print(f"---- {member.name}\n{(member.directory / 'log').read_text(errors='replace')[-3000:]}")
        await self._end()

    async def primary(self, *, other_than: Member | None = None) -> Member:
        """The member that a majority follows, once there is one."""
        found: list[Member] = []

        async def elected() -> bool:
            found[:] = [member for member in self.members if member is not other_than and await self._leads(member)]
            return len(found) == 1

        await self._until(elected, "one primary")
        return found[0]

    async def healthy(self) -> None:
        """Returns once there are a primary and two secondaries, each with everything that the primary has."""

        async def level() -> bool:
            status = await (await self.primary()).command("replSetGetStatus")
            states = sorted(member["stateStr"] for member in status["members"])
            times = [member["optime"]["ts"] for member in status["members"] if "optime" in member]
            return states == ["PRIMARY", "SECONDARY", "SECONDARY"] and max(times).time - min(times).time <= 1

        await self._until(level, "a primary and two secondaries that keep up")

    async def kill(self, member: Member) -> None:
        """``kill -9``."""
        assert member.process is not None
        member.process.kill()
        await asyncio.to_thread(member.process.wait)
        member.process = None

    async def restart(self, member: Member) -> None:
        """On its data, at its address. Returns once all three work."""
        self._start(member)
        await self.healthy()

    async def step_down(self, member: Member) -> None:
        """Makes the primary a secondary for half a minute, most of which another one may take to catch up with it."""
        await member.command("replSetStepDown", 30, secondaryCatchUpPeriodSecs=25)

    def cut_off(self, member: Member, *, clients: bool = False) -> None:
        """Between ``member`` and the others nothing arrives any more. ``clients``: nor between it and the clients."""
        for other in self.members:
            if other is not member:
                self._network.cut(member.name, other.name)
        if clients:
            self._network.cut(member.name, CLIENTS)

    async def mend(self) -> None:
        """Ends every cut. Returns once all three work together again."""
        self._network.mend()
        await self.healthy()

    async def repair(self) -> None:
        """Undoes whatever was done to the set. Returns once all three work together again."""
        for member in self.members:
            if member.process is None:
                self._start(member)
                await self._listening(member)
            await self.resume_replication(member)
        await self.mend()

    async def stop_replication(self, member: Member) -> None:
        """From when this returns the secondary takes nothing over from the primary; it goes on voting."""
        set_up = await member.command("configureFailPoint", "stopReplProducer", mode="alwaysOn")
        await member.command("waitForFailPoint", "stopReplProducer", timesEntered=set_up["count"] + 1, maxTimeMS=30_000)

    async def resume_replication(self, member: Member) -> None:
        await member.command("configureFailPoint", "stopReplProducer", mode="off")

    # ── Setting up ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _set_up(self) -> None:
        for name in ("one", "two", "three"):
            directory = Path(self._home.name) / name
            directory.mkdir()
            port = free_port()
            self.members.append(Member(name, directory, port, self._network.address(name, port)))
        for member in self.members:
            self._start(member)
        hosts = [{"_id": i, "host": f"{HOST}:{member.address}"} for i, member in enumerate(self.members)]
        config = {"_id": NAME, "members": hosts, "settings": _SETTINGS}
        async with asyncio.TaskGroup() as tasks:
            for member in self.members:
                tasks.create_task(self._listening(member))
        await self.members[0].command("replSetInitiate", config)
        await self._until(self._stands, "a first election")
        await self.healthy()

    def _start(self, member: Member) -> None:
        options = {
            "--dbpath": str(member.directory),
            "--logpath": str(member.directory / "log"),
            "--port": str(member.port),
            "--bind_ip": HOST,
            "--replSet": NAME,
            "--wiredTigerCacheSizeGB": "0.25",
            "--oplogSize": "64",
        }
        command = [str(self._binary), *(part for pair in options.items() for part in pair), "--nounixsocket", "--quiet"]
        command += ["--logappend", *(f"--setParameter={name}={value}" for name, value in _PARAMETERS.items())]
        member.process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._network.is_process(member.name, member.process.pid)

    async def _listening(self, member: Member) -> None:
        async def answers() -> bool:
            assert member.process is not None
            assert member.process.poll() is None, f"mongod {member.name} ended: {member.process.returncode}"
            with suppress(AutoReconnect):
                return bool(await member.command("ping"))
            return False

        await self._until(answers, f"mongod {member.name} listens")

    async def _stands(self) -> bool:
        """Spares the set its first election timeout. No member can stand before it is a secondary."""
        try:
            await self.members[0].command("replSetStepUp")
        except OperationFailure:
            return False
        return True

    async def _end(self) -> None:
        for member in self.members:
            if member.process is not None:
                await self.kill(member)
        self._network.close()
        self._home.cleanup()

    async def fail_over_without_a_majority(self, database: Database) -> list[Member]:
        """There is a new primary, and nothing of its term has a majority until the members returned replicate again."""
        await self.healthy()
        old = await self.primary()
        others = [member for member in self.members if member is not old]
        await asyncio.gather(*map(self.stop_replication, others))
        await self.kill(old)
        await self.primary(other_than=old)

        async def answers() -> bool:
            try:
                return await database.jobs_local.find_one({}) is not None
            except AutoReconnect:
                return False

        await eventually(answers, within=60)
        return others

    # ── Looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _leads(self, member: Member) -> bool:
        """Whether it is a primary whom the others know as such: one that was cut off thinks so for a while, too."""
        if member.process is None:
            return False
        try:
            if not (await member.command("hello"))["isWritablePrimary"]:
                return False
            status = await member.command("replSetGetStatus")
        except AutoReconnect:
            return False
        except OperationFailure as error:
            if error.code in _PASSING:
                return False
            raise
        return sum(int(other["health"]) for other in status["members"]) >= 2

    async def _until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not await condition():
            assert time.monotonic() < deadline, f"not within {_PATIENCE:.0f} s: {what}"
            await asyncio.sleep(0.05)

"""The embedded mongod's files of record and its one-member replica set: configuration, user, and waiting for both."""

import asyncio
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, Field
from pymongo import AsyncMongoClient
from pymongo.errors import ConnectionFailure, OperationFailure

from broker.daemons import ProcessRecord
from broker.errors import MongodError

REPLICA_SET = "roundhouse"
_USER = "roundhouse"
# Below the range from which Linux takes ports for outgoing connections: such a port could be taken at any restart.
PORTS = range(20_000, 30_000)
_UNAUTHORIZED, _ALREADY_INITIALIZED = 13, 23
# NotYetInitialized, ConfigurationInProgress: mongod still reads its configuration, or is at work on another.
# It may do so for 30 s after a move, while the program that has its former port leaves it without an answer.
_PASSING = (94, 109)
_PATIENCE = 0.1

Client = AsyncMongoClient[dict[str, Any]]


class Deployment(BaseModel):
    """``mongod.json``. ``ready``: the set-up has come to its end once, so data may be stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int
    password: str = Field(repr=False)
    binary: Path
    ready: bool = False

    @property
    def uri(self) -> str:
        return f"mongodb://{_USER}:{self.password}@{self.host}/?replicaSet={REPLICA_SET}&authSource=admin"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def save(self, path: Path) -> "Deployment":
        write_durably(path, self.model_dump_json(indent=2))
        return self


class Polls:
    """``async for _ in Polls(seconds)``: at once, and then every 20 ms until ``seconds`` have passed."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._begun = False

    def __aiter__(self) -> "Polls":
        return self

    async def __anext__(self) -> None:
        if self._begun:
            await asyncio.sleep(0.02)
            if time.monotonic() > self._deadline:
                raise StopAsyncIteration
        self._begun = True


async def until_primary(deployment: Deployment, process: ProcessRecord, deadline: float) -> bool:
    """Sees to it that ``process`` becomes the primary of its set. False when it ended or ``deadline`` s passed.

    Raises PyMongoError when mongod refuses.
    """
    async with _client(deployment) as client:
        async for _ in Polls(deadline):
            if not process.alive():
                return False
            # A port that is not this mongod's own may be anybody's, whom it is not for us to set up.
            if not listens(process.pid, deployment.port):
                continue
            try:
                hello = await client.admin.command("hello")
                if hello["isWritablePrimary"]:
                    return True
                if hello.get("isreplicaset"):
                    await _configure(deployment)
            except ConnectionFailure:
                continue
            except OperationFailure as error:
                if error.code not in _PASSING:
                    raise
                await asyncio.sleep(_PATIENCE)
    return False


async def _configure(deployment: Deployment) -> None:
    """mongod is in no replica set: it was not initiated yet, or it knows itself by its former port.

    It says so for a moment at every start, too: then nothing is to be done.
    """
    if not deployment.ready:
        await _initiate(deployment)
        return
    async with _client(deployment, deployment.password) as client:
        config = await client.local["system.replset"].find_one()
        if config is not None and config["members"][0]["host"] != deployment.host:
            config["members"][0]["host"] = deployment.host
            config["version"] += 1
            # Only by force: an unforced one is for the primary, which a mongod outside its set never is.
            await client.admin.command("replSetReconfig", config, force=True)


async def _initiate(deployment: Deployment) -> None:
    """Allowed without credentials over loopback while there is no user (MongoDB's localhost exception)."""
    config = {"_id": REPLICA_SET, "members": [{"_id": 0, "host": deployment.host}]}
    async with _client(deployment) as client:
        try:
            await client.admin.command("replSetInitiate", config)
        except OperationFailure as error:
            # Initiated before, and about to notice; where there is a user already, it was as well.
            if error.code not in (_UNAUTHORIZED, _ALREADY_INITIALIZED):
                raise


async def create_user(deployment: Deployment) -> None:
    """The one user, by the localhost exception; where it exists, its password is checked. Raises PyMongoError."""
    durable = {"w": "majority", "j": True}
    async with _client(deployment) as client:
        try:
            await client.admin.command(
                "createUser", _USER, pwd=deployment.password, roles=["root"], writeConcern=durable
            )
        except OperationFailure as error:
            if error.code != _UNAUTHORIZED:
                raise
    async with _client(deployment, deployment.password) as client:
        await client.admin.command("ping")


def _client(deployment: Deployment, password: str | None = None) -> Client:
    return AsyncMongoClient(
        "127.0.0.1",
        deployment.port,
        directConnection=True,
        username=_USER if password else None,
        password=password,
        serverSelectionTimeoutMS=1000,
        connectTimeoutMS=1000,
        socketTimeoutMS=20_000,
    )


def listens(pid: int, port: int) -> bool:
    """Whether it is this process that listens on the port."""
    try:
        sockets = psutil.Process(pid).net_connections("tcp4")
    except psutil.Error:
        return False
    return any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets)


def taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def free_port() -> int:
    for _ in range(100):
        port = secrets.choice(PORTS)
        if not taken(port):
            return port
    raise MongodError(f"No port from {PORTS.start} to {PORTS.stop - 1} is free for mongod.")


def write_durably(path: Path, text: str) -> None:
    """Whole or not at all, private, and on disk when this returns."""
    fresh = path.with_name(f"{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

"""``roundhouse up``: mongod, the gateways and a worker as children of one process, restarted when they die.

Every child is told by the kernel when its parent is gone, so a ``kill -9`` of the supervisor leaves no process behind
but mongod, which the next ``up`` finds again and ``down`` stops.
"""

import asyncio
import errno
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker.daemons import ProcessRecord
from broker.database import connect
from broker.home import private_directory
from broker.mongod import EmbeddedMongod
from broker.mongodpath import usable_mongod
from config import Settings
from config.errors import RoundhouseError
from gateway.secrets import admin_password, jwt_secret

log = logging.getLogger(__name__)

# A child that ends sooner than this after its start is restarted ever more slowly.
STEADY = 10.0
SLOWEST = 10.0
# Seconds in which a port may become free: the gateways of a supervisor that was just killed have yet to let go of it.
PORT_PATIENCE = 5.0
# Seconds for the children beyond the drain before they are killed.
GRACE = 20.0


class SupervisorError(RoundhouseError):
    code = "supervisor_failed"


@dataclass(frozen=True, slots=True)
class Child:
    name: str
    command: Sequence[str]
    fds: tuple[int, ...] = ()


async def listen(host: str, port: int) -> socket.socket:
    """The socket that the gateways share. Raises SupervisorError where the port is taken and stays so."""
    deadline = time.monotonic() + PORT_PATIENCE
    waits = False
    while True:
        try:
            return bound(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise SupervisorError(
                    f"Cannot listen on {host} port {port}: {reason}. Stop what uses it or set SERVER_PORT to another."
                ) from error
        if not waits:
            log.warning("%s port %d is taken, waiting up to %.0f s for it to become free", host, port, PORT_PATIENCE)
            waits = True
        await asyncio.sleep(0.1)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def gateway_children(settings: Settings, listener: socket.socket) -> list[Child]:
    command = (sys.executable, "-m", "gateway.server", "--fd", str(listener.fileno()))
    return [Child(f"gateway-{n}", command, (listener.fileno(),)) for n in range(1, settings.server.workers + 1)]


def worker_child() -> Child:
    return Child("worker", (sys.executable, "-m", "worker", "--supervised"))


class Supervisor:
    """Runs ``children`` until told to stop. ``kill_after``: seconds that they have to end by themselves."""

    def __init__(self, children: Sequence[Child], kill_after: float) -> None:
        self._children = children
        self._kill_after = kill_after
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Passes SIGTERM on. Called again, it does so again: a worker then hands back what runs, at once."""
        self._stopping.set()
        for process in self._running.values():
            if process.returncode is None:
                process.terminate()

    async def run(self) -> None:
        keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        everything = asyncio.ensure_future(asyncio.wait(keepers))
        await self._stopping.wait()
        await asyncio.wait({everything}, timeout=self._kill_after)
        for name, process in self._running.items():
            if process.returncode is None:
                log.error("%s did not stop within %.0f s and is killed", name, self._kill_after)
                process.kill()
        await everything

    async def _keep(self, child: Child) -> None:
        pause = 0.5
        while not self._stopping.is_set():
            started = time.monotonic()
            # A session of its own, so that Ctrl-C in a terminal reaches it once, through us.
            process = await asyncio.create_subprocess_exec(
                *child.command, pass_fds=child.fds, start_new_session=True, stdin=subprocess.DEVNULL
            )
            self._running[child.name] = process
            if self._stopping.is_set():
                process.terminate()
            code = await process.wait()
            if self._stopping.is_set():
                return
            pause = 0.5 if time.monotonic() - started > STEADY else min(pause * 2, SLOWEST)
            log.warning("%s (pid %d) ended with %s, starting it again in %.1f s", child.name, process.pid, code, pause)
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


async def supervise(settings: Settings, children: Sequence[Child]) -> None:
    """Runs the children until SIGTERM or SIGINT."""
    supervisor = Supervisor(children, settings.queue.drain_timeout + GRACE)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    await supervisor.run()


async def check(settings: Settings) -> None:
    """Raises ConfigError or MongodError for what every gateway would end by, only to be started again for ever."""
    if settings.mongodb.uri is not None:
        await connect(settings.mongodb.uri, settings.mongodb.database).close()
    elif not (status := EmbeddedMongod(settings.home).status()).running:
        usable_mongod(status.binary)
    if settings.jwt_secret is None:
        jwt_secret(settings.home)
    if settings.admin_password is None:
        admin_password(settings.home)


async def up(settings: Settings, *, gateway: bool = True, worker: bool = True) -> None:
    """The whole system in the foreground.

    Raises SupervisorError where it runs already or the port is taken, and as ``check`` does.
    """
    await check(settings)
    run = private_directory(settings.home, "run")
    record = run / "up.json"
    with _alone(run, settings.home), await listen(settings.server.host, settings.server.port) as listener:
        ProcessRecord.current().write(record)
        try:
            await _run_all(settings, listener)
        finally:
            record.unlink()


@contextmanager
def _alone(run: Path, home: Path) -> Iterator[None]:
    """The kernel drops the lock with its holder, so a kill leaves nothing behind."""
    with (run / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SupervisorError(f"Roundhouse is running already with the state in {home}.") from None
        yield


async def _run_all(settings: Settings, listener: socket.socket) -> None:
    embedded = EmbeddedMongod(settings.home) if settings.mongodb.uri is None else None
    try:
        if embedded is not None:
            await embedded.ensure()
        await supervise(settings, [*gateway_children(settings, listener), worker_child()])
    finally:
        if embedded is not None:
            await embedded.stop()


def start_detached(
    settings: Settings, environment: Mapping[str, str] = os.environ
) -> tuple[subprocess.Popen[bytes], Path]:
    """Starts ``up`` in the background; the process and its log."""
    path = private_directory(settings.home, "logs") / "roundhouse.log"
    with path.open("ab") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "up"],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
        )
    return process, path


async def gateways(settings: Settings) -> None:
    """Only the gateways, in the foreground. An embedded mongod that they start goes on after them.

    Raises as ``up`` does.
    """
    await check(settings)
    with await listen(settings.server.host, settings.server.port) as listener:
        await supervise(settings, gateway_children(settings, listener))


def running(settings: Settings) -> ProcessRecord | None:
    """The supervisor that runs on this state directory, if one does."""
    record = ProcessRecord.read(settings.home / "run" / "up.json")
    return record if record is not None and record.alive() else None


async def down(settings: Settings, timeout: float) -> bool:
    """Stops what ``up`` started; False where nothing runs. Raises SupervisorError when it does not stop in time."""
    supervisor = running(settings)
    if supervisor is not None:
        supervisor.send(signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while supervisor.alive():
            if time.monotonic() > deadline:
                raise SupervisorError(f"Process {supervisor.pid} did not stop within {timeout:.0f} s.")
            await asyncio.sleep(0.05)
    embedded = EmbeddedMongod(settings.home)
    # Left over where the supervisor was killed.
    orphaned = settings.mongodb.uri is None and embedded.status().running
    if orphaned:
        await embedded.stop()
    return supervisor is not None or orphaned

"""One engine as a process: started under a guard, watched over its Unix socket and its log, and ended as a whole.

Processes: this one ── pipe ──► the guard (``engine_guard``) ──► the engine's leader ──► its others.
"""

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, time

import httpx

from broker.cancellation import cancel_all
from broker.errors import EngineUnavailable
from broker.mongodset import Polls
from worker.engine_guard import ORPHAN_GRACE, REST_GRACE
from worker.engine_log import Phase, last_errors, phase_of
from worker.engine_record import EngineRecord

log = logging.getLogger(__name__)

# Seconds. A dead engine is to be noticed within two.
_WATCH = 0.5
_START_POLL = 0.2
# For a process that the kernel cannot end at once, such as one in the midst of writing a core file.
_KILL_PATIENCE = 60.0
_HEALTH_TIMEOUT = 1.0
# Seconds for the guard to kill and bury what is left, on a busy machine.
_GUARD_PATIENCE = 10.0
# Bytes of the log in which reasons are looked for, and after which a new log is begun.
_TAIL = 200_000
_LOG_LIMIT = 20 * 2**20
# Seconds from the making of a start's directory to its record, at most.
_RECORD_PATIENCE = 60.0
RECORD = "engine.json"
# sockaddr_un has room for 107 bytes (unix(7)).
_SOCKET_LIMIT = 100
# Engines may have sockets of their own there, which vLLM names by a UUID.
_LONGEST = "0" * 36


class EngineProcess:
    """For one start. ``socket``: where the engine will listen; ``record``: for whoever has to clean up after us."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, socket: Path, log: Path, record: Path
    ) -> None:
        self.exited = asyncio.Event()
        """Set when no process of the engine is left."""
        self.phase = Phase.STARTING
        self._command = command
        self._environment = environment
        self._socket = socket
        self._log = log
        self._record = record
        self._log_begin = 0
        self._guard: Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)),
            base_url="http://engine",
            timeout=_HEALTH_TIMEOUT,
        )
        """To the engine, for what is not a job's."""

    @property
    def alive(self) -> bool:
        return self._guard is not None and not self.exited.is_set()

    @property
    def status(self) -> int | None:
        """Exit status of the engine's leader, 128 + n for signal n; None while it runs."""
        return None if self._guard is None else self._guard.returncode

    async def start(self) -> None:
        """Returns as soon as the guard runs."""
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._log.exists() and self._log.stat().st_size > _LOG_LIMIT:
            self._log.replace(self._log.with_suffix(".log.1"))
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._log_begin = os.fstat(output).st_size
            # A session of its own: a Ctrl-C in the worker's terminal is the worker's business.
            self._guard = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker.engine_guard", str(self._record), str(_GUARD_PATIENCE), "--"),
                *self._command,
                stdin=PIPE,
                stdout=output,
                stderr=output,
                env=dict(self._environment),
                start_new_session=True,
            )
        finally:
            os.close(output)
        self._tasks.append(asyncio.create_task(self._await_end(self._guard)))

    async def until_ready(self, on_progress: Callable[[Phase], None], timeout: float) -> None:
        """Returns when the engine answers that it is healthy. Raises EngineUnavailable with the reason when it ends
        instead, or does not get there in ``timeout`` seconds: then it has been ended."""
        deadline = monotonic() + timeout
        on_progress(self.phase)
        while not self.exited.is_set():
            self._advance(phase_of(self._said(), self.phase), on_progress)
            if await self.healthy():
                self._advance(Phase.READY, on_progress)
                self._tasks.append(asyncio.create_task(self._watch()))
                return
            if monotonic() > deadline:
                await self.stop(grace=0.0)
                told = f"The engine was not ready after {timeout:g} s, its last phase was {self.phase}"
                raise EngineUnavailable(f"{told} (log: {self._log}).", code="engine_start_timeout")
            with suppress(TimeoutError):
                await asyncio.wait_for(self.exited.wait(), _START_POLL)
        raise EngineUnavailable(
            f"The engine did not start: {self.why()} (log: {self._log}).", code="engine_start_failed"
        )

    async def healthy(self) -> bool:
        """Whether it says so itself. An engine too busy to answer in a second says nothing."""
        return await self._health() == httpx.codes.OK

    def last_errors(self) -> str:
        """The cause, where it is known, and the engine's last error line; empty when its log shows nothing."""
        return last_errors(self._said())

    def why(self) -> str:
        """How it ended, in words."""
        status = self.status
        if status is None:
            return self.last_errors() or "it does not say why"
        killed = signal.Signals(status - 128).name if status - 128 in set(signal.Signals) else ""
        ended = f"it was killed by {killed}" if killed else f"it ended with status {status}"
        told = self.last_errors() if not killed else ""
        return told or ended

    async def kill(self) -> None:
        """Ends it at once. Nothing of it is left when this returns."""
        if self.alive:
            await self._tell("0\n")
            await self.exited.wait()

    async def stop(self, grace: float) -> None:
        """SIGTERM, and after ``grace`` seconds SIGKILL for all that is left. Nothing is left when this returns."""
        if self._guard is not None and not self.exited.is_set():
            await self._tell(f"{grace}\n")
            with suppress(TimeoutError):
                await asyncio.wait_for(self.exited.wait(), grace + _GUARD_PATIENCE)
            if not self.exited.is_set():
                log.error("the guard of an engine does not end (pid %d): killing it and the engine", self._guard.pid)
                self._guard.kill()
                await self.exited.wait()
        await cancel_all(self._tasks)
        await self.http.aclose()

    async def _tell(self, line: str) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self._guard.stdin.write(line.encode())
            await self._guard.stdin.drain()

    async def _await_end(self, guard: Process) -> None:
        await guard.wait()
        # Left there only where the guard itself was killed.
        if (record := EngineRecord.read(self._record)) is not None:
            await kill_group(record)
            self._record.unlink(missing_ok=True)
        self.exited.set()

    async def _watch(self) -> None:
        """Ends an engine that says that it is not healthy: its server may outlive its core."""
        while not self.exited.is_set():
            if await self._health() == httpx.codes.SERVICE_UNAVAILABLE:
                await self._tell("0\n")
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self.exited.wait(), _WATCH)

    async def _health(self) -> int | None:
        try:
            return (await self.http.get("/health")).status_code
        except httpx.TransportError:
            return None

    def _advance(self, phase: Phase, on_progress: Callable[[Phase], None]) -> None:
        # A small model is through with a phase before it is looked at again.
        order = list(Phase)
        for reached in order[order.index(self.phase) + 1 : order.index(phase) + 1]:
            self.phase = reached
            on_progress(reached)

    def _said(self) -> str:
        """The end of what this start has logged."""
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_begin, size - _TAIL))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


async def kill_group(record: EngineRecord) -> None:
    """Kills what is left of an engine until nothing is."""
    rest_at = monotonic() + REST_GRACE
    async for _ in Polls(_KILL_PATIENCE):
        if not record.kill(everything=monotonic() > rest_at):
            return


def start_directory(home: Path, name: str) -> Path:
    """A fresh directory for the record and socket of one start of the model ``name``, its owner's alone."""
    engines = home / "run" / "engines"
    engines.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=name.replace("/", "_")[:40] + "-", dir=engines))
    if len(os.fsencode(directory / _LONGEST)) > _SOCKET_LIMIT:
        (directory / "short").symlink_to(tempfile.mkdtemp(prefix="roundhouse-"))
    return directory


def socket_in(directory: Path) -> Path:
    """Where the engine of ``directory`` listens: in it, or where its path is too long for a socket, beside."""
    short = directory / "short"
    return (short.readlink() if short.is_symlink() else directory) / "socket"


def remove_start_directory(directory: Path) -> None:
    short = directory / "short"
    if short.is_symlink():
        shutil.rmtree(short.readlink(), ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


async def sweep_leftovers(home: Path) -> int:
    """Ends the engines whose worker is gone, found by their records and not by name; how many there were.

    Where only the worker was killed, the guard is at it already and is waited for.
    """
    found = 0
    for directory in sorted((home / "run" / "engines").glob("*-*")):
        record = EngineRecord.read(directory / RECORD)
        if record is None:
            # Another worker may be about to write one.
            if time() - directory.stat().st_mtime > _RECORD_PATIENCE:
                remove_start_directory(directory)
            continue
        if record.attended():
            continue
        found += bool(record.members())
        async for _ in Polls(ORPHAN_GRACE + _GUARD_PATIENCE):
            if not record.guard.alive():
                break
        await kill_group(record)
        remove_start_directory(directory)
    return found

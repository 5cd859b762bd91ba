"""The embedded mongod: a real MongoDB for trials and tests, where MONGODB_URI names no server.

It is a one-member replica set on loopback. Everything it needs lies in ``<home>/mongod``: ``data/``, ``keyfile``,
``mongod.json`` (port and credentials), ``process.json`` (which process it is), ``mongod.log`` and ``lock``. It
outlives the process that started it. Any number of processes may ask for it at once, each may be killed between
any two steps, and the next one goes on from there.
"""

import asyncio
import errno
import fcntl
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex, token_urlsafe
from typing import Any

import psutil
from pydantic import ValidationError
from pymongo.errors import PyMongoError

from broker.daemons import Exit, ProcessRecord, ended, launch
from broker.errors import MongodError
from broker.mongodlog import last_words
from broker.mongodpath import find_mongod
from broker.mongodset import (
    REPLICA_SET,
    Deployment,
    Polls,
    create_user,
    free_port,
    listens,
    taken,
    until_primary,
    write_durably,
)

log = logging.getLogger(__name__)

# Seconds. A journal of many GB takes long to replay; mongod is left running after that and the next call waits on.
_START_DEADLINE = 90.0
# For what is just closing the port. All clients would have to learn of another one.
_PORT_PATIENCE = 1.0
_LOG_LIMIT = 50 * 2**20
# WiredTiger preallocates journal files of 100 MB each.
_SPACE_NEEDED = 400 * 2**20


@dataclass(frozen=True, slots=True)
class MongodStatus:
    """``pid`` is None when it does not run, ``port`` and ``binary`` are None before its first start."""

    pid: int | None
    port: int | None
    binary: Path | None
    directory: Path
    log: Path

    @property
    def running(self) -> bool:
        return self.pid is not None


class EmbeddedMongod:
    """The mongod of the state directory ``home``. Holds no resources: make as many as are handy.

    ``cache``: GB for WiredTiger's cache; default: an eighth of the memory, from 0.25 to 0.5.
    """

    def __init__(self, home: Path, *, cache: float | None = None) -> None:
        self.directory = home.absolute() / "mongod"
        self.log = self.directory / "mongod.log"
        self._data = self.directory / "data"
        self._keyfile = self.directory / "keyfile"
        self._deployment = self.directory / "mongod.json"
        self._record = self.directory / "process.json"
        self._lock = self.directory / "lock"
        self._cache = cache or min(0.5, max(0.25, psutil.virtual_memory().total / 2**30 / 8))

    async def ensure(self) -> str:
        """The URI, with credentials, of a running primary; starts and sets up what is missing.

        A port that another program has taken meanwhile is exchanged for a new one, and the URI with it.
        Raises MongodError.
        """
        with self._explained():
            async with self._locked() as lock:
                return await self._running(lock, may_move=True)

    async def revive(self) -> bool:
        """Starts it again if it has crashed, and says whether it had. What was stopped stays stopped.

        Always on the same port, as clients have the URI: if that port is taken, this is a MongodError.
        """
        with self._explained():
            async with self._locked() as lock:
                if not self.crashed():
                    return False
                await self._running(lock, may_move=False)
                return True

    async def stop(self, timeout: float = 30.0) -> None:
        """Ends it, if it runs: politely, after ``timeout`` seconds by force (up to 10). Keepers leave it stopped."""
        if not self.directory.exists():
            return
        with self._explained():
            async with self._locked():
                if record := ProcessRecord.read(self._record):
                    record.send(signal.SIGTERM)
                    if not await self._gone(record, timeout):
                        record.send(signal.SIGKILL)
                        if not await self._gone(record, max(timeout, 10.0)):
                            raise MongodError(f"mongod (process {record.pid}) does not end, not even by SIGKILL.")
                self._record.unlink(missing_ok=True)

    def status(self) -> MongodStatus:
        """What is known without asking mongod itself. Raises MongodError when its files cannot be read."""
        with self._explained():
            deployment, record = self._load(), ProcessRecord.read(self._record)
            pid = record.pid if record and record.alive() else None
            port, binary = (deployment.port, deployment.binary) if deployment else (None, None)
            return MongodStatus(pid, port, binary, self.directory, self.log)

    def crashed(self) -> bool:
        """It was started, nobody stopped it, and it is gone."""
        return self._record.exists() and not self._alive()

    def hindrance(self) -> str | None:
        """Why it cannot be started again after a crash, in the kernel's words. None where it has not crashed, or where
        nothing can be seen to be in its way."""
        if not self.crashed():
            return None
        disk = os.statvfs(self.directory)
        if disk.f_flag & os.ST_RDONLY:
            return os.strerror(errno.EROFS)
        return os.strerror(errno.ENOSPC) if self._space() < _SPACE_NEEDED else None

    def limit_log(self) -> None:
        """Keeps the log bounded: beyond 50 MB it becomes ``mongod.log.1`` and mongod begins a new one."""
        if self._log_size() < _LOG_LIMIT:
            return
        lock = os.open(self._lock, os.O_RDWR)
        try:
            if _try_lock(lock):
                self._rotate_log()
        finally:
            os.close(lock)

    # --- files

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MongodError(f"The embedded mongod cannot use {self.directory}: {error}.") from error
        except PyMongoError as error:
            raise MongodError(f"The embedded mongod refused its set-up: {error} (log: {self.log}).") from error

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[int]:
        self._make_directories()
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            async for _ in Polls(2 * _START_DEADLINE):
                if _try_lock(lock):
                    break
            else:
                raise MongodError(f"Another process has held {self._lock} for {2 * _START_DEADLINE:.0f} s; end it.")
            yield lock
        finally:
            os.close(lock)

    def _make_directories(self) -> None:
        for directory in (self.directory.parent, self.directory, self._data):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _load(self) -> Deployment | None:
        try:
            return Deployment.model_validate_json(self._deployment.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise MongodError(
                f"{self._deployment} is damaged; restore it, or move {self.directory} away to begin anew."
            ) from error

    def _changed(self, deployment: Deployment, **changes: Any) -> Deployment:
        return deployment.model_copy(update=changes).save(self._deployment)

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _rotate_log(self) -> None:
        if self._log_size() < _LOG_LIMIT:
            return
        self.log.replace(self.log.with_suffix(".log.1"))
        if record := ProcessRecord.read(self._record):
            record.send(signal.SIGUSR1)

    def _prepare(self, binary: Path) -> Deployment:
        """What must be on disk before the first start. Data without mongod.json has a password that is lost."""
        if any(self._data.iterdir()):
            raise MongodError(
                f"{self._data} has data, but {self._deployment.name} with its password is gone; "
                f"restore it, or move {self.directory} away to begin anew."
            )
        return Deployment(port=free_port(), password=token_urlsafe(32), binary=binary).save(self._deployment)

    # --- the process

    async def _running(self, lock: int, may_move: bool) -> str:
        deployment = self._load() or self._prepare(await asyncio.to_thread(find_mongod))
        if self._alive() and await self._set_up(deployment):
            return deployment.uri
        # It was not there, or it was about to end.
        deployment = await self._start(deployment, may_move, lock)
        begin = self._log_size()
        if not await self._set_up(deployment):
            raise MongodError(f"mongod ended: {last_words(self.log, begin, None)} (log: {self.log}).")
        return deployment.uri

    def _alive(self) -> bool:
        record = ProcessRecord.read(self._record)
        return record is not None and record.alive()

    async def _gone(self, record: ProcessRecord, timeout: float) -> bool:
        async for _ in Polls(timeout):
            if not record.alive():
                return True
        return False

    async def _start(self, deployment: Deployment, may_move: bool, lock: int) -> Deployment:
        deployment = await self._with_binary(deployment)
        self._check_space()
        if not self._keyfile.exists():
            write_durably(self._keyfile, token_hex(256))
        while True:
            if not await self._free(deployment.port):
                deployment = self._moved(deployment, may_move)
            self._rotate_log()
            begin = self._log_size()
            pid = launch(
                self._command(deployment),
                record=self._record,
                directory=self.directory,
                environment=_environment(os.environ),
                output=self.log,
                lock=lock,
            )
            end = await self._until_listening(pid, deployment.port)
            if end is None:
                return deployment
            # Another program may have been quicker in taking the port than mongod: then once more, elsewhere.
            if not taken(deployment.port):
                words = last_words(self.log, begin, end.status)
                raise MongodError(f"mongod does not start: {words} (log: {self.log}).")

    async def _with_binary(self, deployment: Deployment) -> Deployment:
        """The program that wrote the data opens it again, even if a newer release, which may not, has come since."""
        if os.access(deployment.binary, os.X_OK):
            return deployment
        return self._changed(deployment, binary=await asyncio.to_thread(find_mongod))

    async def _free(self, port: int) -> bool:
        async for _ in Polls(_PORT_PATIENCE):
            if not taken(port):
                return True
        return False

    def _space(self) -> int:
        return shutil.disk_usage(self.directory).free

    def _check_space(self) -> None:
        free = self._space()
        if free < _SPACE_NEEDED:
            raise MongodError(
                f"The disk of {self.directory} is full: {free // 2**20} MB are free and mongod needs "
                f"{_SPACE_NEEDED // 2**20} MB; make room, or set ROUNDHOUSE_HOME to another disk."
            )

    def _moved(self, deployment: Deployment, may_move: bool) -> Deployment:
        """On another port. until_primary() tells the replica set, which knows the old one."""
        if deployment.ready and not may_move:
            raise MongodError(
                f"Another program has taken port {deployment.port}, which mongod needs ({self._deployment}); "
                "end that program, or restart Roundhouse so that mongod moves to another port."
            )
        if not deployment.ready:
            # Nothing was ever stored, and without a user a replica set cannot be told of its new port.
            shutil.rmtree(self._data)
            self._data.mkdir(mode=0o700)
        port = free_port()
        log.warning("port %d is taken: mongod moves to port %d", deployment.port, port)
        return self._changed(deployment, port=port)

    def _command(self, deployment: Deployment) -> list[str | Path]:
        options: dict[str, Any] = {
            "--dbpath": self._data,
            "--port": deployment.port,
            "--bind_ip": "127.0.0.1",
            "--replSet": REPLICA_SET,
            "--keyFile": self._keyfile,
            "--logpath": self.log,
            "--logRotate": "reopen",
            "--wiredTigerCacheSizeGB": f"{self._cache:.2f}",
            "--oplogSize": 1024,
        }
        parameters = {
            "diagnosticDataCollectionEnabled": "false",
            "shutdownTimeoutMillisForSignaledShutdown": 100,
            # Nobody reads the past here, and a queue leaves much of it: kept for the default of five minutes, the index
            # keys of ended jobs are stepped over by each search beside them, the more the more jobs there were.
            "minSnapshotHistoryWindowInSeconds": 0,
        }
        flags = ["--nounixsocket", "--quiet", "--logappend"]
        pairs = [str(part) for pair in options.items() for part in pair]
        settings = [part for name, value in parameters.items() for part in ("--setParameter", f"{name}={value}")]
        return [deployment.binary, *pairs, *flags, *settings]

    async def _until_listening(self, pid: int, port: int) -> Exit | None:
        """None once ``pid`` itself listens on ``port``; how it ended when it did so instead."""
        async for _ in Polls(_START_DEADLINE):
            if (end := ended(pid)) is not None:
                return end
            if listens(pid, port):
                return None
        raise self._silent(pid)

    def _silent(self, pid: int) -> MongodError:
        return MongodError(f"mongod (process {pid}) runs but is not ready yet; see {self.log}, or try again later.")

    async def _set_up(self, deployment: Deployment) -> bool:
        """From a mongod that was started to a primary with its user. False when it ended meanwhile."""
        record = ProcessRecord.read(self._record)
        if record is None:
            raise MongodError(f"{self._record} has vanished while mongod was being started; try again.")
        try:
            if not await until_primary(deployment, record, _START_DEADLINE):
                if record.alive():
                    raise self._silent(record.pid)
                return False
            if not deployment.ready:
                await create_user(deployment)
                self._changed(deployment, ready=True)
        except PyMongoError:
            if record.alive():
                raise
            return False
        return True


class MongodKeeper:
    """Starts the embedded mongod again when it has crashed. Every process that depends on it may run one.

    ``interval``: seconds between looks, which cost a read of /proc and no question to the database.
    """

    def __init__(self, mongod: EmbeddedMongod, *, interval: float = 1.0) -> None:
        self._mongod = mongod
        self._interval = interval

    async def run(self) -> None:
        """Until cancelled. What keeps mongod from starting is logged and tried again, ever more seldom."""
        pause = self._interval
        while True:
            await asyncio.sleep(pause)
            pause = self._interval if await self._look() else min(pause * 2, 30.0)

    async def _look(self) -> bool:
        try:
            self._mongod.limit_log()
            if self._mongod.crashed():
                log.warning("the embedded mongod is gone; starting it again")
                if await self._mongod.revive():
                    log.warning("the embedded mongod runs again")
        except (MongodError, OSError) as error:
            log.error("the embedded mongod cannot be kept up: %s", error)
            return False
        return True


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Nothing secret, and a locale that exists: with one that does not, mongod refuses to start."""
    kept = {name: environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in environ}
    return kept | {"LC_ALL": "C"}

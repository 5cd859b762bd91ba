"""The peers' own servers, each with an empty disk and every job on it before it is acknowledged."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port
from tests.system import end

_POSTGRES_HOMES = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Server:
    """``variables`` for the environment of those who use it."""

    pid: int
    variables: dict[str, str]


@contextmanager
def redis(home: Path) -> Iterator[Server]:
    """Redis that syncs its append-only file after every command (``appendfsync always``)."""
    port = free_port()
    home.mkdir()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home)]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning"]
    with _running(command, home, port) as pid:
        yield Server(pid, {"REDIS_URL": f"redis://127.0.0.1:{port}/0"})


@contextmanager
def postgresql(home: Path) -> Iterator[Server]:
    """PostgreSQL as it comes: ``fsync`` and ``synchronous_commit`` are on."""
    port, programs, user = free_port(), postgresql_programs(), _unprivileged()
    assert programs is not None
    home.mkdir()
    if user is not None:
        os.chown(home, user, -1)
        for parent in list(home.parents)[:2]:  # the scratch folder is our own and nobody else's
            parent.chmod(0o711)
    data = home / "data"
    make: list[str | Path] = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd="/", user=user)
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    with _running(command, home, port, user) as pid:
        yield Server(pid, {"POSTGRES_URL": f"postgres://postgres@127.0.0.1:{port}/postgres"})


def postgresql_programs() -> Path | None:
    """Where ``initdb`` and ``postgres`` are; distributions keep them off PATH."""
    newest = sorted(_POSTGRES_HOMES.glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name))
    found = newest[-1] if newest else shutil.which("initdb")
    return Path(found).parent if found else None


def _unprivileged() -> int | None:
    """PostgreSQL does not run as root."""
    return pwd.getpwnam("postgres").pw_uid if os.getuid() == 0 else None


@contextmanager
def _running(command: Sequence[str], home: Path, port: int, user: int | None = None) -> Iterator[int]:
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, user=user
        )
    try:
        _until_listening(process, port, home / "log")
        yield process.pid
    finally:
        end(process)


def _until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"Nothing listens on port {port}: {log.read_text()[-1000:]}")

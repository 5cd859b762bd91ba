"""Where a benchmark runs: a home with a mongod of its own, the processes on it, and a word about the machine."""

import asyncio
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from pymongo import MongoClient

from broker.mongod import EmbeddedMongod
from broker.mongodpath import find_mongod
from tests.benchmarks.producer import MODEL
from tests.deployments import environment
from tests.system import end

ROOT = Path(__file__).parent.parent.parent
OTHER = "other"
# No measurement takes longer than this, in seconds; one that does hangs.
LIMIT = 600
_OURS = ("ROUNDHOUSE", "MONGODB_URI", "JWT_SECRET", "ADMIN_PASSWORD", "SERVER_")


def configuration() -> dict[str, Any]:
    """Two models of 20 places and long queues, everything else as it comes."""
    noop = {"task": "chat", "engine": "simulator", "max_concurrent": 20, "max_waiting": 100_000}
    return {"models": {MODEL: noop, OTHER: noop}, "defaults": {"chat": [MODEL]}}


class Site:
    """A mongod and the processes of one benchmark. ``database`` may be changed between measurements."""

    def __init__(self, home: Path, uri: str, mongod: int) -> None:
        self.home = home
        self.uri = uri
        self.mongod = mongod
        (home / "config.yaml").write_text(yaml.safe_dump(configuration()))

    @contextmanager
    def database(self, name: str) -> Iterator[dict[str, str]]:
        """The environment of processes that use the database ``name``, which is dropped in the end."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
        try:
            yield inherited | environment(self.home, self.uri, name)
        finally:
            with self.client() as client:
                client.drop_database(name)

    def client(self) -> MongoClient[dict[str, Any]]:
        return MongoClient(self.uri)


@contextmanager
def site() -> Iterator[Site]:
    """Starts a mongod on an empty disk; afterwards it and everything that it wrote is gone."""
    home = Path(tempfile.mkdtemp(prefix="roundhouse-benchmark-"))
    mongod = EmbeddedMongod(home / "state")
    try:
        uri = asyncio.run(mongod.ensure())
        pid = mongod.status().pid
        assert pid is not None
        yield Site(home, uri, pid)
    finally:
        asyncio.run(mongod.stop(timeout=10))
        shutil.rmtree(home)


@contextmanager
def process(*command: str, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says a line when it is ready, ended politely at the end."""
    started = subprocess.Popen(
        command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    assert started.stdout is not None
    try:
        if not started.stdout.readline():
            raise SystemExit(f"{' '.join(command)} ended with {started.wait()} before it was ready")
        yield started
    finally:
        end(started)
        started.stdout.close()


def output(*command: str, env: Mapping[str, str], limit: float = LIMIT) -> str:
    """What a process said that ran to its end. Raises SystemExit where it failed."""
    done = subprocess.run(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=limit, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} ended with {done.returncode}")
    return done.stdout


def module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"tests.benchmarks.{name}", *arguments)


def headline(module: str, arguments: Sequence[str] | None) -> str:
    """What was run, and where. ``arguments``: as ``main`` got them, None for the process's own."""
    command = ["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)]
    return f"`{shlex.join(command)}`: {machine()}\n"


def machine() -> str:
    """One line about what the figures are measured on."""
    told = subprocess.run([find_mongod(), "--version"], capture_output=True, text=True, check=True).stdout
    version = told.split("\n", 1)[0].removeprefix("db version v")
    memory = round(psutil.virtual_memory().total / 2**30)
    return (
        f"{psutil.cpu_count()} cores ({_processor()}), {memory} GB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, mongod {version}, load {os.getloadavg()[0]:.1f} before"
    )


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()

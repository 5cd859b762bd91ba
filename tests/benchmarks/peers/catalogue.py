"""The peers: what each is run with, and what is missing where it cannot run.

The set-ups are as quick as each peer can be made without giving up that an acknowledged job is on disk.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.peers import servers
from tests.benchmarks.peers.environments import ROOT, environment, node_modules
from tests.benchmarks.work import Figures, Plan, cpu_seconds, heard
from tests.system import end

_HERE = Path(__file__).parent
_LIMIT = 300
Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Peer:
    """``extra``: of pyproject.toml, with the peer in it. ``worker``: a program of that environment and its arguments;
    None: ``python -m MODULE worker``.
    """

    title: str
    module: str
    extra: str
    server: str
    worker: Command | None = None

    def commands(self) -> tuple[Command, Command, Mapping[str, str]]:
        """Producer (the plan is still to be added), worker, and variables. Installs what is not there yet."""
        if self.module == "bullmq":
            modules = node_modules(_HERE / "package.json")
            script = ("node", str(_HERE / "bullmq.js"))
            return script, (*script, "worker"), {"NODE_PATH": str(modules)}
        programs = environment(self.extra)
        module = (str(programs / "python"), "-m", f"tests.benchmarks.peers.{self.module}")
        worker = (*module, "worker") if self.worker is None else (str(programs / self.worker[0]), *self.worker[1:])
        return module, worker, {"PYTHONPATH": str(ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}


_DRAMATIQ = ("dramatiq", "tests.benchmarks.peers.dramatiq", "-p", "2", "-t", "8")
_TASKIQ = ("taskiq", "worker", "tests.benchmarks.peers.taskiq:broker", "--workers", "1", "--max-async-tasks", "20")
_CELERY = ("celery", "-A", "tests.benchmarks.peers.celery", "worker", "-P", "prefork", "-c", "2", "--loglevel=ERROR")
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")

PEERS: Mapping[str, Peer] = {
    "bullmq": Peer("BullMQ", "bullmq", "", "redis"),
    "dramatiq": Peer("Dramatiq", "dramatiq", "bench", "redis", _DRAMATIQ),
    "saq": Peer("SAQ", "saq", "bench-saq", "redis"),
    "taskiq": Peer("taskiq", "taskiq", "bench", "redis", (*_TASKIQ, "--log-level", "ERROR")),
    "arq": Peer("arq", "arq", "bench-arq", "redis"),
    "saq-postgresql": Peer("SAQ on PostgreSQL", "saq", "bench-saq", "postgresql"),
    "celery": Peer("Celery", "celery", "bench", "redis", (*_CELERY, *_QUIET)),
    "procrastinate": Peer("Procrastinate", "procrastinate", "bench", "postgresql"),
}
_SERVERS: Mapping[str, Callable[[Path], AbstractContextManager[servers.Server]]] = {
    "redis": servers.redis,
    "postgresql": servers.postgresql,
}


def missing(peer: Peer) -> str | None:
    """A line that says what is to be installed first; None where the peer can run, all its packages installed."""
    if peer.server == "redis" and shutil.which("redis-server") is None:
        return f"{peer.title} is left out: install redis-server (apt-get install redis-server)."
    if peer.server == "postgresql" and servers.postgresql_programs() is None:
        return f"{peer.title} is left out: install PostgreSQL (apt-get install postgresql)."
    if peer.module == "bullmq" and (shutil.which("node") is None or shutil.which("npm") is None):
        return f"{peer.title} is left out: install Node.js (apt-get install nodejs npm)."
    try:
        peer.commands()
    except subprocess.CalledProcessError as error:
        return f"{peer.title} is left out: its packages cannot be installed ({error})."
    return None


def one_round(peer: Peer, plan: Plan, home: Path) -> list[Figures]:
    """An empty server, a fresh worker, a fresh producer. ``home``: a directory that is not there yet."""
    producer, worker, variables = peer.commands()
    home.mkdir()
    with _SERVERS[peer.server](home / "server") as server:
        env = {**os.environ, **server.variables, **variables}
        with _worker(worker, env, home / "worker.log") as pid:
            told = replace(plan, processes={"worker": pid, "broker": server.pid})
            done = subprocess.run(
                [*producer, told.text()], env=env, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT, check=False
            )
    if done.returncode:
        print(f"{peer.title} failed: {done.stderr[-2000:]}", file=sys.stderr)
    return heard(done.stdout)


@contextmanager
def _worker(command: Command, env: Mapping[str, str], log: Path) -> Iterator[int]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _until_quiet(process.pid)
        yield process.pid
    finally:
        end(process)


def _until_quiet(pid: int, within: float = 15.0) -> None:
    """Until all of a worker's processes have been loaded: they take less than half a core."""
    deadline, window = time.monotonic() + within, 0.5
    before = -1.0
    while time.monotonic() < deadline:
        now = cpu_seconds(pid)
        if now > 0.2 and now - before < window / 2:
            return
        before = now
        time.sleep(window)

"""The processes of a crash run: gateways, workers and their mongod, kept up as an init system would, and struck."""

import asyncio
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import yaml

from broker.mongod import EmbeddedMongod
from tests.crash.plan import Blow, Kind, Target
from tests.deployments import environment
from tests.ports import free_port
from tests.system import ROOT, end

_LOOK = 0.1
# Seconds before a process that ended is started again.
_RESTART = 0.3
_STOPPING = 40.0
_IDENTITY = re.compile(r"worker ([0-9a-f]{32}) serves")
_INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME", "VIRTUAL_ENV", "TESSDATA_PREFIX")


@dataclass(slots=True)
class Start:
    """One start of a unit. ``code``: how it ended; None while it runs.

    ``struck``: when the suite first sent it a signal, in seconds since 1970.
    """

    process: "subprocess.Popen[bytes]"
    log: Path
    struck: float | None = None
    code: int | None = None


@dataclass(slots=True)
class Unit:
    """A command that is to run always. ``role``: gateway or worker."""

    name: str
    role: str
    environ: Mapping[str, str]
    starts: list[Start] = field(default_factory=list)

    @property
    def current(self) -> Start:
        return self.starts[-1]


class Fleet:
    """``home`` holds configuration, logs, the state directory and what the processes put into TMPDIR."""

    def __init__(self, home: Path, config: Mapping[str, Any], *, gateways: int, workers: int) -> None:
        self.home = home
        self.temporary = home / "tmp"
        self.temporary.mkdir(parents=True)
        (home / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
        self.mongod = EmbeddedMongod(home / "state", cache=0.25)
        self.blows: Counter[tuple[Target, Kind]] = Counter()
        self._inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        ports = [free_port() for _ in range(gateways)]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.units = [self._unit(f"gateway-{n}", "gateway", port) for n, port in enumerate(ports, 1)]
        self.units += [self._unit(f"worker-{n}", "worker", ports[0]) for n in range(1, workers + 1)]
        self._watching: asyncio.Task[None] | None = None
        self._held: dict[psutil.Process, asyncio.Task[None]] = {}

    def _unit(self, name: str, role: str, port: int) -> Unit:
        ours = {"SERVER_PORT": str(port), "TMPDIR": str(self.temporary)}
        return Unit(name, role, self._inherited | environment(self.home, None, "roundhouse") | ours)

    async def __aenter__(self) -> Self:
        await self.mongod.ensure()
        self.deploy("gateway")
        self.deploy("worker")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.heal()
        await self._unwatch()
        for start in [unit.current for unit in self.units if unit.starts]:
            await asyncio.to_thread(end, start.process)
        await self.mongod.stop()

    # ── Kept up ──────────────────────────────────────────────────────────────────────────────────────────────────

    def deploy(self, role: str) -> None:
        """Starts the units of that role, and keeps all that run up from now on."""
        for unit in self._of(role):
            self._start(unit)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    def _of(self, role: str) -> list[Unit]:
        return [unit for unit in self.units if unit.role == role]

    def _start(self, unit: Unit) -> None:
        log = self.home / f"{unit.name}.{len(unit.starts) + 1}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", unit.role],
                env=dict(unit.environ),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        unit.starts.append(Start(process, log))

    async def _watch(self) -> None:
        while True:
            for unit in self.units:
                if unit.starts and unit.current.code is None:
                    unit.current.code = unit.current.process.poll()
                elif unit.starts:
                    self._start(unit)
            await asyncio.sleep(_LOOK if self._all_run() else _RESTART)

    def _all_run(self) -> bool:
        return all(not unit.starts or unit.current.code is None for unit in self.units)

    async def _unwatch(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None

    # ── Struck ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def strike(self, blow: Blow) -> None:
        """Sends the signal to one of the processes of that kind, as soon as there is one that is not stopped."""
        send: Mapping[Kind, Callable[[psutil.Process], None]] = {
            Kind.KILL: psutil.Process.kill,
            Kind.STOP: psutil.Process.suspend,
            Kind.TERM: psutil.Process.terminate,
        }
        while True:
            with suppress(psutil.NoSuchProcess):
                if victims := [process for process in self._processes(blow.target) if _active(process)]:
                    victim = victims[blow.which % len(victims)]
                    self._remember(victim.pid)
                    send[blow.kind](victim)
                    if blow.kind is Kind.STOP:
                        self._held[victim] = asyncio.create_task(self._resume(victim, blow.hold))
                    break
            await asyncio.sleep(_LOOK)
        self.blows[blow.target, blow.kind] += 1

    def _processes(self, target: Target) -> list[psutil.Process]:
        """All of them are children of this process, or children of those, or the mongod of our own home."""
        if target is Target.MONGOD:
            pid = self.mongod.status().pid
            return [] if pid is None else [psutil.Process(pid)]
        role = "worker" if target is Target.WORKER else "gateway"
        pids = [unit.current.process.pid for unit in self._of(role) if unit.starts and unit.current.code is None]
        parents = [psutil.Process(pid) for pid in pids]
        if target is Target.GATEWAY:
            return [child for parent in parents for child in parent.children()]
        return parents

    def _remember(self, pid: int) -> None:
        for start in (start for unit in self.units for start in unit.starts):
            if start.process.pid == pid and start.struck is None:
                start.struck = time.time()

    async def _resume(self, victim: psutil.Process, after: float) -> None:
        await asyncio.sleep(after)
        _go_on(victim)
        del self._held[victim]

    async def heal(self) -> None:
        """Lets go on what is stopped."""
        for victim, task in self._held.items():
            task.cancel()
            _go_on(victim)
        await asyncio.gather(*self._held.values(), return_exceptions=True)
        self._held.clear()

    # ── At the end ───────────────────────────────────────────────────────────────────────────────────────────────

    def untouched(self) -> dict[str, float]:
        """Until when each worker, by its id, was left in peace: in seconds since 1970, for ever where it always was."""
        until: dict[str, float] = {}
        for start in (start for unit in self._of("worker") for start in unit.starts):
            by_itself = 0.0 if start.code == -signal.SIGKILL else math.inf
            for worker in _IDENTITY.findall(start.log.read_text(errors="replace")):
                until[worker] = start.struck or by_itself
        return until

    def self_killed(self) -> int:
        """Workers that ended by SIGKILL though nobody struck them: a job with the fault «crash» does that."""
        starts = [start for unit in self._of("worker") for start in unit.starts]
        return sum(not start.struck and start.code == -signal.SIGKILL for start in starts)

    def other_ends(self) -> list[str]:
        """Units that have ended by themselves: nobody struck them, and no fault of the simulator did."""
        ends = [(unit, start) for unit in self.units for start in unit.starts if start.code not in (None, 0)]
        return [
            f"{start.log.name}: exit {start.code}: {_last_line(start.log)}"
            for unit, start in ends
            if not start.struck and start.code != -signal.SIGKILL
        ]

    async def dismiss(self, role: str) -> list[str]:
        """SIGTERM to all units of that role, which are not started again; those that do not end well."""
        await self._unwatch()
        starts = [unit.current for unit in self._of(role)]
        for start in starts:
            start.process.terminate()
        complaints = []
        for start in starts:
            try:
                start.code = await asyncio.to_thread(start.process.wait, _STOPPING)
            except subprocess.TimeoutExpired:
                complaints.append(f"{start.log.name}: did not end within {_STOPPING:.0f} s of SIGTERM")
                continue
            if start.code != 0:
                complaints.append(f"{start.log.name}: exit {start.code} after SIGTERM: {_last_line(start.log)}")
        return complaints

    def leftovers(self, within: float = 5.0) -> list[psutil.Process]:
        """Processes that came from this run, known by its home in their environment or arguments, and outlive it."""
        deadline = time.monotonic() + within
        ours = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
        while found := [p for p in psutil.process_iter() if p.pid not in ours and _mentions(p, str(self.home))]:
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK)
        return found


def _go_on(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.resume()


def _active(process: psutil.Process) -> bool:
    return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _mentions(process: psutil.Process, home: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return any(home in text for text in [*process.cmdline(), *process.environ().values()])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "(no word)"

"""Which processes belong to an engine: found by its process group, and by pid and start time, never by name.

The leader of the group is the process that was started (vLLM's API server); the others are its descendants. A pid stays
taken as long as a group or session bears it (setsid(2)), so an engine's group whose leader has died is found by that
number.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from broker.daemons import ProcessRecord


@dataclass(frozen=True, slots=True)
class Process:
    """A line of /proc/PID/stat, see proc(5). ``started``: clock ticks since boot."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: int

    @property
    def runs(self) -> bool:
        return self.state not in "ZX"

    def ignores_sigterm(self) -> bool:
        """As Python's tracker of shared memory does, which frees the memory of the others when they are gone: it is to
        be killed last."""
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("SigIgn:"):
                    return bool(int(line.split()[1], 16) & 1 << signal.SIGTERM - 1)
        return False

    def shared_memory(self) -> set[Path]:
        """The segments of Python's ``multiprocessing`` that it has mapped."""
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            words = Path(f"/proc/{self.pid}/maps").read_text().split()
            return {Path(word) for word in words if word.startswith("/dev/shm/psm_")}
        return set()


def processes() -> Iterator[Process]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (process := _read(entry.name)):
            yield process


def _read(pid: str) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    parent, group, session = map(int, fields[1:4])
    return Process(int(pid), fields[0].decode(), parent, group, session, int(fields[19]))


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """``leader``: of the engine's process group and session; ``guard``: the process that looks after it; ``owner``: pid
    of the worker that started the guard."""

    leader: ProcessRecord
    guard: ProcessRecord
    owner: int

    @classmethod
    def read(cls, path: Path) -> "EngineRecord | None":
        """None when there is none. It is written before the engine's program begins."""
        try:
            data = json.loads(path.read_text())
            return cls(ProcessRecord(**data["leader"]), ProcessRecord(**data["guard"]), int(data["owner"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        beside = path.with_name(f".{path.name}.{self.leader.pid}")
        beside.write_text(json.dumps(asdict(self)))
        beside.replace(path)

    def attended(self) -> bool:
        """Whether the guard runs and the worker that started it does: an orphan has another parent."""
        guard = _read(str(self.guard.pid))
        return guard is not None and self.guard.alive() and guard.parent == self.owner

    def members(self) -> list[Process]:
        """The running processes of the engine's group; none when the number has been given to another group since."""
        if ProcessRecord.current().boot != self.leader.boot:
            return []
        group = [p for p in processes() if p.group == self.leader.pid == p.session and p.started >= self.leader.started]
        if any(p.pid == self.leader.pid and p.started != self.leader.started for p in group):
            return []
        return [process for process in group if process.runs]

    def kill(self, everything: bool = True) -> bool:
        """SIGKILL to the whole group, or to all but those that clean up after the others. False when nothing runs."""
        members = self.members()
        for process in members:
            if everything or not process.ignores_sigterm():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        return bool(members)


def recorded_pids(record: Path) -> list[int]:
    """Of the processes of the engine that is recorded there."""
    found = EngineRecord.read(record)
    return [] if found is None else [process.pid for process in found.members()]

"""Processes that outlive the one that started them, found again by a record on disk and never by name.

A pid alone may have been given to another program since, and a start time counted from the epoch moves when the
clock is set. So a record holds the pid, the start in clock ticks since boot (field 22 of /proc/PID/stat, see
proc(5)) and the id of that boot.
"""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from broker.open_files import enough_open_files

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Writes the record and then becomes the daemon, keeping pid and start time: no moment exists at which the daemon
# runs unrecorded. Descriptor 9 is the caller's lock: it is held until then even if the caller is killed meanwhile.
_LAUNCHER = """
set -eu
umask 077
read -r stat < "/proc/$$/stat"
started=$(set -- $stat && shift 21 && echo "$1")
printf '{"pid": %s, "started": %s, "boot": "%s"}\\n' "$$" "$started" "$2" > "$1"
ulimit -S -n "$3"
cd "$4"
shift 4
exec "$@" 9>&-
"""
_LOCK_FD = 9


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """``started``: clock ticks from boot to the start of ``pid``; ``boot``: the kernel's id of that boot."""

    pid: int
    started: int
    boot: str

    @classmethod
    def read(cls, path: Path) -> "ProcessRecord | None":
        """The record in ``path``. None when there is none, or when the launcher was killed while it wrote one:
        then the daemon was never started."""
        try:
            fields = json.loads(path.read_text())
            return cls(int(fields["pid"]), int(fields["started"]), str(fields["boot"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def current(cls) -> "ProcessRecord":
        """The record of the calling process."""
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return cls(os.getpid(), int(fields[19]), _BOOT_ID.read_text().strip())

    def write(self, path: Path) -> None:
        """Replaces the record in ``path``: a reader sees the old one or the new one, whole."""
        beside = path.with_name(f".{path.name}.{self.pid}")
        beside.write_text(json.dumps(asdict(self)))
        beside.replace(path)

    def alive(self) -> bool:
        """Whether this very process runs. Where it is a dead child of ours, it is laid to rest."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
            boot = _BOOT_ID.read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return False
        fields = stat.rpartition(")")[2].split()
        state, threads, started = fields[0], int(fields[17]), int(fields[19])
        if (started, boot) != (self.started, self.boot):
            return False
        if state not in "ZX":
            return True
        ended(self.pid)
        # A killed process is a zombie as soon as its first thread is; the others hold its files and port until then.
        return threads > 1

    def send(self, number: signal.Signals) -> bool:
        """Signals this very process; False when it is gone. Raises PermissionError when it is another user's."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # The descriptor pins the process: a pid given to another after this check cannot be hit.
            if not self.alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


@dataclass(frozen=True, slots=True)
class Exit:
    """``status``: negative for a signal; None where another part of this process has taken notice of the end."""

    status: int | None


def launch(
    command: Sequence[str | Path],
    *,
    record: Path,
    directory: Path,
    environment: Mapping[str, str],
    output: Path,
    lock: int,
) -> int:
    """Starts ``command`` in a session of its own, which neither a kill nor a Ctrl-C of the caller ends.

    ``record`` gets its ProcessRecord before the command begins. ``output`` is appended to. ``lock`` is the
    descriptor of the flock that guards the record. Returns the pid, a child of this process.
    """
    arguments = [record, _BOOT_ID.read_text().strip(), enough_open_files(), directory, *command]
    return os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _LAUNCHER, "launch", *map(str, arguments)],
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, lock, _LOCK_FD),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    )


def ended(pid: int) -> Exit | None:
    """How the child ``pid`` of this process ended; None while it runs."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return Exit(None)
    return Exit(os.waitstatus_to_exitcode(status)) if found else None

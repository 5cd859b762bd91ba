"""``python -m worker.engine_guard RECORD GRACE -- COMMAND...``: starts an engine that does not outlive its worker.

Standard input is a pipe from the worker. A line with a number of seconds asks for the engine's end, and to kill what is
left after that time; SIGTERM asks for the same, with GRACE. When the pipe closes, the worker is gone and the engine is
ended soon. The engine's leader alone gets the SIGTERM: it drains, and takes its own processes down in order.

The guard ends when no process of the engine is left, with the leader's exit status (128 + n for signal n). It adopts
the engine's orphans (PR_SET_CHILD_SUBREAPER), so that those that left the process group are found as well. When the
guard itself is killed, the kernel sends the leader a SIGTERM, and RECORD tells the worker, or the next, what to kill.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from broker.daemons import ProcessRecord
from broker.parent import die_with_parent
from worker.engine_record import EngineRecord, processes

_PR_SET_CHILD_SUBREAPER = 36
# Seconds between the worker's death and the kill: nobody waits for the answers that the engine still works on.
ORPHAN_GRACE = 3.0
# Seconds for what the leader leaves behind to end by itself.
REST_GRACE = 1.0
_POLL = 0.02
_STDIN = 0
_NOT_STARTED = 127


def main(arguments: Sequence[str]) -> int:
    record, grace, separator, *command = arguments
    assert separator == "--"
    guard = Guard(Path(record), float(grace))
    try:
        guard.start(command)
    except (OSError, subprocess.SubprocessError) as error:
        Path(record).unlink(missing_ok=True)
        print(f"engine guard: {command[0]} cannot be started: {error}", file=sys.stderr, flush=True)
        return _NOT_STARTED
    guard.attend()
    return guard.end()


class Guard:
    """``grace``: seconds from a SIGTERM to the kill."""

    def __init__(self, record: Path, grace: float) -> None:
        self._record = record
        self._grace = grace
        self._leader = 0
        self._status: int | None = None
        self._deadline: float | None = None
        self._memory: set[Path] = set()
        become_subreaper()
        self._signals = _signals_as_descriptor()

    def start(self, command: Sequence[str]) -> None:
        guard, owner = ProcessRecord.current(), os.getppid()

        def prepare() -> None:
            # In the child, before its program begins: no moment exists at which the engine runs unrecorded.
            EngineRecord(ProcessRecord.current(), guard, owner).write(self._record)
            die_with_parent(signal.SIGTERM)

        # This process has one thread, so that what is forbidden between fork and exec in others is safe here.
        leader = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare)
        self._leader = leader.pid

    def attend(self) -> None:
        """Until the leader has ended, or has been asked to and the time for it is over."""
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        poll.register(_STDIN, select.POLLIN)
        while self._status is None and (self._deadline is None or time.monotonic() < self._deadline):
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic()) * 1000
            ready = {descriptor for descriptor, _ in poll.poll(left)}
            if self._signals in ready:
                if set(os.read(self._signals, 64)) & {signal.SIGTERM, signal.SIGINT}:
                    self._ask_to_end(self._grace)
                self._reap()
            if _STDIN in ready:
                told = os.read(_STDIN, 64).split()
                self._ask_to_end(min(map(float, told)) if told else ORPHAN_GRACE)
                if not told:
                    poll.unregister(_STDIN)

    def end(self) -> int:
        """Kills what is left of the engine and returns the exit status. Orphans are children of this process: when it
        has none, none is left."""
        in_order = self._status is not None and self._status >= 0
        kill_at = time.monotonic() + REST_GRACE
        while self._reap():
            if time.monotonic() >= kill_at:
                self._kill(everything=True)
            elif not in_order:
                self._kill(everything=False)
            time.sleep(_POLL)
        # Where the machine is too busy for those that clean up to have come to it in time.
        for segment in self._memory:
            segment.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)
        assert self._status is not None
        return self._status if self._status >= 0 else 128 - self._status

    def _ask_to_end(self, grace: float) -> None:
        """The time may become shorter, never longer."""
        deadline = time.monotonic() + grace
        self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        if self._status is None:
            os.kill(self._leader, signal.SIGTERM)

    def _reap(self) -> bool:
        """Lays dead children to rest. Whether there are others."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._leader:
                    self._status = os.waitstatus_to_exitcode(ended[1])
            return True
        return False

    def _kill(self, everything: bool) -> None:
        """Otherwise only those that have nothing to clean up after the others."""
        for process in processes():
            ours = process.parent == os.getpid() or process.group == self._leader
            if process.runs and ours and (everything or not process.ignores_sigterm()):
                self._memory |= process.shared_memory()
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)


def become_subreaper() -> None:
    """Has orphaned descendants become children of this process instead of init's (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _signals_as_descriptor() -> int:
    """A pipe from which the numbers of the signals that have come can be read."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reading


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Child processes in groups of their own that no exit path leaves behind."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Coroutine, Sequence

STDERR_KEPT = 4_000


def tool_environment() -> dict[str, str]:
    """What a tool may see of our environment: never a secret, one thread, messages in English."""
    kept = {name: os.environ[name] for name in ("PATH", "TESSDATA_PREFIX", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", "OMP_THREAD_LIMIT": "1"}


class Child:
    """A running child process and the last of what it wrote to stderr."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._tail = bytearray()
        self._drain = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        assert self.process.stderr is not None
        while data := await self.process.stderr.read(STDERR_KEPT):
            self._tail = (self._tail + data)[-STDERR_KEPT:]

    async def ended(self) -> int:
        """Wait for the end, with stderr read to its own; return the exit status (negative: a signal)."""
        await asyncio.shield(self._drain)
        return await self.process.wait()

    @property
    def stderr(self) -> str:
        return self._tail.decode("utf-8", "replace").strip()

    async def _stop(self) -> None:
        # A leader that has been reaped took its own children along (see die_with_parent), and its number may
        # belong to another group by now.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.stdout is not None:
            while await self.process.stdout.read(65_536):
                pass
        await self.ended()


@contextlib.asynccontextmanager
async def child(arguments: Sequence[str], cwd: str, *, talk: bool, **environment: str) -> AsyncIterator[Child]:
    """Run a program in a process group that is killed, and waited for, when the block is left.

    With `talk` its stdin and stdout are pipes, otherwise they are closed to it.
    """
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=PIPE if talk else DEVNULL,
        stdout=PIPE if talk else DEVNULL,
        stderr=PIPE,
        cwd=cwd,
        env={**tool_environment(), **environment},
        start_new_session=True,
    )
    running = Child(process)
    try:
        yield running
    finally:
        # A second cancellation must not leave a process, nor a file that the caller removes next.
        await _uninterrupted(running._stop())


async def _uninterrupted(work: Coroutine[None, None, None]) -> None:
    """Finish `work` although the caller is cancelled meanwhile; only then let the cancellation through."""
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancellation = error
    task.result()
    if cancellation is not None:
        raise cancellation


def python_arguments(*arguments: str) -> list[str]:
    """The command that runs this interpreter with `arguments`, not looking for modules where it stands."""
    return [sys.executable, "-P", *arguments]

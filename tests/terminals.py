"""A command on a terminal, as its user has it."""

import asyncio
import os
import pty
import select
import subprocess
import sys
import time
from contextlib import suppress
from typing import Self

from tests.system import ROOT, System

# Seconds in which a command shows what it should, or ends.
PATIENCE = 60.0


class OnTerminal:
    """``roundhouse COMMAND`` with a terminal for its standard streams. ``text``: what it has shown."""

    def __init__(self, system: System, *command: str) -> None:
        self._master, slave = pty.openpty()
        environ = system.environ | {"TERM": "xterm", "COLUMNS": "120", "PYTHONIOENCODING": "utf-8", "LANG": "C.UTF-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", *command],
            env=environ,
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def types(self, text: str) -> None:
        """What was shown before counts no more."""
        self.text = ""
        os.write(self._master, text.encode())

    async def shows(self, *pieces: str) -> None:
        """Returns when all of ``pieces`` have been shown."""
        deadline = time.monotonic() + PATIENCE
        while not all(piece in self.text for piece in pieces):
            readable = await asyncio.to_thread(self._readable, deadline)
            assert readable, f"{pieces} were not shown, but {self.text!r}"
            self._read()

    def ends(self) -> int:
        """Its status, once it has ended."""
        deadline = time.monotonic() + PATIENCE
        with suppress(OSError):  # EIO: the other end is closed
            while self._readable(deadline) and self._read():
                """There may be more."""
        return self.process.wait(max(1.0, deadline - time.monotonic()))

    def _readable(self, deadline: float) -> bool:
        readable, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        return bool(readable)

    def _read(self) -> bool:
        data = os.read(self._master, 65536)
        self.text += data.decode(errors="replace").replace("\r", "")
        return bool(data)

"""Poppler's programs, each run with limits of its own. Runs in the decoding child only."""

import math
import resource
import subprocess
from pathlib import Path
from typing import Any

from ocr.limits import die_with_parent
from ocr.protocol import MEBIBYTE

STDERR_KEPT = 4_000
MEMORY = 1024 * MEBIBYTE
"""Address space of one program, which together with this process shall stay below what a decoder may use."""


class Budget:
    """Processor time that programs may use together. What each inherits has grown with all that this process did."""

    def __init__(self) -> None:
        self.begin(0.0)

    def begin(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = self._used() + seconds

    @property
    def left(self) -> int:
        """Whole seconds, since there is no limit in smaller ones; at least one."""
        return max(1, math.ceil(self._end - self._used()))

    def _used(self) -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


budget = Budget()


def limit_program(cpu_seconds: int) -> None:
    """Limit this process, which is about to become a program. (As a preexec_fn it is safe: there are no threads.)"""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    memory = min(MEMORY, most) if most != resource.RLIM_INFINITY else MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


class Poppler(subprocess.Popen[bytes]):
    """Popen for pdf2image, which forgets what a program said and how it ended."""

    tool = ""
    status = 0
    stderr_text = ""

    def __init__(self, command: list[str], **options: Any) -> None:
        Poppler.tool = command[0]
        seconds = budget.left
        super().__init__(command, preexec_fn=lambda: limit_program(seconds), stdin=subprocess.DEVNULL, **options)

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:
        out, err = super().communicate(input, timeout)
        Poppler.status = self.returncode
        Poppler.stderr_text = err[-STDERR_KEPT:].decode("utf-8", "replace").strip()
        return out, err


def said(command: list[str], file: Path, cpu_seconds: int, most: int, wall_seconds: float) -> str | None:
    """What a program writes to its stdout, by way of `file`, which is removed.

    None where it did not end by itself: it took too long, wrote more than `most` bytes, or crashed.
    """
    seconds = min(cpu_seconds, budget.left)

    def limit() -> None:
        limit_program(seconds)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    try:
        with file.open("wb") as output:
            ended = subprocess.run(
                command,
                preexec_fn=limit,
                timeout=wall_seconds,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
            )
        return file.read_text(encoding="utf-8", errors="replace") if ended.returncode >= 0 else None
    except subprocess.TimeoutExpired:
        return None
    finally:
        file.unlink(missing_ok=True)

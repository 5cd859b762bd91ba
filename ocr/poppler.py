"""Poppler's programs, each run with limits of its own. Runs in the decoding child only."""

import resource
import subprocess
from pathlib import Path
from typing import Any

from ocr.limits import die_with_parent

STDERR_KEPT = 4_000


class Poppler(subprocess.Popen[bytes]):
    """Popen for pdf2image, which forgets what a program said and how it ended.

    The program dies with this process and gets processor time of its own: the limit that it inherits has
    grown with each page that this process has seen to. (A preexec_fn is safe here: there are no threads.)
    """

    cpu_seconds = 0
    tool = ""
    status = 0
    stderr_text = ""

    def __init__(self, command: list[str], **options: Any) -> None:
        Poppler.tool = command[0]
        options.setdefault("preexec_fn", self._limit)
        super().__init__(command, stdin=subprocess.DEVNULL, **options)

    @classmethod
    def _limit(cls) -> None:
        die_with_parent()
        resource.setrlimit(resource.RLIMIT_CPU, (cls.cpu_seconds, cls.cpu_seconds + 1))

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:
        out, err = super().communicate(input, timeout)
        Poppler.status = self.returncode
        Poppler.stderr_text = err[-STDERR_KEPT:].decode("utf-8", "replace").strip()
        return out, err


def said(command: list[str], file: Path, cpu_seconds: int, most: int, wall_seconds: float) -> str | None:
    """What a program writes to its stdout, by way of `file`, which is removed.

    None where it did not end by itself: it took too long, wrote more than `most` bytes, or crashed.
    """

    def limit() -> None:
        die_with_parent()
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
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

"""A small disk of a test's own, which can be filled and made read-only. No privileges are needed where the kernel lets
every user have namespaces, as most do."""

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

_ROOT = Path(__file__).parents[2]
# Says a line once the disk is there, and keeps it there until its standard input is closed.
_HOLD = 'mount -t tmpfs -o size="$2" tmpfs "$1" && echo mounted && exec cat'
_BLOCK = 2**20


class NoNamespaces(Exception):
    """This user may not mount anything, not even in a namespace of their own."""


class SmallDisk:
    """A tmpfs on ``point`` that only processes begun with ``prefix`` see there; everybody else finds it at ``seen``.

    ``size`` in bytes. Raises NoNamespaces.
    """

    def __init__(self, point: Path, size: int) -> None:
        point.mkdir()
        user, same = (("-Ur",), ("-U", "--preserve-credentials")) if os.geteuid() else ((), ())
        self._holder = subprocess.Popen(
            ["unshare", *user, "-m", "sh", "-c", _HOLD, "hold", str(point), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._enter = ("nsenter", "-t", str(self._holder.pid), "-m", *same)
        # Entering leads to the root directory, and a module is looked for where one is.
        self.prefix = (*self._enter, "env", "-C", str(_ROOT))
        self.seen = Path(f"/proc/{self._holder.pid}/root{point}")
        self._point = point
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            _, complaint = self._holder.communicate()
            raise NoNamespaces(complaint.decode().strip())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """The disk is gone with the last process that sees it."""
        self._holder.communicate()

    @property
    def free(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.seen).free

    def fill(self) -> None:
        """Not a byte is left, as if another program had written too much."""
        with (self.seen / "ballast").open("ab", buffering=0) as ballast:
            size = _BLOCK
            while size:
                try:
                    ballast.write(bytes(size))
                except OSError:
                    size //= 2

    def empty(self) -> None:
        """The other program's file is deleted."""
        (self.seen / "ballast").unlink()

    def forbid_writing(self) -> bool:
        """Mounts it anew, for reading only; False where something on it is open for writing."""
        return self._remount("ro") == 0

    def allow_writing(self) -> None:
        assert self._remount("rw") == 0

    def _remount(self, mode: str) -> int:
        # ``bind``: this mount alone. The file system itself may belong to a user who is unknown in the namespace.
        command = [*self._enter, "mount", "-o", f"remount,bind,{mode}", self._point]
        return subprocess.run(command, capture_output=True, check=False).returncode

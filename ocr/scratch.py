"""The temporary directories of decoders, each held by the process that made it.

A directory is named after its maker's process number and start time, and is locked by it: what a killed process left
behind can be told from what a living one uses, even where the number has been given to another process since, and
even where the maker lives in another PID namespace.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "roundhouse-ocr-"
NAME = re.compile(re.escape(PREFIX) + r"(\d+)-(\d+)-\w+")
STATE_FIELD = 2
START_FIELD = 21
"""Of /proc/PID/stat, from 0 (proc(5)): the process's state, and when it started, in clock ticks after boot."""


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A new directory, removed with all that lies in it when the block is left."""
    me = os.getpid()
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{me}-{started(me)}-"))
    try:
        with locked(directory):
            yield directory
    finally:
        shutil.rmtree(directory)


def sweep_leftovers() -> list[Path]:
    """Remove the directories of processes that are gone, those of our own user only; return what was removed."""
    removed = []
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        match = NAME.fullmatch(directory.name)
        try:
            found = directory.lstat()
            ours = found.st_uid == os.getuid() and directory.is_dir() and not directory.is_symlink()
            if not match or not ours or started(int(match[1])) == int(match[2]):
                continue
            with locked(directory):
                shutil.rmtree(directory)
        # Somebody else's sweep was quicker, or its maker lives where we cannot see it.
        except (FileNotFoundError, BlockingIOError):
            continue
        removed.append(directory)
    return removed


def started(pid: int) -> int | None:
    """When the process of that number started, in ticks after boot; None where there is none that runs."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the program's name, is in parentheses and may hold anything.
    fields = ["", "", *text[text.rindex(")") + 1 :].split()]
    return None if fields[STATE_FIELD] in "ZX" else int(fields[START_FIELD])


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, which no child inherits. Raises `BlockingIOError` where another process holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)

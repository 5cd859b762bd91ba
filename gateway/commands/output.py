"""The file that a command writes its answer to."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

# What has such a name is open already: another file in its place would not be the one that somebody holds.
_OPEN_ALREADY = ("/dev/stdout", "/dev/stderr", "/dev/fd", "/proc")


def check(path: Path) -> None:
    """Raises UsageError where ``writing`` could not write."""
    if path.is_dir():
        raise click.UsageError(f"{path} is a directory; --output takes the name of a file.")
    if _is_stream(path):
        return
    directory = _target(path).parent
    if not directory.is_dir():
        raise click.UsageError(f"There is no directory {directory} to write {path.name} to.")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise click.UsageError(f"The directory {directory} may not be written to; choose another --output.")


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once the body is done; where it fails, all is as it was before. A pipe
    or a device is written as it comes."""
    if _is_stream(path):
        with path.open("wb") as stream:
            yield stream
        return
    target = _target(path)
    # Beside it, as a file can only be renamed within its file system.
    temporary = target.with_name(f".roundhouse-{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            if target.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            # Else a power cut might leave an empty file in the place of the one before.
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_stream(path: Path) -> bool:
    if any(path.absolute().is_relative_to(name) for name in _OPEN_ALREADY):
        return True
    return path.exists() and not path.is_file()


def _target(path: Path) -> Path:
    """The file itself, so that a link to it stays one."""
    return Path(os.path.realpath(path))

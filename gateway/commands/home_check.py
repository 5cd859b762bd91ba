"""The state directory: whether it can be used, its disk, and the secrets in it."""

import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from config import Settings
from gateway.commands.finding import Finding, Level, Service
from gateway.secrets import fault_of_jwt_secret, fault_of_password

FULL = 10**9
NEARLY_FULL = 5 * 10**9


def state_directory(settings: Settings, only: Service | None) -> Iterator[Finding]:
    """Writable, private, and with room. A directory that is not there yet is judged by the one it will be in."""
    home = settings.home
    try:
        place = next(path for path in (home, *home.parents) if path.exists())
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
        open_to_others = home.exists() and home.stat().st_mode & 0o077
    except OSError as error:
        message = f"{home} cannot be used: {error.strerror or error}."
        yield _unusable(message, settings, only)
        return
    if open_to_others:
        message = f"Other users may look into {home}."
        yield Finding("warning", "state directory", message, f"chmod 700 {shlex.quote(str(home))}")
    elif place == home:
        yield Finding("ok", "state directory", f"{home} can be written to and is private.")
    else:
        yield Finding("ok", "state directory", f"{home} will be created at the first start.")
    yield disk_finding(place, free)


def _unusable(message: str, settings: Settings, only: Service | None) -> Finding:
    hint = "Set ROUNDHOUSE_HOME to a directory that you may write to."
    given = only == "worker" or (settings.jwt_secret is not None and settings.admin_password is not None)
    level: Level = "error"
    if settings.mongodb.uri is not None and given:
        # A container's file system may be read-only.
        level, hint = "warning", f"{hint[:-1]}, if `roundhouse up` or vLLM is to run here."
    return Finding(level, "state directory", message, hint)


def disk_finding(place: Path, free: int) -> Finding:
    """``free`` in bytes."""
    message = f"{free / 10**9:.1f} GB are free on the disk of {place}."
    if free >= NEARLY_FULL:
        return Finding("ok", "disk", message)
    hint = f"Make room (`du -xh {shlex.quote(str(place))} | sort -h | tail`), or set ROUNDHOUSE_HOME to another disk."
    return Finding("error" if free < FULL else "warning", "disk", message, hint)


def secrets(settings: Settings, only: Service | None) -> Finding:
    """What is kept in the state directory for its owner alone."""
    home = settings.home
    try:
        places = [*home.glob("secrets/*"), home / "mongod" / "mongod.json", home / "mongod" / "keyfile"]
        kept = [path for path in places if path.is_file()]
        exposed = [str(path) for path in kept if path.stat().st_mode & 0o077]
        refused = {} if only == "worker" else dict(_refused(settings))
    except OSError as error:
        hint = "Run Roundhouse as the user who owns its state directory."
        return Finding("error", "secrets", f"The secrets cannot be looked at: {error}.", hint)
    if exposed:
        message = f"Other users may read {', '.join(exposed)}."
        return Finding("error", "secrets", message, f"chmod 600 {shlex.join(exposed)}")
    if refused:
        message = f"The gateway refuses {', '.join(f'{path}, which is {why}' for path, why in refused.items())}."
        return Finding("error", "secrets", message, f"rm {shlex.join(map(str, refused))}")
    if not kept:
        return Finding("ok", "secrets", "None are kept yet; the first start generates them.")
    return Finding("ok", "secrets", f"All {len(kept)} are readable by their owner alone.")


def _refused(settings: Settings) -> Iterator[tuple[Path, str]]:
    """Kept secrets that the gateway would read and refuse, and why."""
    for name, given, fault_of in (
        ("jwt_secret", settings.jwt_secret, fault_of_jwt_secret),
        ("admin_password", settings.admin_password, fault_of_password),
    ):
        path = settings.home / "secrets" / name
        if given is None and path.is_file() and (fault := _fault(path, fault_of)) is not None:
            yield path, fault


def _fault(path: Path, fault_of: Callable[[str], str | None]) -> str | None:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        return "not in UTF-8"
    return fault_of(secret) if secret else "empty"

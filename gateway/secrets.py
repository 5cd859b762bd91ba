"""Secrets that are generated once and kept in the state directory, readable by its owner alone."""

import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.home import private_directory
from config.errors import ConfigError
from config.settings import MAX_PASSWORD, MIN_PASSWORD

MIN_JWT_SECRET = 32
"""Bytes: as long as the digest of HS256, as RFC 7518 section 3.2 demands."""

# No character that is mistaken for another when read from a screen.
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def jwt_secret(home: Path, given: str | None = None) -> str:
    """``given`` (JWT_SECRET), or the one kept in ``home/secrets/jwt_secret``, made at the first start.

    Raises ConfigError when the secret is shorter than 32 bytes.
    """
    secret = given or kept_secret(home / "secrets" / "jwt_secret", lambda: secrets.token_urlsafe(48))
    if (fault := fault_of_jwt_secret(secret)) is not None:
        source = "JWT_SECRET" if given else str(home / "secrets" / "jwt_secret")
        raise ConfigError(f"{source} is {fault}; `openssl rand -hex 32` makes a good one.")
    return secret


def fault_of_jwt_secret(secret: str) -> str | None:
    return f"shorter than {MIN_JWT_SECRET} bytes" if len(secret.encode()) < MIN_JWT_SECRET else None


def admin_password(home: Path, given: str | None = None) -> str:
    """``given`` (ADMIN_PASSWORD), or the one kept in ``home/secrets/admin_password``, made once.

    Raises ConfigError when the kept one is none that a user may have.
    """
    if given:
        return given
    path = home / "secrets" / "admin_password"
    password = kept_secret(path, generate_password)
    if (fault := fault_of_password(password)) is not None:
        raise ConfigError(f"{path} is {fault}; delete it to have a new password generated.")
    return password


def fault_of_password(password: str) -> str | None:
    """Why no user may have it. The least that it needs rules out ``admin``, too."""
    if len(password) < MIN_PASSWORD:
        return f"shorter than {MIN_PASSWORD} characters"
    return f"longer than {MAX_PASSWORD} characters" if len(password) > MAX_PASSWORD else None


def generate_password() -> str:
    """Four groups of five, e.g. ``k3vhd-x7mqp-…``: 99 bits, and still fit to be typed."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(5)) for _ in range(4))


def kept_secret(path: Path, generate: Callable[[], str]) -> str:
    """The secret in ``path``, generated if the file is not there yet.

    Any number of processes may ask at once, on a crash at any point: all get the same secret, whole.
    Raises ConfigError when the file is empty or not in UTF-8, others than its owner may read it, or it is another
    user's.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    private_directory(path.parent.parent, path.parent.name)
    with _locked(path.parent):
        if not path.exists():
            _write(path, generate())
    return _read(path)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read().strip()
    except PermissionError as error:
        raise ConfigError(f"Only its owner may read {path}; run this as the user who runs Roundhouse here.") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not in UTF-8; delete it to have a new secret generated.") from None
    if mode & 0o077:
        raise ConfigError(f"Others may read {path}; run `chmod 600` on it, or delete it and one is made anew.")
    if not secret:
        raise ConfigError(f"{path} is empty; delete it to have a new secret generated.")
    return secret


def _write(path: Path, secret: str) -> None:
    """By rename, so that a reader sees nothing or all of it, also after a power cut."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # 0600 by contract
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{secret}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink()
        raise


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time. The kernel drops the lock with its holder, so a crash leaves nothing behind."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

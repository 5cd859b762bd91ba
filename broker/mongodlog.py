"""What mongod's log says about its end. The format: JSON lines (MongoDB 4.4 and newer), amid plain text of the
dynamic linker and of the shell that started it."""

import json
import signal
from pathlib import Path
from typing import Any

# "DBException in initAndListen, terminating": sums the cause up in one sentence.
_SUMMARY = 20557
_ERROR, _FATAL = "E", "F"
_TAIL = 256 * 1024


def last_words(path: Path, begin: int, status: int | None) -> str:
    """Why mongod ended, in one line: what it wrote into ``path`` from byte ``begin`` on, else its exit ``status``."""
    lines = _tail(path, begin).splitlines()
    entries = [entry for line in lines if (entry := _parsed(line))]
    plain = [line.strip() for line in lines if line.strip() and not line.startswith("{")]
    for entry in entries:
        if entry.get("id") == _SUMMARY:
            return _sentence(entry)
    for entry in entries:
        # The first one is the cause, the others are what came of it.
        if entry.get("s") in (_ERROR, _FATAL):
            return _sentence(entry)
    return plain[-1] if plain else _fate(status)


def _tail(path: Path, begin: int) -> str:
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(min(begin, end), end - _TAIL))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _sentence(entry: dict[str, Any]) -> str:
    attributes = entry.get("attr") or {}
    cause = attributes.get("message") or attributes.get("error") or ""
    if isinstance(cause, dict):  # WiredTiger's: {"msg", "error_str", ...}; a Status: {"codeName", "errmsg"}
        parts = [cause.get("msg"), cause.get("error_str"), cause.get("errmsg")]
        cause = ": ".join(str(part) for part in parts if part)
    return ": ".join(part for part in (str(entry.get("msg", "")).strip(), str(cause).strip()) if part)


def _fate(status: int | None) -> str:
    if status is None:
        return "it was killed"
    if status == -signal.SIGILL:
        return "this CPU lacks an instruction that it needs (MongoDB 5 and newer need AVX)"
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it ended with status {status}"

"""What an engine's log tells: how far its start is, and why it failed. Pure; the phrases are vLLM's."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

# Characters of an error that are worth showing.
_LIMIT: Final = 600


class Phase(StrEnum):
    """Of a start. ``starting``: its program is being loaded, which takes most of the time of a small model."""

    STARTING = "starting"
    LOADING = "loading"
    COMPILING = "compiling"
    READY = "ready"


_PHASES: Final[Mapping[Phase, re.Pattern[str]]] = {
    Phase.LOADING: re.compile(r"Starting to load model|Loading (?:safetensors|pt) checkpoint", re.I),
    # The graphs are compiled and the memory is measured and set apart.
    Phase.COMPILING: re.compile(
        r"Loading weights took|Model loading took|KV cache (?:size|memory):|Capturing CUDA", re.I
    ),
}
_ORDER: Final = list(Phase)

# Why a start fails, as an operator would call it. The first that fits any line names the failure.
_CAUSES: Final[Mapping[str, re.Pattern[str]]] = {
    "out of memory": re.compile(
        r"out of memory|OutOfMemoryError|MemoryError|Cannot allocate memory|No available memory for the cache blocks|"
        r"Free memory on device|Available memory on node|larger than the available KV cache memory|not enough memory",
        re.I,
    ),
    "model not found": re.compile(
        r"is not a local folder and is not a valid model|Repository Not Found|Repo id must|"
        r"does not appear to have a file named config\.json|Invalid repository ID|LocalEntryNotFoundError|"
        r"Cannot find any model weights|couldn't connect to|No such file or directory: '[^']*config\.json|"
        r"Can't load the configuration|Could not detect config format",
        re.I,
    ),
    "bad flag": re.compile(r": error: |unrecognized arguments|invalid choice:|Unknown quantization", re.I),
    "address in use": re.compile(r"address already in use", re.I),
}
_ERROR: Final = re.compile(r"^(?:[A-Za-z_][\w.]*)?(?:Error|Exception|Interrupt|Exit)\b.*", re.S)
# vLLM puts the process, the level, the time and the place before what it says.
_PREFIX: Final = re.compile(
    r"^(?:\([\w.:\- ]+ pid=\d+\)\s*)?(?:(?:ERROR|WARNING|INFO|CRITICAL) [\d:\- ]+ \[[^\]]*\]\s?)?"
)
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
# Says only that another process of the engine has told the reason.
_ELSEWHERE: Final = re.compile(
    r"See root cause above|Engine core initialization failed|See stack trace|EngineDeadError"
)


def phase_of(text: str, before: Phase) -> Phase:
    """The phase after the lines of ``text``; a start never goes back to an earlier one."""
    reached = [phase for phase, pattern in _PHASES.items() if pattern.search(text)]
    return max([before, *reached], key=_ORDER.index)


def last_errors(text: str) -> str:
    """Why the engine ended, in one line: the cause's name, where it is known, and the engine's own words. Empty when
    the log shows no error."""
    lines = [_said(line) for line in text.splitlines()]
    errors = [line for line in lines if _ERROR.match(line) and not _ELSEWHERE.search(line)]
    for cause, pattern in _CAUSES.items():
        fitting = [line for line in (errors or lines) if pattern.search(line)] or [
            line for line in lines if pattern.search(line)
        ]
        if fitting:
            return f"{cause}: {_short(fitting[-1])}"
    return _short(errors[-1]) if errors else _short(_last(lines))


def _said(line: str) -> str:
    return _PREFIX.sub("", _ANSI.sub("", line)).strip()


def _short(line: str) -> str:
    return line if len(line) <= _LIMIT else line[: _LIMIT - 1] + "…"


def _last(lines: Sequence[str]) -> str:
    return next((line for line in reversed(lines) if line), "")

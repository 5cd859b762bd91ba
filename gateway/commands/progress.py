"""How something comes along, on standard error: a line that changes on a terminal, else a line for each change."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from gateway.commands.terminal import job_state, model_state, plain, writable


def lively(console: Console) -> bool:
    # Not console.is_terminal, which FORCE_COLOR makes true of a file; and the spinner is drawn in Braille.
    return sys.stderr.isatty() and not console.is_dumb_terminal and "utf" in console.encoding


def say(line: str) -> None:
    print(writable(plain(line), sys.stderr), file=sys.stderr, flush=True)


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Turns on standard error while the body runs, which may change the text by what is yielded; where standard error
    is no terminal, each text is printed once."""
    console = Console(stderr=True)
    if not lively(console):
        lines = _Lines("", lambda thing: str(thing["text"]))
        lines({"text": f"{text} ..."})
        yield lambda text: lines({"text": text})
        return
    with console.status(Text(plain(text))) as status:
        yield lambda text: status.update(Text(plain(text)))


Describe = Callable[[Mapping[str, Any]], str]
Amount = Callable[[Mapping[str, Any]], tuple[float, float | None]]


class Shows(Protocol):
    """Called with a job or a model again and again, shows how it stands."""

    def __call__(self, thing: Mapping[str, Any], /) -> None: ...

    def note(self, line: str) -> None:
        """Tells of something that stays told."""


def job_progress(name: str) -> AbstractContextManager[Shows]:
    """Yields what shows a job's state. Where standard error is no terminal, every change is a line."""
    return _progress(name, job_state, _amount)


def model_progress(name: str) -> AbstractContextManager[Shows]:
    """Yields what shows how far a model is that an operator has asked something of."""
    return _progress(name, model_state, _start_amount)


@contextmanager
def _progress(
    name: str,
    describe: Describe,
    amount: Amount,
) -> Iterator[Shows]:
    console = Console(stderr=True)
    name = " ".join(plain(name).split())
    if not lively(console):
        yield _Lines(name, describe)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bars:
        yield _Bar(bars, name, describe, amount)


class _Bar:
    def __init__(self, bars: Progress, name: str, describe: Describe, amount: Amount) -> None:
        self._bars, self._name, self._describe, self._amount = bars, name, describe, amount
        self._bar = bars.add_task(name, total=None)

    def __call__(self, thing: Mapping[str, Any]) -> None:
        done, total = self._amount(thing)
        description = f"{self._name}: {self._describe(thing)}"
        self._bars.update(self._bar, description=description, completed=done, total=total)

    def note(self, line: str) -> None:
        self._bars.console.print(Text(" ".join(plain(line).split())), soft_wrap=True)


class _Lines:
    def __init__(self, name: str, describe: Describe) -> None:
        self._name, self._describe = name, describe
        self._said = ""

    def __call__(self, thing: Mapping[str, Any]) -> None:
        if (state := self._describe(thing)) != self._said:
            self._said = state
            say(f"{self._name}: {state}" if self._name else state)

    def note(self, line: str) -> None:
        say(" ".join(line.split()))


def _start_amount(model: Mapping[str, Any]) -> tuple[float, float | None]:
    """How far a start or a wake is: as its worker says, else by how long the last start took."""
    for run in model["workers"]:
        if run["progress"] is not None:
            return run["progress"], 1.0
        if run["state"] == "starting" and run["load_seconds"] and run["since"]:
            passed = datetime.now(UTC) - datetime.fromisoformat(run["since"])
            return min(passed.total_seconds(), run["load_seconds"]), run["load_seconds"]
    return 0, None


def _amount(job: Mapping[str, Any]) -> tuple[float, float | None]:
    """Done and total, where the total is known."""
    progress = job.get("progress")
    return (progress["done"], progress["total"]) if progress and job["status"] == "processing" else (0, None)

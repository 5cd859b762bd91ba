"""An engine's processes, as tests see them."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from worker.engine_process import RECORD
from worker.engine_record import EngineRecord, Process


def records_in(home: Path) -> list[EngineRecord]:
    """Of the engines that were started under ``home`` and not ended in order."""
    found = (EngineRecord.read(path) for path in sorted(home.glob(f"run/engines/*/{RECORD}")))
    return [record for record in found if record is not None]


def record_of(home: Path) -> EngineRecord:
    """Of the only engine under ``home``."""
    (record,) = records_in(home)
    return record


def named(members: Iterable[Process], title: str) -> int:
    """The pid of the one whose command line has ``title`` in it."""
    return next(p.pid for p in members if title in Path(f"/proc/{p.pid}/cmdline").read_text())


def segments(members: Iterable[Process]) -> set[Path]:
    """The shared memory that they have mapped."""
    maps = "".join(Path(f"/proc/{process.pid}/maps").read_text() for process in members)
    return {Path(word) for word in maps.split() if word.startswith("/dev/shm/psm_")}


def seconds_until(condition: Callable[[], bool], within: float, every: float = 0.02) -> float:
    """How long it took until ``condition`` held; fails the test when it does not within ``within`` seconds."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < within, f"it did not come true within {within} s"
        time.sleep(every)
    return time.monotonic() - begin

"""What one started engine holds: on its GPUs by NVML, in main memory by its processes."""

from collections.abc import Callable, Collection, Mapping, Sequence

import psutil

from worker.engines.base import Footprint
from worker.gpus import Gpus


def main_memory_of(pids: Collection[int]) -> int:
    """Bytes that the processes hold, what they share counted once (their proportional set size, see proc(5))."""
    held = 0
    for pid in pids:
        try:
            held += psutil.Process(pid).memory_full_info().pss
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return held


class Holding:
    """Of the engine with the processes ``pids()``, on the GPUs ``uuids``; on none: in main memory alone.

    Made just before the engine starts. Where the driver does not tell what a process holds, what has become less on a
    GPU while the engine started, slept or woke is taken for its own: ``mark`` is called before each of these and
    ``changed`` after it. All of it waits for the kernel and the driver, and is best asked in a thread.
    """

    def __init__(self, gpus: Gpus, uuids: Sequence[str], pids: Callable[[], Collection[int]]) -> None:
        self._gpus = gpus
        self._uuids = uuids
        self._pids = pids
        self._held = dict.fromkeys(uuids, 0)
        self._pinned = 0
        self._free: Mapping[str, int] = dict.fromkeys(uuids, 0)
        self.mark()

    def mark(self) -> None:
        """It is about to start, to sleep or to wake."""
        self._free = self._free_now()
        self._told = self._told_now()
        self.at_mark = self.on_gpus()
        """Bytes by uuid that it held then."""
        self._main = main_memory_of(self._pids())
        self._available = psutil.virtual_memory().available

    def changed(self) -> None:
        """It has started, slept or woken. Every call counts from the mark."""
        free = self._free_now()
        self._held = {uuid: max(0, self.at_mark[uuid] + self._free[uuid] - free[uuid]) for uuid in self._uuids}

    def slept(self) -> None:
        """What the driver has pinned for its weights shows in no process, and torch keeps it when they wake."""
        self.changed()
        taken = self._available - psutil.virtual_memory().available
        self._pinned = max(self._pinned, taken - main_memory_of(self._pids()) + self._main)

    def freed(self) -> Mapping[str, int]:
        """Bytes by uuid that it holds less than at the mark."""
        told = self._told_now()
        if told is not None and self._told is not None:
            return {uuid: self._told[uuid] - told[uuid] for uuid in self._uuids}
        free = self._free_now()
        return {uuid: free[uuid] - self._free[uuid] for uuid in self._uuids}

    def on_gpus(self) -> Mapping[str, int]:
        """Bytes by uuid."""
        told = self._told_now()
        return self._held if told is None else told

    def footprint(self) -> Footprint:
        """In main memory alone, where it is on no GPU: that is its device then."""
        main = main_memory_of(self._pids())
        if not self._uuids:
            return Footprint(device=main, host=0)
        return Footprint(device=max(self.on_gpus().values()), host=main + self._pinned)

    def _told_now(self) -> Mapping[str, int] | None:
        told = self._gpus.held_by(self._pids()) if self._uuids else None
        return None if told is None else {uuid: told.get(uuid, 0) for uuid in self._uuids}

    def _free_now(self) -> Mapping[str, int]:
        """A GPU that no longer answers is taken for unchanged."""
        answering = self._gpus.devices() if self._uuids else []
        return {**self._free, **{state.uuid: state.free for state in answering if state.uuid in self._free}}

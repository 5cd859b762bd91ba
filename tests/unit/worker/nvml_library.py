"""A stand-in for NVML's binding, for machines without a GPU: cards, what is taken of them, and who has taken it.

Fails as the real one does, with the exceptions of ``pynvml``.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml

GIB = 2**30


@dataclass
class Card:
    """``others``: bytes that programs hold which are no engines of ours. ``fault``: what each question about it raises,
    by NVML's number."""

    uuid: str
    total: int = 80 * GIB
    others: int = 0
    name: str = "NVIDIA Test 80GB"
    mig: bool | None = None
    fault: int | None = None
    processes: list[tuple[int, int | None]] = field(default_factory=list)


@dataclass
class NvmlLibrary:
    """``engines``: a directory with the files in which stand-in engines tell what they hold. ``names_processes``: False
    for a container, in which the driver names none. ``fault``: what NVML as a whole raises."""

    cards: list[Card]
    engines: Path | None = None
    names_processes: bool = True
    fault: int | None = None

    def nvmlInit(self) -> None:
        self._fail(self.fault)

    def nvmlDeviceGetCount(self) -> int:
        self._fail(self.fault)
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        self._fail(card.fault)
        return card.uuid

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.name

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        if card.mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(card.mig), int(card.mig)]

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> SimpleNamespace:
        self._fail(card.fault)
        used = card.others + sum(held or 0 for _, held in self._holders(card))
        return SimpleNamespace(total=card.total, free=card.total - used, used=used)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[SimpleNamespace]:
        self._fail(card.fault)
        holders = self._holders(card) if self.names_processes else []
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in holders]

    def _holders(self, card: Card) -> list[tuple[int, int | None]]:
        told = [json.loads(path.read_text()) for path in self.engines.glob("*.gpu")] if self.engines else []
        alive = [engine for engine in told if psutil.pid_exists(engine["pid"]) and engine["uuid"] == card.uuid]
        return [*card.processes, *((engine["pid"], engine["bytes"]) for engine in alive)]

    def _fail(self, fault: int | None) -> None:
        if fault is not None:
            raise pynvml.NVMLError(fault)

"""The memory of this machine: of its NVIDIA GPUs, read by NVML, and the main memory of a machine without one.

NVML (https://docs.nvidia.com/deploy/nvml-api/) is part of NVIDIA's driver; nvidia-ml-py is NVIDIA's binding of it.
"""

import logging
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import pynvml

from broker.registry import DeviceState

log = logging.getLogger(__name__)

NONE = "no NVIDIA GPU on this machine"
# Before the ids of devices that are main memory.
HOST = "host:"
# Share of the main memory that is left for models, of what is available at the start.
_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class _Gpu:
    index: int
    uuid: str
    name: str
    handle: Any


class Gpus:
    """The GPUs that this process may use: those of its CUDA_VISIBLE_DEVICES (indices or uuids, which may be cut short),
    all where it is unset.

    Indices are counted in the order of the PCI bus, as nvidia-smi and CUDA_DEVICE_ORDER=PCI_BUS_ID do; by default CUDA
    puts the fastest GPU first, which differs only where the GPUs do. A GPU in MIG mode is left out: vLLM takes no
    MIG device by its uuid, and NVML does not tell which of them a process holds memory on.

    ``library``: what ``pynvml`` offers. Each call asks the driver anew, in well under a millisecond for each GPU, and
    may be made from any thread.
    """

    def __init__(self, library: Any = pynvml, environ: Mapping[str, str] = os.environ) -> None:
        self.why_none = NONE
        """Why ``devices`` was empty when it was last asked, in plain words; empty where it was not."""
        self._nvml = library
        self._visible = environ.get("CUDA_VISIBLE_DEVICES")
        self._initialized = False
        self._known: tuple[int, Sequence[_Gpu]] = (0, ())
        self._mute: set[str] = set()

    def devices(self) -> list[DeviceState]:
        """The GPUs that answer, in CUDA's order, with what is free on each now."""
        gpus = self._gpus()
        states = [state for gpu in gpus if (state := self._state(gpu))]
        if states:
            self.why_none = ""
        elif gpus:
            self.why_none = "no GPU of this machine answers its driver"
        return states

    def held_by(self, pids: Collection[int]) -> dict[str, int] | None:
        """Bytes that the processes hold, by the uuid of the GPU.

        None where that cannot be told: where the driver says so, where it counts processes in another way than this
        process does, as in a container with pids of its own, and where it knows of none of them.
        """
        held: dict[str, int] = {}
        try:
            for gpu in self._gpus():
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(gpu.handle):
                    if not psutil.pid_exists(process.pid):
                        return None
                    if process.pid in pids:
                        if process.usedGpuMemory is None:
                            return None
                        held[gpu.uuid] = held.get(gpu.uuid, 0) + process.usedGpuMemory
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as error:
            log.debug("the driver does not tell who holds memory: %s", error)
            return None
        return held or None

    def _gpus(self) -> Sequence[_Gpu]:
        try:
            if not self._initialized:
                self._nvml.nvmlInit()
                self._initialized = True
            count = self._nvml.nvmlDeviceGetCount()
        except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
            self.why_none = NONE
            return ()
        except pynvml.NVMLError as error:
            self.why_none = f"the NVIDIA driver does not work: {error}"
            return ()
        if count != self._known[0] or not self._known[1]:
            self._known = (count, self._found(count))
        return self._known[1]

    def _found(self, count: int) -> Sequence[_Gpu]:
        """The visible ones of ``count``. Says why, where none is."""
        all_of_them = [gpu for index in range(count) if (gpu := self._gpu(index))]
        visible = _chosen(all_of_them, self._visible)
        whole = [gpu for gpu in visible if not self._in_mig_mode(gpu)]
        if not count:
            self.why_none = NONE
        elif visible and not whole:
            self.why_none = "the GPUs of this machine are divided (MIG), which is not supported"
        elif not visible:
            self.why_none = f"CUDA_VISIBLE_DEVICES ({self._visible}) shows no GPU of this machine"
        return whole

    def _gpu(self, index: int) -> _Gpu | None:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            return _Gpu(index, self._nvml.nvmlDeviceGetUUID(handle), self._nvml.nvmlDeviceGetName(handle), handle)
        except pynvml.NVMLError as error:
            log.warning("GPU %d does not answer its driver: %s", index, error)
            return None

    def _in_mig_mode(self, gpu: _Gpu) -> bool:
        try:
            current, _ = self._nvml.nvmlDeviceGetMigMode(gpu.handle)
        except pynvml.NVMLError:  # not one of those that have it
            return False
        return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)

    def _state(self, gpu: _Gpu) -> DeviceState | None:
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(gpu.handle)
        except pynvml.NVMLError as error:
            if gpu.uuid not in self._mute:
                log.warning("%s (%s) does not answer its driver: %s", gpu.name, gpu.uuid, error)
            self._mute.add(gpu.uuid)
            return None
        self._mute.discard(gpu.uuid)
        return DeviceState(gpu.uuid, int(memory.total), int(memory.free), gpu.name)


def main_memory(limit: int | None) -> DeviceState:
    """The main memory that models may use where there is no GPU: ``limit`` bytes, or three quarters of what was
    available when this was first asked. ``free``: what is available now, and no more than the total.

    The memory limit of a container is not seen: there, ``limit`` has to be set.
    """
    total = _share_at_start() if limit is None else limit
    free = min(psutil.virtual_memory().available, total)
    return DeviceState(f"{HOST}{socket.gethostname()}", total, free, "main memory")


@cache
def _share_at_start() -> int:
    return int(psutil.virtual_memory().available * _SHARE)


def _chosen(gpus: Sequence[_Gpu], visible: str | None) -> list[_Gpu]:
    """As CUDA chooses: in the order of the list, up to the first entry that names none."""
    if visible is None:
        return list(gpus)
    chosen: list[_Gpu] = []
    for entry in visible.split(","):
        gpu = _named(gpus, entry.strip())
        if gpu is None or gpu in chosen:
            break
        chosen.append(gpu)
    return chosen


def _named(gpus: Sequence[_Gpu], entry: str) -> _Gpu | None:
    if entry.isdecimal():
        return next((gpu for gpu in gpus if gpu.index == int(entry)), None)
    matching = [gpu for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None

"""Whose memory is whose while a plan is made: what is free, what becomes free, and what has been promised.

Kept by physical device, not by worker: what two workers of one machine can both use is there once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from broker.snapshot import SLEEPING, Model, Resident, Snapshot


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a model could go. ``need``: bytes it takes there on each device on top of what it holds there asleep."""

    worker: str
    devices: tuple[str, ...]
    need: tuple[int, ...]
    wakes: bool = False


class Ledger:
    """Bytes per device, by uuid. Never promises what another has been promised, or what others than we hold."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.memory: dict[str, int] = {}
        self._of: dict[str, list[str]] = {}
        for device in snapshot.devices:
            # Two workers that were asked at different moments may differ: the smaller figure is the safe one.
            self.memory[device.uuid] = min(device.memory, self.memory.get(device.uuid, device.memory))
            self._of.setdefault(device.worker, []).append(device.uuid)
        self._free = dict(self.memory)
        self._soon = dict.fromkeys(self.memory, 0)
        self._host = dict(snapshot.host_memory)
        for model in snapshot.models:
            for resident in model.residents:
                self._enter(model, resident)

    def _enter(self, model: Model, resident: Resident) -> None:
        for uuid in resident.devices:
            if uuid in self._free:
                self._free[uuid] -= resident.memory
                if resident.going:
                    self._soon[uuid] += resident.memory
        if resident.state == SLEEPING:
            self._host[resident.worker] = self._host.get(resident.worker, 0) - model.host_need

    def has_devices(self, model: Model) -> bool:
        """Whether any worker that could serve it has a device."""
        return not model.workers.isdisjoint(self._of)

    def spots(self, model: Model) -> Iterator[Spot]:
        """Where it fits at all: first where it sleeps, then the roomiest devices of each worker without an engine."""
        yield from self._wakes(model)
        taken = {resident.worker for resident in model.residents}
        for worker in sorted(model.workers.intersection(self._of) - taken):
            fitting = [uuid for uuid in self._of[worker] if self._need(model, uuid) <= self.memory[uuid]]
            if model.gpus == 1:
                for uuid in fitting:
                    yield self._spot(model, worker, [uuid])
            elif len(fitting) >= model.gpus:
                roomiest = sorted(fitting, key=lambda uuid: -self._free[uuid] - self._soon[uuid])[: model.gpus]
                yield self._spot(model, worker, [uuid for uuid in fitting if uuid in roomiest])

    def _wakes(self, model: Model) -> Iterator[Spot]:
        for resident in model.residents:
            fits = all(
                uuid in self.memory and self._need(model, uuid) <= self.memory[uuid] for uuid in resident.devices
            )
            if resident.state == SLEEPING and resident.worker in model.workers and fits:
                need = tuple(self._need(model, uuid) - resident.memory for uuid in resident.devices)
                yield Spot(resident.worker, resident.devices, need, wakes=True)

    def _spot(self, model: Model, worker: str, uuids: list[str]) -> Spot:
        return Spot(worker, tuple(uuids), tuple(self._need(model, uuid) for uuid in uuids))

    def _need(self, model: Model, uuid: str) -> int:
        return self.memory[uuid] if model.need is None else model.need

    def could_ever_fit(self, model: Model) -> bool:
        return any(True for _ in self.spots(model))

    def free(self, spot: Spot) -> bool:
        return all(self._free[uuid] >= need for uuid, need in _needs(spot))

    def free_soon(self, spot: Spot) -> bool:
        """Enough is free, or becomes so when those who are going have gone."""
        return all(self._free[uuid] + self._soon[uuid] >= need for uuid, need in _needs(spot))

    def room(self, spot: Spot) -> int:
        return min(self._free[uuid] + self._soon[uuid] for uuid in spot.devices)

    def missing(self, spot: Spot, uuid: str) -> int:
        """Bytes that have to be freed there; none if 0 or less."""
        return spot.need[spot.devices.index(uuid)] - self._free[uuid] - self._soon[uuid]

    def reserve(self, spot: Spot) -> None:
        for uuid, need in _needs(spot):
            self._free[uuid] -= need

    def frees(self, resident: Resident) -> None:
        """It was told to go. Its memory is still its own, and can be promised but not used."""
        if not resident.going:
            for uuid in resident.devices:
                self._soon[uuid] = self._soon.get(uuid, 0) + resident.memory

    def take_host(self, model: Model, worker: str) -> bool:
        """Main memory for a model that is to sleep, if there is enough."""
        if self._host.get(worker, 0) < model.host_need:
            return False
        self._host[worker] = self._host.get(worker, 0) - model.host_need
        return True


def _needs(spot: Spot) -> Iterator[tuple[str, int]]:
    return zip(spot.devices, spot.need, strict=True)

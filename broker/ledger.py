"""Whose memory is whose while a plan is made: what is free, what becomes free, and what has been promised."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from broker.snapshot import SLEEPING, Device, Model, Resident, Snapshot

_Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a model could go. ``need``: bytes it takes there on each device on top of what it holds there asleep."""

    worker: str
    devices: tuple[int, ...]
    need: tuple[int, ...]
    wakes: bool = False


class Ledger:
    """Bytes per device. Never promises what another has been promised, or what others than we hold."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.devices: dict[_Key, Device] = {(d.worker, d.index): d for d in snapshot.devices}
        self._free = {key: device.memory for key, device in self.devices.items()}
        self._soon = dict.fromkeys(self.devices, 0)
        self._host = dict(snapshot.host_memory)
        for model in snapshot.models:
            for resident in model.residents:
                self._enter(model, resident)

    def _enter(self, model: Model, resident: Resident) -> None:
        for key in _keys(resident.worker, resident.devices):
            if key in self._free:
                self._free[key] -= resident.memory
                if resident.going:
                    self._soon[key] += resident.memory
        if resident.state == SLEEPING:
            self._host[resident.worker] = self._host.get(resident.worker, 0) - model.host_need

    def spots(self, model: Model) -> Iterator[Spot]:
        """Where it fits at all, the roomiest devices of each worker; where it sleeps, if it does."""
        asleep = next((resident for resident in model.residents if resident.state == SLEEPING), None)
        if asleep:
            need = tuple(self._need(model, key) - asleep.memory for key in _keys(asleep.worker, asleep.devices))
            yield Spot(asleep.worker, asleep.devices, need, wakes=True)
            return
        for worker, keys in groupby(sorted(self.devices), key=lambda key: key[0]):
            fitting = [key for key in keys if self._need(model, key) <= self.devices[key].memory]
            if model.gpus == 1:
                for key in fitting:
                    yield self._spot(model, worker, [key])
            elif len(fitting) >= model.gpus:
                roomiest = sorted(fitting, key=lambda key: (-self._free[key] - self._soon[key], key[1]))
                yield self._spot(model, worker, sorted(roomiest[: model.gpus]))

    def _spot(self, model: Model, worker: str, keys: list[_Key]) -> Spot:
        return Spot(worker, tuple(key[1] for key in keys), tuple(self._need(model, key) for key in keys))

    def _need(self, model: Model, key: _Key) -> int:
        if model.need is not None or key not in self.devices:
            return model.need or 0
        return self.devices[key].memory

    def could_ever_fit(self, model: Model) -> bool:
        return any(True for _ in self.spots(model))

    def free(self, spot: Spot) -> bool:
        return all(self._free[key] >= need for key, need in _needs(spot))

    def free_soon(self, spot: Spot) -> bool:
        """Enough is free, or becomes so when those who are going have gone."""
        return all(self._free[key] + self._soon[key] >= need for key, need in _needs(spot))

    def room(self, spot: Spot) -> int:
        return min(self._free[key] + self._soon[key] for key, _ in _needs(spot))

    def missing(self, spot: Spot, device: int) -> int:
        """Bytes that have to be freed there; none if 0 or less."""
        key = spot.worker, device
        return spot.need[spot.devices.index(device)] - self._free[key] - self._soon[key]

    def reserve(self, spot: Spot) -> None:
        for key, need in _needs(spot):
            self._free[key] -= need

    def frees(self, resident: Resident) -> None:
        """It was told to go. Its memory is still its own, and can be promised but not used."""
        if not resident.going:
            for key in _keys(resident.worker, resident.devices):
                self._soon[key] = self._soon.get(key, 0) + resident.memory

    def take_host(self, model: Model, worker: str) -> bool:
        """Main memory for a model that is to sleep, if there is enough."""
        if self._host.get(worker, 0) < model.host_need:
            return False
        self._host[worker] = self._host.get(worker, 0) - model.host_need
        return True


def _keys(worker: str, devices: tuple[int, ...]) -> list[_Key]:
    return [(worker, index) for index in devices]


def _needs(spot: Spot) -> Iterator[tuple[_Key, int]]:
    return zip(_keys(spot.worker, spot.devices), spot.need, strict=True)

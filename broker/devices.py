"""The memory of physical devices: what is free there, what our engines hold, and what other programs do. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.registry import SILENCE, Worker

# No two workers that live differ by more in when they were heard of.
_SETTLED = SILENCE + timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine of ours as the planner is to see it.

    ``leaving``: its worker drains or is silent. ``memory``: bytes that it holds on each device, or is going to;
    ``holds``: those of them that it holds for certain, so that they are not free any more.
    """

    model: str
    worker: str
    devices: tuple[str, ...]
    state: str
    memory: int
    holds: int
    since: datetime | None = None
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """``free``: as its driver says. ``others``: bytes of other programs, as far as they have to be reckoned with.

    ``others_seen``: as it looks this moment; ``certain``: no engine of ours is on its way.
    """

    uuid: str
    name: str
    total: int
    free: int
    others: int
    others_seen: int
    certain: bool

    @property
    def for_models(self) -> int:
        return self.total - self.others


def devices_of(
    workers: Sequence[Worker], engines: Sequence[Engine], others: Mapping[str, int]
) -> Mapping[str, DeviceUse]:
    """By uuid. What is free is told by the worker that was heard of last.

    While engines load or stop, or may have since their worker was heard of, nobody knows how much of what is not free
    is theirs. What others hold is then taken to be what it was before (``others``) or, where more is certain, that.
    """
    found: dict[str, DeviceUse] = {}
    for worker in sorted(workers, key=lambda worker: worker.last_seen):
        for told in worker.devices:
            ours = [engine for engine in engines if told.uuid in engine.devices]
            total = min(told.total, found[told.uuid].total if told.uuid in found else told.total)
            taken = total - min(told.free, total)
            most = max(0, taken - sum(engine.holds for engine in ours))
            least = max(0, taken - sum(engine.memory for engine in ours))
            supposed = min(total, max(least, others.get(told.uuid, most)))
            found[told.uuid] = DeviceUse(told.uuid, told.name, total, told.free, supposed, most, least == most)
    return found


class Others:
    """Remembers what other programs held when it was last certain. ``before``: what the leader before knew.

    Workers are heard of at different moments: one that has told of an engine before it stopped makes it look as if
    others held less. So the most counts that was seen in a time longer than any worker is silent.
    """

    def __init__(self, before: Mapping[str, int]) -> None:
        self._before = before
        self._seen: defaultdict[str, list[tuple[datetime, int]]] = defaultdict(list)

    def note(self, now: datetime, devices: Mapping[str, DeviceUse]) -> None:
        for uuid, device in devices.items():
            if device.certain:
                seen = [*self._seen[uuid], (now, device.others_seen)]
                # With the last one from before, so that what is left tells of all of the time.
                first = max((at for at, _ in seen if now - at >= _SETTLED), default=seen[0][0])
                self._seen[uuid] = [(at, others) for at, others in seen if at >= first]

    def known(self) -> Mapping[str, int]:
        """By device; what was seen for long enough, or known before."""
        settled = {
            uuid: max(others for _, others in seen)
            for uuid, seen in self._seen.items()
            if seen[-1][0] - seen[0][0] >= _SETTLED
        }
        return {**self._before, **settled}


def host_memory(workers: Sequence[Worker]) -> Mapping[str, int]:
    """Bytes of main memory for those who sleep, by worker: workers of one machine share what it has."""
    hosts = [worker.host for worker in workers]
    return {worker.id: worker.host_memory // hosts.count(worker.host) for worker in workers}

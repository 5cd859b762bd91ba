"""In which order waiting jobs are claimed: a pure function over the heads of the lanes.

A lane holds the jobs of one client (the token's subject) at one priority level, oldest first. The next job is that of
the lane with the best effective level, which rises one step for each ``aging`` seconds that the lane's oldest job has
waited; then of the client with the least virtual time; then the oldest.

A job rises only while its client has been given no more than anybody else who waits. Without that, a client that sends
more than can be served would outrank everybody by its own backlog's age, and wait behind nobody.

Virtual time is start-time fair queueing (Goyal, Vin, Cheng: «Start-time Fair Queueing», SIGCOMM 1996): each claim
charges its client 1 / weight, and a client that was idle re-enters at the minimum of those that were not, so that
nobody saves up time by staying away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Waiting(Generic[Key]):
    """A waiting job. ``order``: earlier is smaller, in one model. ``waited`` in seconds."""

    key: Key
    order: tuple[int, int]
    waited: float


@dataclass(frozen=True, slots=True)
class Lane(Generic[Key]):
    """The oldest jobs of ``subject`` at ``level`` (0 is the highest), oldest first. ``more``: there may be others."""

    subject: str
    level: int
    jobs: Sequence[Waiting[Key]]
    more: bool = False


@dataclass(slots=True)
class Clock:
    """A model's virtual time. ``now``: what an idle client re-enters at. ``spent``: by client."""

    now: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)

    def of(self, subject: str) -> float:
        return max(self.now, self.spent.get(subject, 0.0))

    @property
    def even(self) -> bool:
        """Nobody has spent more than anybody else."""
        return all(spent <= self.now for spent in self.spent.values())


def effective_level(level: int, waited: float, aging: float) -> int:
    """One step up for each ``aging`` seconds waited, up to 0."""
    return max(0, level - int(max(0.0, waited) / aging))


def in_order(
    lanes: Sequence[Lane[Key]], clock: Clock, weights: Mapping[str, float], aging: float, most: int
) -> list[Key]:
    """The first ``most`` jobs in the order in which they are to be claimed. Charges them to ``clock``.

    Ends early where a job that its lane does not show might come next; at least one job is chosen if there is any.
    """
    places = [_Place(lane) for lane in lanes if lane.jobs]
    chosen: list[Key] = []
    while len(chosen) < most and places:
        # Whoever waits, visibly or not, holds the model's virtual time back; it never goes down.
        clock.now = max(clock.now, min(clock.of(place.lane.subject) for place in places))
        best = min(places, key=lambda place: place.rank(clock, aging))
        if best.unseen:
            break
        chosen.append(best.job.key)
        subject = best.lane.subject
        clock.spent[subject] = clock.of(subject) + 1.0 / weights.get(subject, 1.0)
        best.index += 1
        if best.unseen and not best.lane.more:
            places.remove(best)
    return chosen


@dataclass(slots=True)
class _Place(Generic[Key]):
    """How far a lane has been read."""

    lane: Lane[Key]
    index: int = 0

    @property
    def unseen(self) -> bool:
        return self.index == len(self.lane.jobs)

    @property
    def job(self) -> Waiting[Key]:
        """The next one; where that is unseen the last one, which ranks at least as high."""
        return self.lane.jobs[min(self.index, len(self.lane.jobs) - 1)]

    def rank(self, clock: Clock, aging: float) -> tuple[int, float, tuple[int, int]]:
        spent = clock.of(self.lane.subject)
        waited = self.job.waited if spent <= clock.now else 0.0
        return effective_level(self.lane.level, waited, aging), spent, self.job.order

"""In which order waiting jobs are claimed: a pure function over the heads of the lanes.

A lane holds the jobs of one client (the token's subject) at one priority level, oldest first. The next job is that of
the lane with the best effective level, which rises one step for each ``aging`` seconds that the lane's oldest job has
waited; then of the client with the least virtual time; then the oldest.

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
    """The oldest jobs of ``subject`` at ``level`` (0 is the highest), oldest first; there may be more than these."""

    subject: str
    level: int
    jobs: Sequence[Waiting[Key]]


@dataclass(slots=True)
class Clock:
    """A model's virtual time. ``now``: what an idle client re-enters at. ``spent``: by client, never below ``now``."""

    now: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)

    def of(self, subject: str) -> float:
        return max(self.now, self.spent.get(subject, 0.0))


def effective_level(level: int, waited: float, aging: float) -> int:
    """One step up for each ``aging`` seconds waited, up to 0."""
    return max(0, level - int(max(0.0, waited) / aging))


def in_order(
    lanes: Sequence[Lane[Key]], clock: Clock, weights: Mapping[str, float], aging: float, most: int
) -> list[Key]:
    """The first ``most`` jobs in the order in which they are to be claimed. Charges them to ``clock``.

    Ends early where a lane that may hold more jobs than it shows would come next.
    """
    heads = [0] * len(lanes)
    chosen: list[Key] = []
    _tick(clock, lanes, heads)
    while len(chosen) < most:
        waiting = [index for index, lane in enumerate(lanes) if heads[index] < len(lane.jobs)]
        if not waiting:
            break
        best = min(waiting, key=lambda index: _rank(lanes[index], heads[index], clock, aging))
        lane = lanes[best]
        chosen.append(lane.jobs[heads[best]].key)
        heads[best] += 1
        clock.spent[lane.subject] = clock.of(lane.subject) + 1.0 / weights.get(lane.subject, 1.0)
        _tick(clock, lanes, heads)
    return chosen


def _rank(lane: Lane[Key], head: int, clock: Clock, aging: float) -> tuple[int, float, tuple[int, int]]:
    job = lane.jobs[head]
    return effective_level(lane.level, job.waited, aging), clock.of(lane.subject), job.order


def _tick(clock: Clock, lanes: Sequence[Lane[Key]], heads: Sequence[int]) -> None:
    """The model's virtual time is the least of those who wait; it never goes back."""
    waiting = {lane.subject for lane, head in zip(lanes, heads, strict=True) if head < len(lane.jobs)}
    if waiting:
        clock.now = min(clock.of(subject) for subject in waiting)

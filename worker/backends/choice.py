"""Which of several servers gets a request, as pure code."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from config.upstreams import Balance


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server that may get the request. ``running``: requests under way there. ``latency``: seconds that it took of
    late until an answer began, infinite where none did; None where that is not known, or was long ago. ``measuring``:
    whether a request is under way there of whose answer nothing has come yet."""

    name: str
    weight: float = 1.0
    running: int = 0
    latency: float | None = None
    measuring: bool = False


class Chooser:
    """Those that are equally good are taken in turn: by start-time fair queueing (Goyal, Vin, Cheng 1996), which gives
    each its share whichever of them are there at a time, and nobody what it missed while it was away."""

    def __init__(self, balance: Balance) -> None:
        self._balance = balance
        self._now = 0.0
        self._finished: dict[str, float] = {}

    def choose(self, candidates: Sequence[Candidate]) -> str:
        """The name of one of ``candidates``, of which there has to be one."""
        ranks = [self._rank(candidate) for candidate in candidates]
        best = min(ranks)
        return self._next([candidate for candidate, rank in zip(candidates, ranks, strict=True) if rank == best])

    def _rank(self, candidate: Candidate) -> float:
        match self._balance:
            case "least_busy":
                return candidate.running
            case "latency":
                return _latency(candidate)
            case _:
                return 0.0

    def _next(self, candidates: Sequence[Candidate]) -> str:
        starts = {candidate.name: max(self._now, self._finished.get(candidate.name, 0.0)) for candidate in candidates}
        # Of those that start at the same time the one that was served longest ago.
        chosen = min(candidates, key=lambda one: (starts[one.name], self._finished.get(one.name, -1.0)))
        self._now = starts[chosen.name]
        weight = chosen.weight if self._balance == "weight" else 1.0
        self._finished[chosen.name] = self._now + 1.0 / weight
        return chosen.name


def _latency(candidate: Candidate) -> float:
    if candidate.latency is not None:
        return candidate.latency
    # It is measured by one request; the others do not wait for what comes of that.
    return math.inf if candidate.measuring else -1.0

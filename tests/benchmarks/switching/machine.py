"""A box on a virtual clock: queues, engines that load, drain and stop, and jobs that run on them."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

from tests.benchmarks.switching.traces import Box, Job

STOPPED, STARTING, READY, DRAINING = "stopped", "starting", "ready", "draining"
# Seconds at which a policy is asked again at the latest, with somebody waiting for an engine and with nobody.
_TICK, _IDLE_TICK = 10.0, 120.0
_ENDED, _LOADED, _THINK = 0, 1, 2


@dataclass(slots=True)
class Engine:
    """One model's engine and queue. ``took_until``: jobs that came later are not its own any more; it is to go.

    ``still_waiting``: jobs that waited when it became ready, and still do.
    """

    queue: deque[Job] = field(default_factory=deque)
    state: str = STOPPED
    running: int = 0
    due: float = 0.0
    ready_at: float = 0.0
    gone_at: float = float("-inf")
    used_at: float = float("-inf")
    still_waiting: int = 0
    took_until: float = float("inf")


class Policy(Protocol):
    def decide(self, machine: "Machine") -> None:
        """Calls ``load`` and ``drain`` of the machine."""


class Machine:
    """Runs ``jobs``; ``waits``: seconds from arrival to claim of each judged one, ``swaps``: loads since ``judged``."""

    def __init__(self, box: Box, models: int, jobs: Sequence[Job], judged: float) -> None:
        self.box = box
        self.engines = [Engine() for _ in range(models)]
        self.now = judged
        self.waits: list[float] = []
        self.by_model: list[int] = []
        self.swaps = 0
        self.arrivals: list[list[float]] = [[] for _ in range(models)]
        for job in jobs:
            self.arrivals[job.model].append(job.at)
        self._jobs = [job for job in jobs if job.at >= judged]
        self._events: list[tuple[float, int, int, int]] = []
        self._order = count()
        self._think_at = float("inf")
        self._thought = float("-inf")

    # What a policy does and sees.

    @property
    def used(self) -> int:
        return sum(engine.state != STOPPED for engine in self.engines)

    @property
    def free(self) -> int:
        return self.box.room - self.used

    def load(self, model: int) -> None:
        assert self.free > 0
        assert self.engines[model].state == STOPPED
        self.engines[model].state = STARTING
        self.engines[model].due = self.now + self.box.load
        self.swaps += 1
        self._push(self.engines[model].due, _LOADED, model)

    def drain(self, model: int, until: float | None = None) -> None:
        """Claims no more (none that came after ``until``), runs what it has, then stops. A load is given up at once."""
        engine = self.engines[model]
        assert engine.state != STOPPED
        engine.state, engine.took_until = DRAINING, float("-inf") if until is None else until
        self._stop_if_drained(model)

    def recent(self, model: int, seconds: float) -> int:
        """How many jobs came in the last ``seconds``."""
        times = self.arrivals[model]
        return bisect_left(times, self.now) - bisect_left(times, self.now - seconds)

    def coming(self, model: int, seconds: float) -> int:
        times = self.arrivals[model]
        return bisect_left(times, self.now + seconds) - bisect_left(times, self.now)

    # The clock.

    def run(self, policy: Policy) -> "Machine":
        jobs, index, total = self._jobs, 0, len(self._jobs)
        self._think(self.now)
        while index < total or any(engine.queue or engine.running for engine in self.engines):
            at = jobs[index].at if index < total else float("inf")
            if not self._events or at <= self._events[0][0]:
                self.now = at
                self._arrive(jobs[index])
                index += 1
                continue
            self.now, _, what, model = heappop(self._events)
            if what == _ENDED:
                self._ended(model)
            elif what == _LOADED:
                self._loaded(model)
            elif self.now >= self._think_at:
                self._decide(policy)
        return self

    def _arrive(self, job: Job) -> None:
        engine = self.engines[job.model]
        engine.queue.append(job)
        if engine.state == READY:
            self._claim(engine, job.model)
        elif engine.state == STOPPED and len(engine.queue) == 1:
            self._soon()

    def _claim(self, engine: Engine, model: int) -> None:
        queue, places, now = engine.queue, self.box.places, self.now
        while queue and engine.running < places and queue[0].at <= engine.took_until:
            job = queue.popleft()
            engine.running += 1
            engine.still_waiting -= job.at <= engine.ready_at
            engine.used_at = now
            self.waits.append(now - job.at)
            self.by_model.append(model)
            self._push(now + job.seconds, _ENDED, model)

    def _ended(self, model: int) -> None:
        engine = self.engines[model]
        engine.running -= 1
        engine.used_at = self.now
        self._claim(engine, model)
        if engine.state == DRAINING:
            self._stop_if_drained(model)
        elif not engine.running:
            self._soon()

    def _stop_if_drained(self, model: int) -> None:
        engine = self.engines[model]
        if not engine.running and not (engine.queue and engine.queue[0].at <= engine.took_until):
            engine.state, engine.gone_at = STOPPED, self.now
            self._soon()

    def _loaded(self, model: int) -> None:
        engine = self.engines[model]
        if engine.state != STARTING or engine.due > self.now:
            return  # that load was given up
        engine.state, engine.ready_at, engine.took_until = READY, self.now, float("inf")
        engine.still_waiting = len(engine.queue)
        self._claim(engine, model)
        self._soon()

    def _push(self, at: float, what: int, model: int) -> None:
        heappush(self._events, (at, next(self._order), what, model))

    def _soon(self) -> None:
        """Something changed: the policy is asked within half a second, as one that hears of it would be."""
        self._think(max(self.now, self._thought + 0.5))

    def _think(self, at: float) -> None:
        if at < self._think_at:
            self._think_at = at
            self._push(at, _THINK, -1)

    def _decide(self, policy: Policy) -> None:
        self._think_at, self._thought = float("inf"), self.now
        policy.decide(self)
        lacking = any(engine.queue and engine.state in (STOPPED, DRAINING) for engine in self.engines)
        self._think(self.now + (_TICK if lacking else _IDLE_TICK))

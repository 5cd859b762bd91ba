"""Who is loaded when: our planner, LRU on demand in order of arrival, and an oracle that knows the next half hour."""

from collections import Counter
from dataclasses import dataclass, field

from broker.forecast import Forecast, forecast, hour_of
from broker.planner import plan
from broker.snapshot import Device, Model, Resident, Rules, Snapshot
from tests.benchmarks.switching.machine import DRAINING, READY, STARTING, STOPPED, Engine, Machine

RECENT, AHEAD = 300.0, 1800.0
_WORKERS = frozenset({"box"})
_DEVICES: dict[int, tuple[Device, ...]] = {room: (Device("box", "gpu", room),) for room in range(1, 10)}


@dataclass(slots=True)
class Lru:
    """What Ollama and llama-swap do: jobs go to their model in order of arrival; one whose model is not loaded has
    the least recently used one stopped, as soon as that has done what it was sent.

    ``blocking``: as there, later jobs for loaded models wait behind it too. Otherwise they go on meanwhile, except
    those for the model that is to go.
    """

    _for: int = -1

    def decide(self, machine: Machine) -> None:
        engines = machine.engines
        while True:
            heads = [(e.queue[0].at, m) for m, e in enumerate(engines) if e.queue and e.state in (STOPPED, DRAINING)]
            lacking = [(at, m) for at, m in heads if engines[m].state == STOPPED]
            if not lacking:
                return
            at, model = min(lacking)
            if machine.free:
                machine.load(model)
                continue
            if any(engine.state == DRAINING for engine in engines):
                return
            ready = [m for m, engine in enumerate(engines) if engine.state == READY]
            if not ready:
                return
            victim = min(ready, key=lambda m: (self._busy(engines[m], at), engines[m].used_at))
            machine.drain(victim, until=at)

    def _busy(self, engine: Engine, at: float) -> bool:
        return engine.running > 0 or bool(engine.queue and engine.queue[0].at <= at)


@dataclass(slots=True)
class Planned:
    """The planner of the broker. ``knows``: the future takes the place of recent rate and pattern."""

    rules: Rules = field(default_factory=Rules)
    pattern: bool = True
    sticky: bool = True
    knows: bool = False
    _forecasts: list[Forecast] = field(default_factory=list)
    _hour: int = -1
    _hourly: list[Counter[int]] = field(default_factory=list)

    def decide(self, machine: Machine) -> None:
        box = machine.box
        # With no memory free, a model that has nothing loaded, nothing waiting and nothing expected changes no plan.
        models = tuple(
            self._model(machine, number, engine)
            for number, engine in enumerate(machine.engines)
            if machine.free or engine.state != STOPPED or engine.queue or self._expected(machine, number)
        )
        for action in plan(Snapshot(models, _DEVICES[box.room], self.rules)).actions:
            number = int(action.model)
            if action.kind == "load":
                machine.load(number)
            else:
                machine.drain(number)

    def _model(self, machine: Machine, number: int, engine: Engine) -> Model:
        now = machine.now
        residents: tuple[Resident, ...] = ()
        if engine.state != STOPPED:
            residents = (
                Resident(
                    worker="box",
                    devices=("gpu",),
                    state=engine.state,
                    memory=1,
                    running=engine.running,
                    loaded_for=0.0 if engine.state == STARTING else now - engine.ready_at,
                    still_waiting=engine.still_waiting,
                ),
            )
        return Model(
            name=str(number),
            need=1,
            workers=_WORKERS,
            queued=len(engine.queue),
            oldest_wait=now - engine.queue[0].at if engine.queue else 0.0,
            rate=self._rate(machine, number),
            expected=self._expected(machine, number),
            load=machine.box.load,
            idle_for=0.0 if engine.queue or engine.running else now - engine.used_at,
            away_for=now - engine.gone_at,
            residents=residents,
        )

    def _rate(self, machine: Machine, number: int) -> float:
        if self.knows:
            return machine.coming(number, AHEAD) / AHEAD
        return machine.recent(number, RECENT) / RECENT if self.sticky else 0.0

    def _expected(self, machine: Machine, number: int) -> float:
        if self.knows:
            return float(machine.coming(number, AHEAD))
        if not self.pattern:
            return 0.0
        ahead = hour_of(machine.now + 3.0 * machine.box.load)
        if ahead != self._hour:
            self._hour = ahead
            self._forecasts = [self._forecast(machine, model, ahead) for model in range(len(machine.engines))]
        found = self._forecasts[number]
        return found.jobs if found.trusted else 0.0

    def _forecast(self, machine: Machine, model: int, hour: int) -> Forecast:
        now = hour_of(machine.now)
        if not self._hourly:
            self._hourly = [Counter(map(hour_of, times)) for times in machine.arrivals]
        return forecast({past: self._hourly[model][past] for past in range(now)}, hour, now)


def oracle() -> Planned:
    """Our rules with the next 30 minutes in place of rate and pattern; preloads whatever comes in them."""
    return Planned(Rules(least_expected=1.0, unused=0.0), knows=True)

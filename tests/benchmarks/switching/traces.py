"""Arrivals: rates of several models over time, seeded or real, scaled to a load and drawn as single jobs."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from random import Random

DAY = 86400.0
WEEK = 7 * DAY


@dataclass(frozen=True, slots=True)
class Box:
    """A GPU with room for ``room`` models of ``places`` jobs at once; means in seconds."""

    room: int
    places: int = 8
    service: float = 20.0
    load: float = 40.0
    wake: float | None = None

    @property
    def capacity(self) -> float:
        """Jobs per second with every place taken."""
        return self.room * self.places / self.service


@dataclass(frozen=True, slots=True)
class Trace:
    """``rates[model][window]``: jobs per second. ``cv``: of the times between arrivals. Judged from ``learn`` on."""

    name: str
    box: Box
    window: float
    rates: Sequence[Sequence[float]]
    cv: Sequence[float]
    learn: float
    unbounded: bool = False

    @property
    def end(self) -> float:
        return self.window * len(self.rates[0])


@dataclass(frozen=True, slots=True)
class Job:
    at: float
    model: int
    seconds: float


def scaled(trace: Trace, load: float) -> list[list[float]]:
    """The rates times a factor, so that their sum is ``load`` of what the box can do in the judged part.

    Unless the trace is ``unbounded``, no model gets more than nine tenths of what one engine can do and all together
    no more than 95 % of what the box can do: the queue's bounds turn the rest away. The factor grows to make up for it.
    """
    since = round(trace.learn / trace.window)
    target = load * trace.box.capacity * (len(trace.rates[0]) - since)
    low, high = 0.0, 1.0
    while sum(map(sum, _columns(trace, high)[since:])) < target:
        high *= 2.0
        if high > 1e6:
            raise ValueError(f"{trace.name} cannot reach a load of {load}")
    for _ in range(20):
        middle = (low + high) / 2.0
        enough = sum(map(sum, _columns(trace, middle)[since:])) >= target
        low, high = (low, middle) if enough else (middle, high)
    return [list(rates) for rates in zip(*_columns(trace, high), strict=True)]


def _columns(trace: Trace, factor: float) -> list[list[float]]:
    """The rates of all models, by window."""
    capacity = trace.box.capacity
    one, together = (math.inf, math.inf) if trace.unbounded else (0.9 * capacity / trace.box.room, 0.95 * capacity)
    columns = []
    for rates in zip(*trace.rates, strict=True):
        column = [min(one, factor * rate) for rate in rates]
        total = sum(column)
        columns.append(column if total <= together else [rate * together / total for rate in column])
    return columns


def jobs(trace: Trace, load: float, seed: int) -> list[Job]:
    """All jobs by arrival: a renewal process with Gamma gaps of the model's CV, in time stretched by the rate."""
    drawn: list[Job] = []
    for model, rates in enumerate(scaled(trace, load)):
        random = Random(f"{trace.name} {model} {seed}")
        drawn += [Job(at, model, _service(random, trace.box)) for at in _arrivals(rates, trace, model, random)]
    return sorted(drawn, key=lambda job: job.at)


def _arrivals(rates: Sequence[float], trace: Trace, model: int, random: Random) -> list[float]:
    shape = 1.0 / trace.cv[model] ** 2
    masses = [0.0, *accumulate(rate * trace.window for rate in rates)]
    found, index = [], 0
    due = random.gammavariate(shape, 1.0 / shape)
    while due < masses[-1]:
        while masses[index + 1] <= due:
            index += 1
        found.append((index + (due - masses[index]) / (masses[index + 1] - masses[index])) * trace.window)
        due += random.gammavariate(shape, 1.0 / shape)
    return found


def _service(random: Random, box: Box) -> float:
    """Log-normal, with a CV of 1."""
    sigma = math.sqrt(math.log(2.0))
    return box.service * random.lognormvariate(-sigma * sigma / 2.0, sigma)


def real(directory: Path, room: int) -> Trace:
    """The mean rates of `rates.csv` in windows of ten minutes, and the CV of `models.csv`."""
    with (directory / "rates.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    names = rows[0][1:]
    with (directory / "models.csv").open(newline="") as file:
        cv = {row["model"]: float(row["mean_arrival_cv"]) for row in csv.DictReader(file)}
    columns = [[float(row[index]) for row in rows[1:]] for index in range(1, len(rows[0]))]
    window = float(rows[2][0]) - float(rows[1][0])
    return Trace(f"real-{room}", Box(room), window, columns, [cv[name] for name in names], WEEK)


_WINDOW = 60.0


def _made(name: str, box: Box, rates: Sequence[Callable[[float], float]], cv: float, days: int = 8) -> Trace:
    times = [number * _WINDOW for number in range(int(days * DAY / _WINDOW))]
    return Trace(
        name, box, _WINDOW, [[rate(time) for time in times] for rate in rates], [cv] * len(rates), (days - 1) * DAY
    )


def daily(seed: int) -> Trace:
    """Six models on room for three: each has its own office hours, and a little at other times."""
    random = Random(seed)

    def rate(begin: float, hours: float, height: float) -> Callable[[float], float]:
        def at(time: float) -> float:
            hour = (time / 3600.0 - begin) % 24.0
            return height * math.sin(math.pi * hour / hours) + 0.01 if hour < hours else 0.002 * height

        return at

    rates = [rate(random.uniform(0, 24), random.uniform(6, 12), random.uniform(0.3, 1.0)) for _ in range(6)]
    return _made("daily", Box(3), rates, 1.2)


def bursts(seed: int) -> Trace:
    """Six models on room for two: each now and then busy for about ten minutes, and nearly silent for twenty."""

    def rate(random: Random) -> Callable[[float], float]:
        busy: list[bool] = []
        while len(busy) < 8 * DAY / _WINDOW:
            busy += [False] * (1 + int(random.expovariate(1 / 20))) + [True] * (1 + int(random.expovariate(1 / 10)))
        return lambda time: 1.0 if busy[int(time / _WINDOW)] else 0.03

    return _made("bursts", Box(2), [rate(Random(f"{seed} {model}")) for model in range(6)], 2.0)


def ping_pong(seed: int) -> Trace:
    """Two models on room for one, both asked for all the time."""
    del seed
    return _made("ping-pong", Box(1), [lambda _: 1.0, lambda _: 1.0], 1.0)


def ten_on_two(seed: int) -> Trace:
    """Ten models on room for two, the k-th asked for 1/k as often as the first."""
    del seed

    def steady(rank: int) -> Callable[[float], float]:
        return lambda _: 1.0 / rank

    return _made("ten on two", Box(2), [steady(rank) for rank in range(1, 11)], 1.5)


def greedy(seed: int) -> Trace:
    """Four models on room for two; one client throws thousands of jobs at the first, the others ask now and then."""
    random = Random(seed)
    dumps = {int(random.uniform(0, 8 * DAY) / _WINDOW) for _ in range(8 * 20)}
    rates: list[Callable[[float], float]] = [lambda time: 10.0 if int(time / _WINDOW) in dumps else 0.01]
    rates += [lambda _: 0.06, lambda _: 0.05, lambda _: 0.04]
    return replace(_made("greedy client", Box(2), rates, 1.0), unbounded=True)


SEEDED: dict[str, Callable[[int], Trace]] = {
    "daily": daily,
    "bursts": bursts,
    "ping-pong": ping_pong,
    "ten on two": ten_on_two,
    "greedy client": greedy,
}

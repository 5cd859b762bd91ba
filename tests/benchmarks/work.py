"""The same work for every queue, and how it is measured. Needs the standard library only: each peer has its own Python.

A queue joins by ``submit(payload) -> ticket`` and ``result(ticket) -> value``, both async (``measure``) or both
blocking (``measure_blocking``). Every result is checked against its job.
"""

import asyncio
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Ticket = TypeVar("Ticket")
Payload = dict[str, Any]

THROUGHPUT, ALONE, CLIENTS = "throughput", "alone", "clients"
PHASES = (THROUGHPUT, ALONE, CLIENTS)
LINE = "RESULT "
_PADDING = "x" * 215
_TICK = os.sysconf("SC_CLK_TCK")


def payload(number: int) -> Payload:
    """About 300 bytes of JSON."""
    return {"id": number, "kind": "noop", "user": "u-000017", "tags": ["a", "b"], "data": _PADDING}


def work(given: Mapping[str, Any]) -> Payload:
    """What a job does: about 300 bytes of JSON back, tied to what came in."""
    return {"id": given["id"], "ok": True, "worker": "w-1", "took": 0.0, "data": given["data"]}


def check(number: int, result: Any) -> None:
    """Ends the measurement where a job has not got the result that is its own."""
    if not isinstance(result, Mapping) or result.get("id") != number or result.get("data") != _PADDING:
        raise SystemExit(f"wrong result of job {number}: {result!r:.200}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a producer process is told, as JSON in its first argument.

    ``throughput``: jobs submitted over ``lanes`` lanes and then awaited. ``alone``: jobs one at a time. ``clients``:
    jobs of ``looping`` clients that submit and wait in a loop. ``processes``: pids by name, whose CPU time is told.
    """

    phases: tuple[str, ...] = PHASES
    throughput: int = 3000
    alone: int = 300
    clients: int = 1000
    warm_up: int = 50
    lanes: int = 20
    looping: int = 10
    processes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def given(cls) -> "Plan":
        return cls(**json.loads(sys.argv[1]))

    def text(self) -> str:
        return json.dumps(asdict(self))

    def parts(self) -> list[tuple[str, int, int]]:
        """Phase, number of jobs, number of clients in a loop (0: submit all, then await all)."""
        parts = [(THROUGHPUT, self.throughput, 0), (ALONE, self.alone, 1), (CLIENTS, self.clients, self.looping)]
        return [part for part in parts if part[0] in self.phases]


@dataclass(frozen=True, slots=True)
class Figures:
    """``p50``, ``p99`` in ms, None where single jobs are not timed. ``cpu``: µs per job by process.

    ``foreign``: the share of the machine, in %, that went to processes which have no part in this.
    """

    phase: str
    jobs: int
    rate: float
    p50: float | None
    p99: float | None
    cpu: Mapping[str, float]
    foreign: float


def tell(figures: Figures) -> None:
    """To the benchmark that started this process."""
    print(LINE + json.dumps(asdict(figures)), flush=True)


def heard(output: str) -> list[Figures]:
    """What a process told."""
    return [Figures(**json.loads(line[len(LINE) :])) for line in output.splitlines() if line.startswith(LINE)]


def cpu_seconds(root: int) -> float:
    """User and system time of a process and all that descends from it."""
    children: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended; its parent's time has it
            continue
        children.setdefault(int(stat[1]), []).append(int(entry.name))
        spent[int(entry.name)] = sum(map(int, stat[11:15])) / _TICK
    total, todo = 0.0, [root]
    while todo:
        process = todo.pop()
        total += spent.get(process, 0.0)
        todo += children.get(process, [])
    return total


class Stopwatch:
    """CPU time from its making on: of this process (``producer``), of ``processes``, and of the whole machine."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = processes
        self._spent, self._machine = self._read(), _machine()
        self._start = time.perf_counter()

    def _read(self) -> dict[str, float]:
        own = resource.getrusage(resource.RUSAGE_SELF)
        others = {name: cpu_seconds(pid) for name, pid in self._processes.items()}
        return {"producer": own.ru_utime + own.ru_stime, **others}

    def stop(self, phase: str, jobs: int, spans: Sequence[float] = ()) -> Figures:
        """``spans``: seconds, one for each job that was timed."""
        wall = time.perf_counter() - self._start
        spent = {name: now - self._spent[name] for name, now in self._read().items()}
        busy, everything = (now - before for now, before in zip(_machine(), self._machine, strict=True))
        milliseconds = sorted(span * 1e3 for span in spans)
        return Figures(
            phase,
            jobs,
            round(jobs / wall, 1),
            _percentile(milliseconds, 0.50),
            _percentile(milliseconds, 0.99),
            {name: round(1e6 * seconds / jobs) for name, seconds in spent.items()},
            round(max(0.0, 100 * (busy - sum(spent.values())) / max(everything, 1 / _TICK)), 1),
        )


def _machine() -> tuple[float, float]:
    """Seconds that all cores together were busy, and that they were there."""
    times = [int(text) / _TICK for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = times[3:5]
    return sum(times) - idle - waiting, sum(times)


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3) if ordered else None


def split(numbers: range, lanes: int) -> list[range]:
    """For each lane every ``lanes``-th number."""
    return [numbers[lane::lanes] for lane in range(lanes)]


class _Numbers:
    """No two jobs of a run have the same number."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> range:
        self._next += count
        return range(self._next - count, self._next)


async def measure(
    plan: Plan, submit: Callable[[Payload], Awaitable[Ticket]], result: Callable[[Ticket], Awaitable[Any]]
) -> None:
    """Runs and tells the phases of ``plan``."""
    numbers = _Numbers()

    async def loop(count: int, clients: int) -> list[float]:
        spans: list[float] = []

        async def client(own: range) -> None:
            for number in own:
                start = time.perf_counter()
                check(number, await result(await submit(payload(number))))
                spans.append(time.perf_counter() - start)

        await asyncio.gather(*(client(own) for own in split(numbers.take(count), clients)))
        return spans

    async def flood(count: int) -> list[float]:
        tickets: dict[int, Ticket] = {}

        async def put(own: range) -> None:
            for number in own:
                tickets[number] = await submit(payload(number))

        async def get(own: range) -> None:
            for number in own:
                check(number, await result(tickets[number]))

        lanes = split(numbers.take(count), plan.lanes)
        await asyncio.gather(*map(put, lanes))
        await asyncio.gather(*map(get, lanes))
        return []

    await loop(plan.warm_up, 5)
    for phase, count, clients in plan.parts():
        watch = Stopwatch(plan.processes)
        spans = await (loop(count, clients) if clients else flood(count))
        tell(watch.stop(phase, count, spans))


def measure_blocking(plan: Plan, submit: Callable[[Payload], Ticket], result: Callable[[Ticket], Any]) -> None:
    """The same for a client library that blocks: a thread for each lane."""
    numbers = _Numbers()

    def loop(count: int, clients: int) -> list[float]:
        spans: list[float] = []

        def client(own: range) -> None:
            for number in own:
                start = time.perf_counter()
                check(number, result(submit(payload(number))))
                spans.append(time.perf_counter() - start)

        _threads(client, split(numbers.take(count), clients))
        return spans

    def flood(count: int) -> list[float]:
        def lane(own: range) -> None:
            tickets = [(number, submit(payload(number))) for number in own]
            for number, ticket in tickets:
                check(number, result(ticket))

        _threads(lane, split(numbers.take(count), plan.lanes))
        return []

    loop(plan.warm_up, 5)
    for phase, count, clients in plan.parts():
        watch = Stopwatch(plan.processes)
        spans = loop(count, clients) if clients else flood(count)
        tell(watch.stop(phase, count, spans))


def on_one_core() -> None:
    """For a blocking producer: its threads would hand the interpreter's lock from core to core at every switch."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _threads(run: Callable[[range], None], lanes: Sequence[range]) -> None:
    errors: list[BaseException] = []

    def guarded(own: range) -> None:
        try:
            run(own)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - told below, where it ends the process
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(own,), daemon=True) for own in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise SystemExit(f"a producer's thread failed: {errors[0]!r}")

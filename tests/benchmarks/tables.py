"""Figures of several rounds as Markdown: medians, and in brackets the least and the most."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from tests.benchmarks.work import ALONE, CLIENTS, THROUGHPUT, Figures

Rounds = Mapping[str, Sequence[Figures]]
"""What each queue's rounds gave, by its name."""

NOTHING = "-"
TITLES = {
    THROUGHPUT: "End to end: all submitted over 20 lanes, then all awaited",
    ALONE: "One job at a time: submit to awaited result",
    CLIENTS: "Ten clients: submit and wait in a loop",
}


def spread(values: Iterable[float | None], digits: int = 0) -> str:
    """``median (least-most)``; a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    middle, least, most = (f"{value:,.{digits}f}" for value in (median(known), min(known), max(known)))
    return middle if len(known) == 1 else f"{middle} ({least}-{most})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_phase(rounds: Rounds, phase: str) -> dict[str, list[Figures]]:
    """The fastest first."""
    mine = {name: [figures for figures in given if figures.phase == phase] for name, given in rounds.items()}
    measured = [name for name in mine if mine[name]]
    return {name: mine[name] for name in sorted(measured, key=lambda name: -rate(mine[name]))}


def rate(rounds: Sequence[Figures]) -> float:
    return median(figures.rate for figures in rounds)


def comparison(rounds: Rounds, processes: Sequence[str], what: str = "queue", unit: str = "job") -> str:
    """One phase's table, µs of CPU by process."""
    cpu = [f"CPU µs/{unit}: {processes[0]}", *processes[1:]]
    head = [what, f"{unit}s/s", "p50 ms", "p99 ms", *cpu, "others, % of machine"]
    return table(head, (_row(name, given, processes) for name, given in rounds.items()))


def _row(name: str, rounds: Sequence[Figures], processes: Sequence[str]) -> list[str]:
    return [
        name,
        spread(figures.rate for figures in rounds),
        spread((figures.p50 for figures in rounds), 2),
        spread((figures.p99 for figures in rounds), 1),
        *(spread(figures.cpu.get(process) for figures in rounds) for process in processes),
        spread((figures.foreign for figures in rounds), 1),
    ]


def by_phase(rounds: Rounds) -> str:
    """A table for each phase that was measured."""
    sections = []
    for phase, title in TITLES.items():
        if mine := of_phase(rounds, phase):
            jobs = max(figures.jobs for given in mine.values() for figures in given)
            body = comparison(mine, ("producer", "worker", "broker"))
            sections.append(f"### {title} ({jobs:,} jobs)\n\n{body}")
    return "\n\n".join(sections)


def against(rounds: Rounds, base: str, phases: Mapping[str, str]) -> str:
    """Each phase in two situations and how much of the ``base`` one is left; ``phases``: titles by phase."""
    rows = []
    for phase, title in phases.items():
        mine = of_phase(rounds, phase)
        for name, given in sorted(mine.items(), key=lambda entry: entry[0] != base):
            share = rate(given) / rate(mine[base])
            p50 = spread((figures.p50 for figures in given), 2)
            rows.append([title, name, spread(figures.rate for figures in given), p50, f"{share:.2f}"])
    return table(["work", "situation", "per second", "p50 ms", f"of {base}"], rows)

"""What the policies came to, as tables: medians over seeds, and the spread of the ratios."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median

from tests.benchmarks.switching.machine import Machine
from tests.benchmarks.tables import spread, table

LRU, OURS, ORACLE = "LRU", "ours", "oracle"
# A ratio to an LRU that never catches up with its arrivals says little: those runs are also left out once.
KEEPS_UP = 3600.0
_LONG = 120.0
# A wait under this is none: ratios of milliseconds say nothing.
_LEAST = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Waits in seconds from arrival to claim; ``long``: the share that waits over 120 s."""

    trace: str
    load: float
    seed: int
    policy: str
    jobs: int
    p50: float
    p95: float
    long: float
    most: float
    swaps: int


def outcome(trace: str, load: float, seed: int, policy: str, machine: Machine) -> Outcome:
    waits = sorted(machine.waits)
    count = len(waits)
    long = sum(wait > _LONG for wait in waits) / count
    p50, p95 = waits[count // 2], waits[int(0.95 * count)]
    return Outcome(trace, load, seed, policy, count, p50, p95, long, waits[-1], machine.swaps)


Runs = dict[tuple[str, float], dict[str, list[Outcome]]]


def grouped(outcomes: Iterable[Outcome]) -> Runs:
    """By trace and load, then policy, in order of seeds."""
    runs: Runs = defaultdict(lambda: defaultdict(list))
    for one in outcomes:
        runs[one.trace, one.load][one.policy].append(one)
    return runs


def ratios(ours: Sequence[Outcome], others: Sequence[Outcome]) -> list[float]:
    """p95 of ours over theirs, seed by seed."""
    return [max(_LEAST, a.p95) / max(_LEAST, b.p95) for a, b in zip(ours, others, strict=True)]


def by_trace(runs: Runs) -> str:
    head = ["trace", "load", "p95 s: LRU", "ours", "oracle", "ours/LRU", "ours/oracle"]
    head += ["over 120 s, %: LRU", "ours", "swaps: LRU", "ours"]
    return table(head, (_row(*key, policies) for key, policies in runs.items()))


def _row(trace: str, load: float, policies: dict[str, list[Outcome]]) -> list[str]:
    lru, ours, oracle = policies[LRU], policies[OURS], policies[ORACLE]
    return [
        trace,
        f"{load:.0%}",
        *(f"{median(one.p95 for one in given):,.0f}" for given in (lru, ours, oracle)),
        spread(ratios(ours, lru), 2),
        spread(ratios(ours, oracle), 2),
        *(f"{100 * median(one.long for one in given):.1f}" for given in (lru, ours)),
        *(f"{median(one.swaps for one in given):,.0f}" for given in (lru, ours)),
    ]


def against_targets(runs: Runs) -> str:
    keeping_up = {key: given for key, given in runs.items() if median(one.p95 for one in given[LRU]) < KEEPS_UP}
    head = ["what", "target", "all runs", f"runs in which LRU keeps up ({len(keeping_up)} of {len(runs)})"]
    rows = zip(_TARGETS, _reached(runs), _reached(keeping_up), strict=True)
    return table(head, ([what, target, every, some] for (what, target), every, some in rows))


_TARGETS = (
    ("p95 to LRU's, geometric mean", "≤ 0.50"),
    ("p95 to LRU's, the worst trace and load", "≤ 1.05"),
    ("share over 120 s to LRU's, geometric mean", "≤ 0.50"),
    ("share over 120 s to LRU's, all jobs together", "≤ 0.50"),
    ("p95 to the oracle's, geometric mean", "≤ 1.30"),
    ("p95 to the oracle's, the worst trace and load", "≤ 1.30"),
    ("swaps to LRU's, geometric mean", "< 1"),
)


def _reached(runs: Runs) -> list[str]:
    if not runs:
        return ["-"] * len(_TARGETS)
    every = list(runs.values())
    to_lru = [median(ratios(given[OURS], given[LRU])) for given in every]
    to_oracle = [median(ratios(given[OURS], given[ORACLE])) for given in every]
    pairs = [pair for given in every for pair in zip(given[OURS], given[LRU], strict=True)]
    long = [max(1e-4, ours.long) / max(1e-4, lru.long) for ours, lru in pairs]
    together = sum(ours.long * ours.jobs for ours, _ in pairs) / max(1.0, sum(lru.long * lru.jobs for _, lru in pairs))
    swaps = [max(1, ours.swaps) / max(1, lru.swaps) for ours, lru in pairs]
    figures = geometric_mean(to_lru), max(to_lru), geometric_mean(long), together
    return [f"{figure:.2f}" for figure in (*figures, geometric_mean(to_oracle), max(to_oracle), geometric_mean(swaps))]


def without(runs: Runs) -> str:
    """What each rule is worth: the planner without it, against the planner."""
    names = {name for given in runs.values() for name in given} - {LRU, OURS, ORACLE}
    head = ["the planner", "p95 to the planner's, geometric mean", "worst", "best", "swaps", "runs"]
    return table(head, (_changed(name, [g for g in runs.values() if name in g]) for name in sorted(names)))


def _changed(name: str, runs: Sequence[dict[str, list[Outcome]]]) -> list[str]:
    p95 = [median(ratios(given[name], given[OURS][: len(given[name])])) for given in runs]
    swaps = [given[name][0].swaps / max(1, given[OURS][0].swaps) for given in runs]
    return [
        name,
        f"{geometric_mean(p95):.2f}",
        f"{max(p95):.2f}",
        f"{min(p95):.2f}",
        f"{geometric_mean([max(share, 1e-3) for share in swaps]):.2f}",
        str(len(runs)),
    ]

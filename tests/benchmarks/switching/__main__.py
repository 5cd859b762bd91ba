"""``python -m tests.benchmarks.switching``: the planner against LRU on demand and an oracle, on a virtual clock."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from broker.snapshot import Rules
from tests.benchmarks.switching.equal import at_equal_p95, compared
from tests.benchmarks.switching.machine import Machine, Policy
from tests.benchmarks.switching.policies import Lru, Planned, oracle
from tests.benchmarks.switching.report import (
    KEEPS_UP,
    LRU,
    ORACLE,
    OURS,
    Outcome,
    against_targets,
    by_trace,
    grouped,
    outcome,
)
from tests.benchmarks.switching.report import without as worth
from tests.benchmarks.switching.traces import SEEDED, Trace, jobs, real

LOADS = (0.3, 0.5, 0.7, 0.85)
POLICIES: Mapping[str, Callable[[], Policy]] = {LRU: Lru, OURS: Planned, ORACLE: oracle}
ABLATIONS: Mapping[str, Callable[[], Policy]] = {
    "without the gate": lambda: Planned(Rules(turn=0.0)),
    "gate only until the first queue is done": lambda: Planned(Rules(catch_up=float("inf"))),
    "gate until the queue is empty": lambda: Planned(Rules(catch_up=0.0)),
    "without the pattern": lambda: Planned(pattern=False),
    "without the recent rate": lambda: Planned(sticky=False),
    "bound of 300 s": lambda: Planned(Rules(max_swap_wait=300.0)),
    "bound of 1200 s": lambda: Planned(Rules(max_swap_wait=1200.0)),
}


@dataclass(frozen=True, slots=True)
class Case:
    make: Callable[[int], Trace]
    seeds: Sequence[int]


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    command = f"`{' '.join(['python -m tests.benchmarks.switching', *arguments])}`\n"
    if options.equal:
        print(f"{command}\n{compared(list(_equal(_cases(options), options.loads)))}")
        return 0
    outcomes = []
    for one in _kept(options.kept) if options.kept else _run(_cases(options), options.loads, options.ablations):
        outcomes.append(one)
        print(f"{one.trace} {one.load:.0%} seed {one.seed} {one.policy}: p95 {one.p95:.1f} s", file=sys.stderr)
        if options.keep:
            options.keep.write_text("".join(f"{json.dumps(asdict(kept))}\n" for kept in outcomes))
    runs = grouped(outcomes)
    print(f"{command}\n{against_targets(runs)}\n\n{by_trace(runs)}")
    if options.ablations:
        print(f"\n{worth(runs)}")
    if options.plots:
        from tests.benchmarks.switching.plots import draw

        draw(runs, options.plots)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.switching", description=__doc__)
    parser.add_argument("--traces", type=Path, help="a folder with rates.csv and models.csv: real arrivals")
    parser.add_argument("--only", action="append", help="names of traces, e.g. 'ping-pong' or real-3")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="shares of what the box can do")
    parser.add_argument("--seeds", type=int, default=3, help="how often each seeded trace is drawn")
    parser.add_argument("--real-seeds", type=int, default=1, help="how often arrivals are drawn from the real rates")
    parser.add_argument(
        "--ablations", action="store_true", help="also the planner without each rule, on the first seed"
    )
    parser.add_argument("--equal", action="store_true", help="nothing but the swaps at LRU's p95, on the first seed")
    parser.add_argument("--keep", type=Path, help="a file for each run's figures, one JSON object per line")
    parser.add_argument("--kept", type=Path, help="nothing is run: tables and plots of such a file")
    parser.add_argument("--plots", type=Path, help="a folder for one plot per trace; needs matplotlib")
    return parser.parse_args(arguments)


def _kept(path: Path) -> Iterator[Outcome]:
    for line in path.read_text().splitlines():
        yield Outcome(**json.loads(line))


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    names = options.only or [*SEEDED, "real-2", "real-3"]
    for name, make in SEEDED.items():
        if name in names:
            yield Case(make, range(1, options.seeds + 1))
    for room in (2, 3):
        if options.traces and f"real-{room}" in names:
            yield Case(partial(_same, real(options.traces, room)), range(1, options.real_seeds + 1))


def _same(trace: Trace, seed: int) -> Trace:
    """Real rates are what they are; only the arrivals are drawn from them."""
    del seed
    return trace


def _run(cases: Iterator[Case], loads: Sequence[float], ablations: bool) -> Iterator[Outcome]:
    for case in cases:
        for load in loads:
            for seed in case.seeds:
                trace = case.make(seed)
                drawn = jobs(trace, load, seed)
                more = ABLATIONS if ablations and seed == case.seeds[0] else {}
                for name, policy in {**POLICIES, **more}.items():
                    machine = Machine(trace.box, len(trace.rates), drawn, trace.learn).run(policy())
                    yield outcome(trace.name, load, seed, name, machine)


def _equal(cases: Iterator[Case], loads: Sequence[float]) -> Iterator[tuple[Outcome, Outcome]]:
    """LRU's runs in which it keeps up, with ours at the same p95."""
    for case in cases:
        for load in loads:
            seed = case.seeds[0]
            trace = case.make(seed)
            drawn = jobs(trace, load, seed)
            machine = Machine(trace.box, len(trace.rates), drawn, trace.learn).run(Lru())
            lru = outcome(trace.name, load, seed, LRU, machine)
            if lru.p95 < KEEPS_UP:
                yield lru, at_equal_p95(trace, load, seed, drawn, lru)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

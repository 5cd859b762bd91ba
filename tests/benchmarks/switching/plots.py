"""One plot per trace: p95 and the share of long waits over the load, by policy. Needs matplotlib (extra `bench`)."""

from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from tests.benchmarks.switching.report import LRU, ORACLE, OURS, Outcome, Runs

_STYLES = {LRU: ("tab:red", "s-"), OURS: ("tab:blue", "o-"), ORACLE: ("tab:gray", "^:")}


def draw(runs: Runs, directory: Path) -> None:
    """Writes ``<trace>.png`` for each trace."""
    directory.mkdir(parents=True, exist_ok=True)
    for trace in dict.fromkeys(trace for trace, _ in runs):
        mine = {load: given for (name, load), given in runs.items() if name == trace}
        _plot(trace, mine).savefig(directory / f"{trace.replace(' ', '-')}.png", dpi=80)


def _plot(trace: str, runs: dict[float, dict[str, list[Outcome]]]) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    waits, shares = figure.subplots(1, 2)
    loads = sorted(runs)
    percent = [100 * load for load in loads]
    for policy, (color, style) in _STYLES.items():
        p95 = [median(one.p95 for one in runs[load][policy]) for load in loads]
        long = [100 * median(one.long for one in runs[load][policy]) for load in loads]
        waits.semilogy(percent, p95, style, color=color, label=policy)
        shares.plot(percent, long, style, color=color, label=policy)
    waits.set(title=f"{trace}: p95 wait", xlabel="load, %", ylabel="seconds")
    shares.set(title="jobs that wait over 120 s", xlabel="load, %", ylabel="%", ylim=(0, 100))
    waits.legend()
    return figure

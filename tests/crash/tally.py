"""What a crash run found, as a table."""

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.job import Status
from tests.crash.fleet import Fleet
from tests.crash.history import Breach, History
from tests.crash.plan import Target
from tests.crash.verdict import Evidence

if TYPE_CHECKING:
    from tests.crash.suite import Options


@dataclass(frozen=True)
class Tally:
    """``left``: temporary directories that killed workers have left."""

    options: "Options"
    evidence: Evidence
    fleet: Fleet
    history: History
    breaches: list[Breach]
    left: int
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return not self.breaches

    def markdown(self) -> str:
        rows = [f"| {name} | {value} |" for name, value in self._rows()]
        return "\n".join(["| measured | value |", "| --- | --- |", *rows])

    def _rows(self) -> Iterator[tuple[str, str]]:
        evidence, ledger = self.evidence, self.evidence.ledger
        statuses = Counter(job.status for job in evidence.jobs.values())
        yield "gateways, workers, seed", f"{self.options.gateways}, {self.options.workers}, {self.options.seed}"
        yield "seconds", f"{self.seconds:.0f}"
        yield "jobs accepted (a 2xx was seen)", str(len(ledger.promises))
        yield "of those, documents", str(sum(promise.errand.task == "ocr" for promise in ledger.promises.values()))
        for status in Status:
            if status.terminal or statuses[status]:
                yield status.value, str(statuses[status])
        yield "made by a POST without an answer and without a key", str(len(evidence.unacknowledged()))
        yield "cancels acknowledged", str(sum(promise.cancelled for promise in ledger.promises.values()))
        yield from self._blows()
        yield "workers killed by a job of theirs", str(self.fleet.self_killed())
        yield "failed attempts", _listed(evidence.failed_attempts())
        yield "of those, taken from a worker that nobody had touched", str(len(evidence.burnt(self.fleet.untouched())))
        yield "requests tried again", _listed(ledger.answers)
        yield "from accept to end, p50 / p95 / max", _quantiles(evidence.seconds())
        yield "writes to jobs that were audited", str(self.history.changes)
        yield (
            "held at most at once",
            ", ".join(f"{most} {kind}s of {model}" for (model, kind), most in sorted(self.history.most.items())),
        )
        yield "starts of gateways and workers", str(sum(len(unit.starts) for unit in self.fleet.units))
        yield "ended by themselves", str(len(self.fleet.other_ends()))
        yield "temporary directories left by killed workers", str(self.left)
        yield "verdict", "every promise was kept" if self.kept else f"**{len(self.breaches)} promises were broken**"

    def _blows(self) -> Iterator[tuple[str, str]]:
        for target in Target:
            kinds = {kind.value: count for (struck, kind), count in self.fleet.blows.items() if struck is target}
            yield f"blows to a {target}", _listed(Counter(kinds))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _quantiles(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return "none"
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return f"{statistics.median(seconds):.2f} / {cuts[18]:.2f} / {seconds[-1]:.2f} s"

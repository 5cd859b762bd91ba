"""``python -m tests.benchmarks.broker``: the queue alone, with one producer process and one worker process.

Every job is on disk (majority, journal) before its submit returns, and so is every result before anybody is told.
"""

import argparse
import sys
from collections.abc import Sequence

from tests.benchmarks import scenarios
from tests.benchmarks.peers.catalogue import PEERS
from tests.benchmarks.rounds import OURS, compare
from tests.benchmarks.site import headline, site
from tests.benchmarks.tables import by_phase
from tests.benchmarks.work import PHASES, Plan


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks.broker", description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3, help="how often everything is measured (%(default)s)")
    options.add_argument("--jobs", type=int, default=3000, help="jobs of the end-to-end phase (%(default)s)")
    options.add_argument("--peers", action="store_true", help="other job queues beside it, in turns")
    only = [*PHASES, OURS, *PEERS]
    options.add_argument(
        "--only", action="append", choices=only, default=[], metavar="NAME", help=f"of these: {', '.join(only)}"
    )
    options.add_argument("--history", type=int, metavar="N", help="instead: with N finished jobs in the database")
    options.add_argument("--queued", type=int, metavar="N", help="instead: with N jobs waiting (at most 100,000)")
    options.add_argument("--idle", type=float, metavar="SECONDS", help="instead: a gateway and a worker without jobs")
    return options


def report(given: argparse.Namespace) -> str:
    phases = tuple(name for name in PHASES if name in given.only) or PHASES
    # The other phases in proportion: 300 and 1,000 of 3,000.
    plan = Plan(phases, given.jobs, max(1, given.jobs // 10), max(10, given.jobs // 3))
    if given.history:
        return scenarios.with_history(plan, given.rounds, given.history)
    if given.queued:
        return scenarios.with_queue(plan, given.rounds, given.queued)
    with site() as place:
        if given.idle:
            return scenarios.idle(place, given.idle)
        named = [name for name in (OURS, *PEERS) if name in given.only]
        queues = named or ([OURS, *PEERS] if given.peers else [OURS])
        return by_phase(compare(place, plan, given.rounds, queues))


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    print(headline("tests.benchmarks.broker", arguments), flush=True)
    print(report(given))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.crash --jobs 2000 --kills 60 --seed 1``: strikes a whole system and holds it to its promises.

Exits 1 if a promise was broken; the logs and the database are then kept.
"""

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.crash.suite import Options, Run
from tests.crash.tally import Tally


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description="The crash suite of Roundhouse.")
    parser.add_argument("--jobs", type=int, default=2000, help="how many jobs are submitted (default: 2000)")
    parser.add_argument("--kills", type=int, default=60, help="how many blows fall meanwhile (default: 60)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31), help="decides jobs and blows")
    parser.add_argument("--seconds", type=float, help="submit nothing new after so many")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    return Options(given.jobs, given.kills, given.seed, given.gateways, given.workers, given.seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    home = Path(tempfile.mkdtemp(prefix="roundhouse-crash-"))
    begin = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - begin:7.1f} s  {line}", file=sys.stderr, flush=True)

    report(f"seed {options.seed}, home {home}")
    tally = asyncio.run(_run(Run(options, home, report)))
    print(tally.markdown())
    return _conclude(tally, home)


async def _run(run: Run) -> Tally:
    """Ended by SIGTERM, too, it takes all that it has started along."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run.tally()


def _conclude(tally: Tally, home: Path) -> int:
    for line in tally.fleet.other_ends():
        print(f"ended by itself: {line}", file=sys.stderr)
    for job_id in tally.evidence.burnt(tally.fleet.untouched()):
        print(f"an attempt was taken from a worker that nobody had touched: job {job_id}", file=sys.stderr)
    if tally.kept:
        shutil.rmtree(home)
        return 0
    for breach in tally.breaches:
        print(f"BROKEN: {breach}", file=sys.stderr)
    print(f"The logs and the database are kept in {home}.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

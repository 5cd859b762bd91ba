"""``python -m tests.benchmarks.cleanup``: what the queue's users notice of the deletion of a million old jobs.

Single jobs come at a steady rate, first while nothing else goes on and then while the cleaner deletes without a rest
between its runs, which it has when it runs by the clock.
"""

import argparse
import asyncio
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from bson import ObjectId
from pymongo import WriteConcern

from broker.cleanup import Cleaner
from broker.database import TTL_MARGIN, connect
from broker.files import FileStore
from broker.pages import Pages
from config.settings import HistorySettings
from tests.benchmarks.producer import MODEL
from tests.benchmarks.site import Site, headline, module, process, site
from tests.benchmarks.tables import table
from tests.benchmarks.work import cpu_seconds

RETENTION = HistorySettings().retention
_BATCH = 2000
_USERS = 1000


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time under a steady load. ``spans``: seconds for each job. ``cpu``: of a core, by process."""

    name: str
    seconds: float
    spans: Sequence[float]
    cpu: Mapping[str, float]

    def row(self) -> list[str]:
        ordered = sorted(1e3 * span for span in self.spans)
        shares = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99, 0.999, 1))
        cpu = (f"{100 * self.cpu[name]:.0f}" for name in ("broker", "cleaner"))
        return [self.name, f"{len(ordered):,}", *(f"{value:.1f}" for value in shares), *cpu]


HEAD = ["meanwhile", "jobs", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "CPU, % of a core: mongod", "cleaner"]


class Trial:
    """A database with its worker, and jobs that come at ``rate`` per second."""

    def __init__(self, place: Site, env: Mapping[str, str], rate: float) -> None:
        self._place = place
        self._env = env
        self._rate = rate
        self._database = env["ROUNDHOUSE__MONGODB__DATABASE"]

    def during(self, name: str, action: Callable[[], object]) -> Stretch:
        with process(*module("steady", str(self._rate)), env=self._env) as producer:
            assert producer.stdout is not None
            begin, spent, own = time.perf_counter(), cpu_seconds(self._place.mongod), time.process_time()
            action()
            seconds = time.perf_counter() - begin
            used = {"broker": cpu_seconds(self._place.mongod) - spent, "cleaner": time.process_time() - own}
            producer.terminate()
            spans = json.loads(producer.stdout.read())
        return Stretch(name, seconds, spans, {name: cpu / seconds for name, cpu in used.items()})

    def expire(self, count: int) -> None:
        """Writes copies of a job that was really completed, too old to be kept and too young for the TTL index."""
        with self._place.client() as client:
            jobs = client[self._database].get_collection("jobs", write_concern=WriteConcern(1))
            template = jobs.find_one({"status": "completed"})
            assert template is not None
            copies = _copies(template, count)
            while batch := list(islice(copies, _BATCH)):
                jobs.insert_many(batch, ordered=False)
            client.admin.command("fsync")

    def clean(self, seconds: float) -> None:
        """Deletes what has expired, as the clockwork does, for so long at the most."""
        asyncio.run(self._clean(seconds))

    async def _clean(self, seconds: float) -> None:
        database = connect(self._place.uri, self._database)
        files = FileStore(database)
        cleaner = Cleaner(database, files, Pages(database, files), RETENTION)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await cleaner.clean():
                    """There is more than one run can do."""
        await database.close()

    def left(self) -> int:
        """Expired jobs that are still there."""
        with self._place.client() as client:
            expired = {"finished_at": {"$lt": datetime.now(UTC) - timedelta(seconds=RETENTION)}}
            return client[self._database]["jobs"].count_documents(expired)


def _copies(template: Mapping[str, Any], count: int) -> Iterator[dict[str, Any]]:
    first = datetime.now(UTC) - timedelta(seconds=RETENTION + TTL_MARGIN / 2)
    for number in range(count):
        times = dict.fromkeys(("created_at", "started_at", "finished_at"), first + timedelta(milliseconds=number))
        user = f"user-{number % _USERS}"
        yield {**template, **times, "_id": ObjectId(), "subject": user, "token": uuid.uuid4().hex}


def report(count: int, rate: float, alone: float, cleaning: float) -> str:
    with site() as place, place.database("cleanup") as env, process(*module("worker", MODEL), env=env):
        trial = Trial(place, env, rate)
        trial.during("warm-up", lambda: time.sleep(1))
        trial.expire(count)
        stretches = [
            trial.during("nothing", lambda: time.sleep(alone)),
            trial.during("cleaning", lambda: trial.clean(cleaning)),
        ]
        gone, took = count - trial.left(), stretches[-1].seconds
    told = f"{gone:,} of {count:,} jobs were deleted in {took:.0f} s, {gone / took:,.0f} a second."
    return f"{table(HEAD, (stretch.row() for stretch in stretches))}\n\n{told}"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks.cleanup", description=__doc__.splitlines()[0])
    options.add_argument("--jobs", type=int, default=1_000_000, help="finished jobs to delete (%(default)s)")
    options.add_argument("--rate", type=float, default=50, help="single jobs a second meanwhile (%(default)s)")
    options.add_argument("--alone", type=float, default=30, help="seconds without cleaning (%(default)s)")
    options.add_argument("--cleaning", type=float, default=120, help="seconds with it, at the most (%(default)s)")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    print(headline("tests.benchmarks.cleanup", arguments), flush=True)
    print(report(given.jobs, given.rate, given.alone, given.cleaning))
    return 0


if __name__ == "__main__":
    sys.exit(main())

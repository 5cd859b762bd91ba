"""Rounds of the broker benchmark: our queue and its peers in turns, each time in another order."""

import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.peers import catalogue
from tests.benchmarks.producer import MODEL
from tests.benchmarks.site import Site, module, output, process
from tests.benchmarks.tables import Rounds
from tests.benchmarks.work import Figures, Plan, heard

NAME = "Roundhouse"
OURS = "roundhouse"


def one_round(place: Site, plan: Plan, env: Mapping[str, str]) -> list[Figures]:
    """A fresh worker and a fresh producer on the database of ``env``."""
    with process(*module("worker", MODEL), env=env) as worker:
        told = replace(plan, processes={"worker": worker.pid, "broker": place.mongod})
        return heard(output(*module("producer", told.text()), env=env))


def compare(place: Site, plan: Plan, rounds: int, queues: Collection[str]) -> Rounds:
    """``queues``: OURS, and keys of ``PEERS``. A peer that cannot run is left out, and a line says why."""
    able = [name for name in queues if name == OURS or _able(name)]
    figures: defaultdict[str, list[Figures]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="roundhouse-peers-") as scratch:
        for number in range(rounds):
            for name in random.Random(number).sample(able, len(able)):
                if name == OURS:
                    with place.database(f"round-{number}") as env:
                        figures[NAME] += one_round(place, plan, env)
                else:
                    peer = catalogue.PEERS[name]
                    figures[peer.title] += catalogue.one_round(peer, plan, Path(scratch) / f"{number}-{name}")
    return figures


def _able(name: str) -> bool:
    lacking = catalogue.missing(catalogue.PEERS[name])
    if lacking is not None:
        print(lacking, file=sys.stderr)
    return lacking is None

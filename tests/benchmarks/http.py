"""``python -m tests.benchmarks.http``: through a real gateway with a bearer token, to a real worker and back.

The model is the simulator with one token, so that all the time is the system's. Beside it, as the floor, uvicorn with
nothing behind it.
"""

import argparse
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.load import Load
from tests.benchmarks.peers.catalogue import PEERS
from tests.benchmarks.rounds import OURS
from tests.benchmarks.rounds import compare as run_queues
from tests.benchmarks.site import Site, headline, module, output, process, site
from tests.benchmarks.tables import comparison, of_phase
from tests.benchmarks.work import CLIENTS, Figures, Plan, heard, payload
from tests.ports import free_port
from tests.system import System

NAME, FLOOR = "Roundhouse, POST /api/chat?wait=30", "uvicorn alone, POST"
MODEL = "simulator"
# So often more requests than jobs, so that the floor is measured for about as long.
QUICKER = 10


def configuration(places: int) -> dict[str, Any]:
    """As it comes, but for a model that costs nothing."""
    quick = {"task": "chat", "engine": "simulator", "tokens": 1, "tokens_per_second": 1_000_000}
    return {
        "models": {MODEL: {**quick, "max_concurrent": places, "max_waiting": 1000}},
        "defaults": {"chat": [MODEL]},
    }


@contextmanager
def system(place: Site, database: str, places: int = 20) -> Iterator[tuple[System, dict[str, int], str]]:
    """A gateway and a worker that serves; their pids and a token of role service, whose rate is not limited."""
    with (
        tempfile.TemporaryDirectory(dir=place.home) as home,
        place.database(database),
        System(Path(home), place.uri, database, configuration(places)) as running,
    ):
        gateway, worker = running.gateway(), running.start("worker")
        token = _token(running)
        running.http.headers["Authorization"] = f"Bearer {token}"
        running.http.post("/api/chat", params={"wait": 30}, json={"message": "ready?"}).raise_for_status()
        yield running, {"gateway": gateway.pid, "worker": worker.pid, "broker": place.mongod}, token


def _token(running: System) -> str:
    password = secrets.token_urlsafe()
    added = running.run("user", "add", "load", "--role", "service", "--password-stdin", text=password)
    if added.returncode:
        raise SystemExit(added.stderr)
    form = {"grant_type": "password", "username": "load", "password": password}
    return str(httpx.post(f"{running.url}/auth/token", data=form).raise_for_status().json()["access_token"])


def through_gateway(place: Site, jobs: int, connections: int, database: str) -> list[Figures]:
    with system(place, database) as (running, processes, token):
        load = Load(
            f"{running.url}/api/chat?wait=30",
            {"message": payload(1)["data"]},
            {"status": "completed", "model": MODEL, "attempts": 1},
            {"Authorization": f"Bearer {token}"},
            jobs,
            connections,
            processes,
        )
        return heard(output(*module("load", load.text()), env=running.environ))


def through_nothing(place: Site, jobs: int, connections: int) -> list[Figures]:
    port = free_port()
    with place.database("unused") as env, process(*module("bare", str(port)), env=env) as server:
        url, expected = f"http://127.0.0.1:{port}/jobs", {"id": 1, "ok": True}
        load = Load(url, payload(1), expected, {}, jobs, connections, {"gateway": server.pid})
        return heard(output(*module("load", load.text()), env=env))


def compare(place: Site, rounds: int, jobs: int, connections: int) -> str:
    figures: dict[str, list[Figures]] = {FLOOR: [], NAME: []}
    for number in range(rounds):
        figures[NAME] += through_gateway(place, jobs, connections, f"round-{number}")
        figures[FLOOR] += through_nothing(place, jobs * QUICKER, connections)
    return comparison(figures, ("producer", "gateway", "worker", "broker"), "server", "answer")


def beside(place: Site, rounds: int, jobs: int, connections: int) -> str:
    """The peers have no gateway: these are their clients' figures, with as many clients as there are connections."""
    plan = Plan((CLIENTS,), clients=jobs, looping=connections)
    figures = run_queues(place, plan, rounds, [OURS, *PEERS])
    title = f"### Without HTTP: {connections} clients of the queue itself"
    return f"{title}\n\n{comparison(of_phase(figures, CLIENTS), ('producer', 'worker', 'broker'))}"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks.http", description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3, help="how often everything is measured (%(default)s)")
    options.add_argument("--jobs", type=int, default=2000, help="jobs per round (%(default)s)")
    options.add_argument("--connections", type=int, default=20, help="clients that submit and wait (%(default)s)")
    options.add_argument("--peers", action="store_true", help="the clients of other job queues, which have no HTTP")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    print(headline("tests.benchmarks.http", arguments), flush=True)
    with site() as place:
        print(compare(place, given.rounds, given.jobs, given.connections))
        if given.peers:
            print(f"\n{beside(place, given.rounds, given.jobs, given.connections)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.benchmarks.engine``: what Roundhouse adds to an engine, beside the same load sent straight to it.

Ten clients that ask again as soon as they have their answer: straight by httpx, and by ``POST /api/chat`` through a
real gateway, the queue and a real worker to the same server. That server is one of a set speed, so that all the rest is
the system's; or, with ``--vllm``, a real vLLM with a tiny model, which takes whatever the processors have left.
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence

from tests.benchmarks import askers, bench_rounds
from tests.benchmarks.askers import MEAN, STRAIGHT, SYSTEM, WAYS, Answers, Asking
from tests.benchmarks.front import CLIENTS, Engine, paced, real, system
from tests.benchmarks.site import Site, headline, module, output, site
from tests.benchmarks.tables import spread, table
from tests.benchmarks.tiny_vllm import TINY

# Prompts a second that a tiny model answers, about.
_BENCH_RATE = 20
_PROCESSES = ("client", "gateway", "worker", "mongod", "engine")

Rounds = Mapping[tuple[str, str], Sequence[Answers]]
"""What the rounds gave, by model and way."""


def one_way(place: Site, engine: Engine, way: str, seconds: float, seed: int) -> dict[str, Answers]:
    """By model, each for about ``seconds``."""
    if way == STRAIGHT:
        return _ask(engine, way, seconds, seed, engine.url, {}, {})
    with system(place, engine, f"round-{seed}") as (running, processes):
        headers = {"Authorization": str(running.http.headers["Authorization"])}
        return _ask(engine, way, seconds, seed, running.url, headers, processes)


def _ask(
    engine: Engine,
    way: str,
    seconds: float,
    seed: int,
    url: str,
    headers: Mapping[str, str],
    processes: Mapping[str, int],
) -> dict[str, Answers]:
    answers = {}
    for model, pace in engine.paces.items():
        questions = max(1, round(seconds * pace / MEAN))
        timed = {**processes, "engine": engine.pid}
        asking = Asking(way, url, model, seed, questions, CLIENTS, engine.known, headers, timed)
        answers[model] = askers.heard(output(*module("askers", asking.text()), env=os.environ))
    return answers


def compare(place: Site, engine: Engine, rounds: int, seconds: float) -> Rounds:
    """Both ways in turns, each time in the other order."""
    answers: defaultdict[tuple[str, str], list[Answers]] = defaultdict(list)
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            for model, given in one_way(place, engine, way, seconds, number).items():
                answers[model, way].append(given)
    return answers


def report(rounds: Rounds, models: Mapping[str, str]) -> str:
    """``models``: what they are called."""
    return f"{_ways(rounds, models)}\n\n{_added(rounds, models)}"


def _ways(rounds: Rounds, models: Mapping[str, str]) -> str:
    cpu = [f"CPU µs/answer: {_PROCESSES[0]}", *_PROCESSES[1:]]
    head = ["engine", "way", "tokens/s", "answers/s", *cpu, "others, % of machine"]
    rows = [
        [
            title,
            way,
            spread(answers.rate for answers in rounds[model, way]),
            spread((len(answers.spans) / answers.seconds for answers in rounds[model, way]), 1),
            *(spread(answers.cpu.get(name) for answers in rounds[model, way]) for name in _PROCESSES),
            spread((answers.foreign for answers in rounds[model, way]), 1),
        ]
        for model, title in models.items()
        for way in WAYS
    ]
    return table(head, rows)


def _added(rounds: Rounds, models: Mapping[str, str]) -> str:
    rows = []
    for model, title in models.items():
        pairs = list(zip(rounds[model, STRAIGHT], rounds[model, SYSTEM], strict=True))
        ratios = spread((through.rate / straight.rate for straight, through in pairs), 3)
        latencies = [sorted(added(*pair)) for pair in pairs]
        shares = [spread((_at(ordered, share) for ordered in latencies), 1) for share in (0.5, 0.9, 0.99)]
        rows.append([title, ratios, *shares, f"{sum(map(len, latencies)):,}"])
    return table(["engine", "tokens/s of straight", "added ms: p50", "p90", "p99", "pairs"], rows)


def added(straight: Answers, through: Answers) -> list[float]:
    """ms that each answer took longer through the system than the same one straight."""
    return [slow - fast for fast, slow in zip(straight.spans, through.spans, strict=True)]


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks.engine", description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5, help="how often everything is measured (%(default)s)")
    options.add_argument("--seconds", type=float, default=30.0, help="of each measurement, about (%(default)g)")
    options.add_argument(
        "--vllm", action="store_true", help="instead: a real vLLM, of the Python that VLLM_PYTHON names"
    )
    options.add_argument("--bench-serve", action="store_true", help="instead: `vllm bench serve` on that, both ways")
    return options


def measured(given: argparse.Namespace) -> str:
    with site() as place:
        if given.bench_serve:
            with real(place) as engine:
                return bench_rounds.compare(place, engine, given.rounds, round(given.seconds * _BENCH_RATE))
        if given.vllm:
            with real(place) as engine:
                return report(compare(place, engine, given.rounds, given.seconds), {TINY: "vLLM, tiny Llama"})
        with paced() as engine:
            titles = {model: f"{pace:g} tokens/s to each" for model, pace in engine.paces.items()}
            return report(compare(place, engine, given.rounds, given.seconds), titles)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if (given.vllm or given.bench_serve) and not os.environ.get("VLLM_PYTHON"):
        raise SystemExit("VLLM_PYTHON must name a Python that has vLLM")
    print(headline("tests.benchmarks.engine", arguments), flush=True)
    print(measured(given))
    return 0


if __name__ == "__main__":
    sys.exit(main())

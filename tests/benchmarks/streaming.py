"""``python -m tests.benchmarks.streaming``: what Roundhouse adds to the first token of a stream, and between tokens.

The same questions straight to a server of a set speed and through ``POST /v1/chat/completions`` of a real gateway, the
queue and a real worker to that server: one client at a time, and 20. With ``--vllm`` that server is a real vLLM with a
tiny model; with ``--litellm`` the proxy of LiteLLM is asked, too, and answers that come whole besides streams.
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

from tests.benchmarks import streamers, upstream
from tests.benchmarks.front import Engine
from tests.benchmarks.site import Site, headline, module, output, process, site
from tests.benchmarks.streamers import Asking, Told
from tests.benchmarks.streaming_ways import AT_ONCE, LITELLM, STRAIGHT, SYSTEM, Way, litellm, roundhouse
from tests.benchmarks.tables import spread, table
from tests.benchmarks.tiny_vllm import TINY, tiny_vllm
from tests.ports import free_port

# Tokens a second that the server of a set speed says to each, and that it says at once where only it is timed what is
# in front of it.
_PACE, _AT_ONCE_PACE = 50.0, 1e6
_PROCESSES = ("client", "gateway", "worker", "mongod", "engine")


@dataclass(frozen=True, slots=True)
class Load:
    """``clients`` at the same time, who ask ``questions`` each, for answers of so many tokens."""

    clients: int
    questions: int
    tokens: int
    stream: bool = True

    @property
    def title(self) -> str:
        kind = "stream" if self.stream else "whole"
        return f"{kind}, {'one at a time' if self.clients == 1 else f'{self.clients} at once'}"


Rounds = Mapping[tuple[Load, str], Sequence[Told]]
"""What the rounds gave, by load and way."""


@contextmanager
def paced(pace: float) -> Iterator[Engine]:
    port = free_port()
    with process(*module("upstream", str(port)), env=os.environ) as server:
        yield Engine(f"http://127.0.0.1:{port}/v1", server.pid, {upstream.model(pace): pace}, known=True)


@contextmanager
def real(place: Site) -> Iterator[Engine]:
    with tiny_vllm(place.home, AT_ONCE) as (url, pid):
        yield Engine(url, pid, {TINY: 0.0}, known=False)


def compare(place: Site, engine: Engine, rounds: int, loads: Sequence[Load], *, beside: bool) -> Rounds:
    """All ways are open all the time, and are measured in turns, each round in another order."""
    told: defaultdict[tuple[Load, str], list[Told]] = defaultdict(list)
    with ExitStack() as stack:
        ways = {STRAIGHT: Way(engine.url), SYSTEM: stack.enter_context(roundhouse(place, engine, "streaming"))}
        if beside:
            ways[LITELLM] = stack.enter_context(litellm(place, engine))
        for number in range(rounds):
            for load in loads:
                turn = number % len(ways)
                for name in [*ways][turn:] + [*ways][:turn]:
                    told[load, name].append(_ask(engine, ways[name], load, number))
    return told


def _ask(engine: Engine, way: Way, load: Load, seed: int) -> Told:
    timed = {**way.processes, "engine": engine.pid}
    (model,) = engine.paces
    asking = Asking(
        way.url,
        model,
        seed,
        load.clients,
        load.questions,
        load.tokens,
        load.stream,
        engine.known,
        way.headers,
        timed,
    )
    return streamers.heard(output(*module("streamers", asking.text()), env=os.environ))


def report(rounds: Rounds) -> str:
    return f"{_ways(rounds)}\n\n{_added(rounds)}"


def _ways(rounds: Rounds) -> str:
    cpu = [f"CPU µs/answer: {_PROCESSES[0]}", *_PROCESSES[1:]]
    head = ["load", "way", "first ms: p50", "p99", "gap ms: p50", "p99", "answers/s", *cpu, "others, % of machine"]
    rows = []
    for (load, way), told in rounds.items():
        gaps = [given.gaps for given in told] if load.stream else []
        rows.append(
            [
                load.title,
                way,
                spread((at(given.firsts, 0.5) for given in told), 2),
                spread((at(given.firsts, 0.99) for given in told), 2),
                spread((at(values, 0.5) for values in gaps), 2),
                spread((at(values, 0.99) for values in gaps), 2),
                spread((len(given.firsts) / given.seconds for given in told), 1),
                *(spread(given.cpu.get(name) for given in told) for name in _PROCESSES),
                spread((given.foreign for given in told), 1),
            ]
        )
    return table(head, rows)


def _added(rounds: Rounds) -> str:
    """Round by round, as the machine's speed varies."""
    rows = []
    for (load, way), told in rounds.items():
        if way == STRAIGHT:
            continue
        pairs = list(zip(rounds[load, STRAIGHT], told, strict=True))
        firsts = [[at(b.firsts, share) - at(a.firsts, share) for a, b in pairs] for share in (0.5, 0.99)]
        gaps = (
            [[at(b.gaps, share) - at(a.gaps, share) for a, b in pairs] for share in (0.5, 0.99)] if load.stream else []
        )
        spans = [median(b.spans) / median(a.spans) for a, b in pairs]
        added = [spread(values, 2) for values in (*firsts, *(gaps or [[], []]))]
        rows.append([load.title, way, *added, spread(spans, 2)])
    return table(
        ["load", "way", "added to first, ms: p50", "p99", "to gaps, ms: p50", "p99", "whole answer, times"], rows
    )


def at(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def loads(given: argparse.Namespace, *, whole: bool, tokens: int) -> list[Load]:
    """About as many answers by one client as by many."""
    streams = [Load(1, given.questions, tokens), Load(AT_ONCE, max(1, given.questions // 4), tokens)]
    wholes = [Load(load.clients, load.questions, tokens, stream=False) for load in streams]
    return streams + (wholes if whole else [])


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks.streaming", description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5, help="how often everything is measured (%(default)s)")
    options.add_argument("--questions", type=int, default=20, help="of one client at a time (%(default)s)")
    options.add_argument("--vllm", action="store_true", help="a real vLLM, of the Python that VLLM_PYTHON names")
    options.add_argument(
        "--litellm", action="store_true", help="beside LiteLLM's proxy, on a server that costs no time"
    )
    options.add_argument("--quick", action="store_true", help="one round of few short answers, to see that it runs")
    return options


def measured(given: argparse.Namespace) -> str:
    if given.quick:
        given.rounds, given.questions = 1, 4
    tokens = 8 if given.quick else 64
    with site() as place:
        if given.vllm:
            with real(place) as engine:
                return report(
                    compare(place, engine, given.rounds, loads(given, whole=False, tokens=tokens), beside=False)
                )
        if given.litellm:
            with paced(_AT_ONCE_PACE) as engine:
                return report(compare(place, engine, given.rounds, loads(given, whole=True, tokens=16), beside=True))
        with paced(_PACE) as engine:
            return report(compare(place, engine, given.rounds, loads(given, whole=False, tokens=tokens), beside=False))


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if given.vllm and not os.environ.get("VLLM_PYTHON"):
        raise SystemExit("VLLM_PYTHON must name a Python that has vLLM")
    print(headline("tests.benchmarks.streaming", arguments), flush=True)
    print(measured(given))
    return 0


if __name__ == "__main__":
    sys.exit(main())

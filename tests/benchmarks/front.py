"""An engine that speaks OpenAI's chat API, and Roundhouse in front of it."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import upstream
from tests.benchmarks.site import Site, module, process
from tests.benchmarks.tiny_vllm import TINY, tiny_vllm
from tests.ports import free_port
from tests.system import System

CLIENTS = 10
"""Who ask, and how many answers an engine works on at once."""
PACES = (50.0, 200.0)
# Tokens a second that each of ten clients may expect of the tiny model on two cores.
_TINY_PACE = 200.0


@dataclass(frozen=True, slots=True)
class Engine:
    """``url``: up to /v1. ``paces``: by model, about how many tokens a second each client gets.

    ``known``: it says what ``upstream.text`` says.
    """

    url: str
    pid: int
    paces: Mapping[str, float]
    known: bool


@contextmanager
def paced() -> Iterator[Engine]:
    """A server for all of ``PACES``."""
    port = free_port()
    with process(*module("upstream", str(port)), env=os.environ) as server:
        paces = {upstream.model(pace): pace for pace in PACES}
        yield Engine(f"http://127.0.0.1:{port}/v1", server.pid, paces, known=True)


@contextmanager
def real(place: Site) -> Iterator[Engine]:
    """A vLLM of the interpreter that VLLM_PYTHON names."""
    with tiny_vllm(place.home, CLIENTS) as (url, pid):
        yield Engine(url, pid, {TINY: _TINY_PACE}, known=False)


def configuration(engine: Engine, at_once: int) -> dict[str, Any]:
    """As it comes, but that nobody is asked to come more slowly."""
    entry = {"task": "chat", "engine": "openai", "base_url": engine.url, "max_concurrent": at_once}
    return {
        "models": {model: dict(entry) for model in engine.paces},
        "defaults": {"chat": [next(iter(engine.paces))]},
        "rate_limit": {"exempt_roles": ["service", "admin"]},
    }


@contextmanager
def system(
    place: Site, engine: Engine, database: str, at_once: int = CLIENTS
) -> Iterator[tuple[System, dict[str, int]]]:
    """A gateway and a worker in front of the engine, signed in; and their pids. ``at_once``: jobs that run."""
    with (
        tempfile.TemporaryDirectory(dir=place.home) as home,
        place.database(database),
        System(Path(home), place.uri, database, configuration(engine, at_once)) as running,
    ):
        gateway, worker = running.gateway(), running.start("worker")
        running.sign_in()
        for model in engine.paces:
            body = {"model": model, "message": "ready?", "max_tokens": 1}
            running.http.post("/api/chat", params={"wait": 50}, json=body).raise_for_status()
        yield running, {"gateway": gateway.pid, "worker": worker.pid, "mongod": place.mongod}

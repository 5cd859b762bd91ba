"""The ways by which a stream may go: straight to an engine, through Roundhouse, through LiteLLM's proxy."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml

from tests.benchmarks.front import Engine, system
from tests.benchmarks.peers.environments import environment
from tests.benchmarks.site import Site, process
from tests.ports import free_port

STRAIGHT, SYSTEM, LITELLM = "straight", "through Roundhouse", "through LiteLLM"
AT_ONCE = 20
"""The most who ask at the same time."""
_KEY = "sk-benchmark"
# Seconds that a start may take.
_PATIENCE = 120.0
# As quiet and as quick as it can be: no telemetry, no list of prices fetched, no line for each request.
_QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}


@dataclass(frozen=True, slots=True)
class Way:
    """``url``: up to /v1. ``processes``: pids by name."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    processes: Mapping[str, int] = field(default_factory=dict)


@contextmanager
def roundhouse(place: Site, engine: Engine, database: str) -> Iterator[Way]:
    """A gateway and a worker in front of the engine, on a database of their own."""
    with system(place, engine, database, AT_ONCE) as (running, processes):
        headers = {"Authorization": str(running.http.headers["Authorization"])}
        yield Way(f"{running.url}/v1", headers, processes)


@contextmanager
def litellm(place: Site, engine: Engine) -> Iterator[Way]:
    """LiteLLM's proxy in front of the engine: one process, no database, one key."""
    port, key = free_port(), {"Authorization": f"Bearer {_KEY}"}
    models = [
        {"model_name": model, "litellm_params": {"model": f"openai/{model}", "api_base": engine.url, "api_key": "none"}}
        for model in engine.paces
    ]
    settings = {"telemetry": False, "num_retries": 0, "turn_off_message_logging": True}
    config = {"model_list": models, "litellm_settings": settings, "general_settings": {"master_key": _KEY}}
    with tempfile.TemporaryDirectory(dir=place.home) as home:
        path, log = Path(home) / "litellm.yaml", Path(home) / "litellm.log"
        path.write_text(yaml.safe_dump(config))
        command = f'echo starting; exec "$0" "$@" >{log} 2>&1'
        program = environment("bench-litellm") / "litellm"
        options = ["--config", path, "--host", "127.0.0.1", "--port", port, "--num_workers", 1]
        words = ["sh", "-c", command, *map(str, (program, *options))]
        with process(*words, env={**os.environ, **_QUIET}) as server:
            _until_healthy(f"http://127.0.0.1:{port}/health/liveliness", log)
            yield Way(f"http://127.0.0.1:{port}/v1", key, {"gateway": server.pid})


def _until_healthy(url: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"LiteLLM did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)

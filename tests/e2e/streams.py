"""A system with models of set speeds, and clients of its streams who can be made to behave badly."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.conditions import eventually
from tests.deployments import default_config
from tests.ports import free_port
from tests.system import System

PATH = "/v1/chat/completions"
DONE = b"data: [DONE]"
# Seconds after which a reader is given up. How long anything may take it does not say.
HUNG = 300
SERVED = ("talker", "lengthy", "single", "steadfast", "torrent")


def configuration() -> dict[str, Any]:
    """``talker`` says 50 tokens a second for two seconds, ``lengthy`` for ten: time to kill something meanwhile.
    ``single`` has one place to run, and goes on for minutes; ``steadfast`` goes on without its client, too; ``torrent``
    says megabytes; ``forgotten`` is not among SERVED."""
    config = default_config()
    config["server"] = {"heartbeat": 0.3}
    kinds: dict[str, dict[str, Any]] = {
        "talker": {"tokens_per_second": 50, "tokens": 100, "max_concurrent": 300, "max_waiting": 300},
        "lengthy": {"tokens_per_second": 50, "tokens": 500},
        "single": {"tokens_per_second": 50, "tokens": 10_000, "max_concurrent": 1},
        "steadfast": {"tokens_per_second": 50, "tokens": 100, "on_disconnect": "continue"},
        "torrent": {"tokens_per_second": 5000, "tokens": 20_000},
        "forgotten": {"max_concurrent": 1},
    }
    config["models"] |= {name: {"task": "chat", "engine": "simulator", **kind} for name, kind in kinds.items()}
    return config


@contextmanager
def system(home: Path, uri: str | None, database: str) -> Iterator[System]:
    """Nothing of it runs yet."""
    with System(home, uri, database, configuration()) as running:
        yield running


def body(model: str = "talker", text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, **more}


def client(running: System, url: str | None = None) -> httpx.AsyncClient:
    """Signed in as ``running`` is. For a gateway at ``url``, if that is another one."""
    headers = {"Authorization": running.http.headers["Authorization"]}
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url or running.url, headers=headers, timeout=60.0, limits=limits)


def other_gateway(running: System) -> str:
    """Starts one more gateway; its URL once it is healthy."""
    port = free_port()
    own = running.environ["SERVER_PORT"]
    running.environ["SERVER_PORT"] = str(port)
    running.start("gateway")
    running.environ["SERVER_PORT"] = own
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=60.0, transport=httpx.HTTPTransport(retries=30)) as http:
        # It says 503 until it accepts jobs.
        while http.get("/health").status_code != 200:
            time.sleep(0.05)
    return url


class Reader:
    """Reads one stream. ``text``: what came so far; ``job``: its id."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.job: str = response.headers["x-request-id"]
        self.text = b""
        self._pieces: AsyncIterator[bytes] = response.aiter_raw()

    async def until(self, enough: Callable[["Reader"], bool]) -> None:
        async with asyncio.timeout(HUNG):
            while not enough(self):
                self.text += await anext(self._pieces)

    async def to_the_end(self) -> bytes:
        async with asyncio.timeout(HUNG):
            async for piece in self._pieces:
                self.text += piece
        return self.text

    @property
    def whole_events(self) -> bytes:
        """Without the last event, if only a part of it has come."""
        end = self.text.rfind(b"\n\n")
        return self.text[: end + 2] if end >= 0 else b""


def events(text: bytes) -> list[bytes]:
    """Without the comments of the heartbeat."""
    lines = [line for line in text.split(b"\n") if not line.startswith(b":")]
    return [event for event in b"\n".join(lines).split(b"\n\n") if event.strip()]


def so_many(count: int) -> Callable[[Reader], bool]:
    return lambda reader: len(events(reader.whole_events)) >= count


def last_id(text: bytes) -> str:
    return events(text)[-1].split(b"\n")[0].removeprefix(b"id: ").decode()


def data_of(text: bytes) -> list[Any]:
    """What the events hold; ``[DONE]`` as it is."""
    lines = [event.split(b"data: ", 1)[1] for event in events(text)]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


def said(text: bytes) -> str:
    chunks = [chunk for chunk in data_of(text) if isinstance(chunk, dict) and "choices" in chunk]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def result_of(job: Mapping[str, Any]) -> str:
    return str(job["result"]["message"]["content"])


def memory(pid: int) -> int:
    """Bytes of a process and of all that descends from it."""
    root = psutil.Process(pid)
    return sum(process.memory_info().rss for process in [root, *root.children(recursive=True)])


async def served(http: httpx.AsyncClient, model: str) -> None:
    """Returns when a worker serves the model."""

    async def ready() -> bool:
        found = (await http.get("/admin/models")).json()["models"]
        return any(one["name"] == model and any(w["ready"] for w in one["workers"]) for one in found)

    # Of a worker that may have just been started, on a busy machine.
    await eventually(ready, within=120)


async def status(http: httpx.AsyncClient, job: str) -> str:
    return str((await http.get(f"/api/jobs/{job}")).json()["status"])


async def ended(http: httpx.AsyncClient, job: str) -> dict[str, Any]:
    """The job once it has ended."""
    while True:
        found: dict[str, Any] = (await http.get(f"/api/jobs/{job}", params={"wait": 20})).json()
        if found["status"] not in ("queued", "processing"):
            return found

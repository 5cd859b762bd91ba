"""A load generator: keep-alive connections that each POST, await the answer, check it, and POST again.

Written on httptools, because a comfortable client costs more CPU per request than the gateway that it is to measure.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import uvloop

from broker.parent import die_with_parent
from tests.benchmarks.work import CLIENTS, Stopwatch, tell


@dataclass(frozen=True, slots=True)
class Load:
    """What the process is told, as JSON in its first argument. ``expect``: what each answer must have in it."""

    url: str
    body: Mapping[str, Any]
    expect: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    requests: int = 2000
    connections: int = 20
    processes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def given(cls) -> "Load":
        return cls(**json.loads(sys.argv[1]))

    def text(self) -> str:
        return json.dumps(asdict(self))

    def request(self) -> bytes:
        address, body = urlsplit(self.url), json.dumps(self.body).encode()
        headers = {"Host": address.netloc, "Content-Type": "application/json", "Content-Length": len(body)}
        lines = [f"POST {address.path}?{address.query} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in {**headers, **self.headers}.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def check(self, status: int, answer: bytes) -> None:
        """Ends the process at the first answer that is not what it must be."""
        if status == 200 and self.expect.items() <= json.loads(answer).items():
            return
        raise SystemExit(f"HTTP {status}: {answer[:500].decode(errors='replace')}")


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._body = bytearray()
        self._parser = httptools.HttpResponseParser(self)

    async def post(self, request: bytes) -> tuple[int, bytes]:
        """Status and body; status 0 where the server hung up."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's derives from no class of asyncio

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        status, body = self._parser.get_status_code(), bytes(self._body)
        self._body.clear()
        self._parser = httptools.HttpResponseParser(self)
        self._answered(status, body)

    def connection_lost(self, error: Exception | None) -> None:
        self._answered(0, f"the server hung up: {error}".encode())

    def _answered(self, status: int, body: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))


async def connect(load: Load) -> Connection:
    address = urlsplit(load.url)
    assert address.hostname is not None
    assert address.port is not None
    return (await asyncio.get_running_loop().create_connection(Connection, address.hostname, address.port))[1]


async def run(load: Load) -> None:
    request = load.request()
    spans: list[float] = []
    remaining = iter(range(load.requests))
    connections = [await connect(load) for _ in range(load.connections)]

    async def loop(connection: Connection) -> None:
        for _ in remaining:
            start = time.perf_counter()
            load.check(*await connection.post(request))
            spans.append(time.perf_counter() - start)

    for connection in connections:  # warm, and so is what is behind them
        load.check(*await connection.post(request))
    watch = Stopwatch(load.processes)
    await asyncio.gather(*map(loop, connections))
    tell(watch.stop(CLIENTS, load.requests, spans))


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(run(Load.given()))

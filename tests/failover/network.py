"""A network between processes of one machine that can be cut: every address is a forwarder's, which knows who calls.

The forwarders are a process of their own, so that no load in the test's process delays what members tell each other.
"""

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

HOST = "127.0.0.1"
CLIENTS = "clients"
ROOT = Path(__file__).parents[2]


class Network:
    """A cut is what a lost cable is: nothing arrives, nothing is refused, no connection ends, and what was sent
    meanwhile arrives after the cable is back. Whoever is not named by ``is_process`` is one of CLIENTS."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.failover.network"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def address(self, name: str, port: int) -> int:
        """The port that leads to ``name``, which listens on ``port``."""
        return int(self._ask("address", name, port))

    def is_process(self, name: str, pid: int) -> None:
        """From now on connections of the process ``pid`` are those of ``name``."""
        self._ask("is_process", name, pid)

    def cut(self, one: str, other: str) -> None:
        self._ask("cut", one, other)

    def mend(self) -> None:
        """Everybody reaches everybody again."""
        self._ask("mend")

    def close(self) -> None:
        """Ends the process, and every connection with it."""
        self._process.communicate()

    def _ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Forwarders:
    """The other side of Network."""

    def __init__(self) -> None:
        self._links: defaultdict[frozenset[str], asyncio.Event] = defaultdict(_connected)
        self._pids: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def answer(self, question: str, *arguments: Any) -> Any:
        match question:
            case "address":
                return await self._address(*arguments)
            case "is_process":
                name, self._pids[name] = arguments
            case "cut":
                self._links[frozenset(arguments)].clear()
            case "mend":
                for link in self._links.values():
                    link.set()
        return None

    async def _address(self, target: str, port: int) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._forward(target, port, reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        server = await asyncio.start_server(accept, HOST, 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _forward(
        self, target: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        caller = self._caller(writer.get_extra_info("peername")[1])
        link = self._links[frozenset((caller, target))]
        writers, pumps = [writer], list[asyncio.Future[None]]()
        # Nobody may listen there: then the caller is hung up on.
        with suppress(OSError):
            await link.wait()
            inner_reader, inner_writer = await asyncio.open_connection(HOST, port)
            writers.append(inner_writer)
            both = [_pump(reader, inner_writer, link), _pump(inner_reader, writer, link)]
            pumps += map(asyncio.ensure_future, both)
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for each in writers:
            each.transport.abort()

    def _caller(self, port: int) -> str:
        """Who has the local port that a connection comes from."""
        for name, pid in self._pids.items():
            with suppress(psutil.NoSuchProcess):
                if any(socket.laddr.port == port for socket in psutil.Process(pid).net_connections("tcp4")):
                    return name
        return CLIENTS


def _connected() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: asyncio.Event) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            await link.wait()
            writer.write(data)
            await writer.drain()
    await link.wait()


async def _serve() -> None:
    forwarders = Forwarders()
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await forwarders.answer(*json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())

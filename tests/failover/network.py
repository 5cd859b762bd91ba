"""A network between processes of one machine that can be cut: every address is a forwarder's, which knows who calls."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

HOST = "127.0.0.1"
Identify = Callable[[int], str]


class Network:
    """Forwards TCP connections to named targets, each on an address of its own.

    A cut is what a lost cable is: nothing arrives, nothing is refused, no connection ends, and what was sent meanwhile
    arrives after the cable is back. ``identify``: who has the local port that a connection comes from.
    """

    def __init__(self, identify: Identify) -> None:
        self._identify = identify
        self._links: defaultdict[frozenset[str], asyncio.Event] = defaultdict(_connected)
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def address(self, target: str, port: int) -> int:
        """The port that leads to ``target``, which listens on ``port``."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._forward(target, port, reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        server = await asyncio.start_server(accept, HOST, 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def cut(self, one: str, other: str) -> None:
        self._links[frozenset((one, other))].clear()

    def mend(self) -> None:
        """Everybody reaches everybody again."""
        for link in self._links.values():
            link.set()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()

    async def _forward(
        self, target: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        caller = self._identify(writer.get_extra_info("peername")[1])
        link = self._links[frozenset((caller, target))]
        writers = [writer]
        try:
            await link.wait()
            inner_reader, inner_writer = await asyncio.open_connection(HOST, port)
            writers.append(inner_writer)
            both = [_pump(reader, inner_writer, link), _pump(inner_reader, writer, link)]
            await asyncio.wait(map(asyncio.ensure_future, both), return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # nobody listens: the caller is hung up on
        finally:
            for each in writers:
                each.transport.abort()


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

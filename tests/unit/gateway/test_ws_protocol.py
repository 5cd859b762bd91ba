"""What clients cost who would have a WebSocket hold much for them: on real sockets, and on a wire of our own."""

import asyncio
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from pymongo.asynchronous.database import AsyncDatabase
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from config import Settings
from gateway.websocket import jobs as ws_jobs
from gateway.websocket.protocol import MOST_FRAGMENTS, BoundedProtocol
from tests.conditions import eventually
from tests.deployments import Served, listening, make_settings

HANDSHAKE = (
    b"GET /ws/jobs HTTP/1.1\r\nHost: roundhouse\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
# As long as pings may be, masked with zeros, and what it is answered.
PING = b"\x89\xfd\0\0\0\0" + b"x" * 125
PONG = b"\x8a\x7d" + b"x" * 125
EMPTY_FRAGMENT = b"\x00\x80\0\0\0\0"
# Bytes that a client may send and that neither side's kernel keeps.
MORE_THAN_FITS = 64 * 2**20
# Bytes: uvloop reads so many at once, and so many may wait before the transport wants no more of them.
ONE_READ, HIGH_WATER = 256_000, 64 * 2**10


@pytest.fixture
def settings(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Settings:
    return make_settings(tmp_path, mongod_uri, database.name)


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_who_pings_and_never_reads_is_not_read_either_until_he_does(
    new_loop: Callable[[], asyncio.AbstractEventLoop], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ws_jobs, "AUTH_TIME", 600.0)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_ping_without_reading(settings))


async def _ping_without_reading(settings: Settings) -> None:
    async with listening(settings) as gateway, raw_connection(gateway) as client:
        flood = Flood(client)
        flooding = asyncio.create_task(flood.run())
        [protocol] = protocols(gateway)

        async def blocked() -> bool:
            return not protocol.transport.is_reading() and not select.select([], [client], [], 0)[1]

        await eventually(blocked)
        assert flood.sent < MORE_THAN_FITS
        assert HIGH_WATER < protocol.transport.get_write_buffer_size() < HIGH_WATER + ONE_READ
        # As soon as he reads he is read, too: no ping of his has been lost.
        flood.enough = True
        async with asyncio.timeout(60):
            answers = 0
            while not flooding.done() or answers < flood.sent // len(PING) * len(PONG):
                answers += len(await asyncio.get_running_loop().sock_recv(client, 2**20))
            await flooding
        assert answers == flood.sent // len(PING) * len(PONG)


class Flood:
    """Pings without an end."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self.sent = 0
        self.enough = False

    async def run(self) -> None:
        many = PING * 100
        while not self.enough and self.sent < MORE_THAN_FITS:
            await asyncio.get_running_loop().sock_sendall(self._client, many)
            self.sent += len(many)


@asynccontextmanager
async def raw_connection(gateway: Served) -> AsyncIterator[socket.socket]:
    """A WebSocket that stands, of a client who has not said who he is, and whose kernel takes little for him."""
    loop, host = asyncio.get_running_loop(), gateway.http.base_url
    with socket.socket() as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        await loop.sock_connect(client, (host.host, host.port))
        await loop.sock_sendall(client, HANDSHAKE)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await loop.sock_recv(client, 1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        yield client


def protocols(gateway: Served) -> list[BoundedProtocol]:
    return [held for held in gateway.server.server_state.connections if isinstance(held, BoundedProtocol)]


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_who_asks_for_a_websocket_while_he_is_still_to_be_answered_gets_none(
    new_loop: Callable[[], asyncio.AbstractEventLoop], settings: Settings
) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_ask_for_both_at_once(settings))


async def _ask_for_both_at_once(settings: Settings) -> None:
    """All that was asked for would be written, whatever is taken of it: the transport tells one protocol to pause, and
    the answers are another's."""
    request = b"GET /nothing HTTP/1.1\r\nHost: roundhouse\r\n\r\n"
    async with listening(settings) as gateway:
        # One after the other is as it should be.
        assert (await answers_to(gateway, request, HANDSHAKE))[1].startswith(b"HTTP/1.1 101 ")
        assert await answers_to(gateway, request + HANDSHAKE) == [b""]


async def answers_to(gateway: Served, *texts: bytes) -> list[bytes]:
    """What comes on one connection to each of the ``texts``, which are sent one after the other."""
    loop, host = asyncio.get_running_loop(), gateway.http.base_url
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, (host.host, host.port))
        answers = []
        for text in texts:
            await loop.sock_sendall(client, text)
            answers.append(await loop.sock_recv(client, 2**16))
        return answers


async def test_a_message_comes_in_so_many_fragments_at_most(settings: Settings) -> None:
    async with listening(settings) as gateway:
        url = f"ws://{gateway.http.base_url.host}:{gateway.http.base_url.port}/ws/jobs"
        # The client ends a message with one more, an empty one.
        assert await closing_code(url, ['{"type": "ping"}', *[""] * (MOST_FRAGMENTS - 2)]) == 4401
        assert await closing_code(url, [""] * MOST_FRAGMENTS) == 1009
        assert await closing_code(url, ["x"] * MOST_FRAGMENTS * 10) == 1009


async def closing_code(url: str, fragments: list[str]) -> int:
    async with connect(url) as client:
        with suppress(ConnectionClosed):  # before all was sent: what for is told once more
            await client.send(fragments)
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


class Wire(asyncio.Transport):
    """A transport that leads nowhere, and of which ``unsent`` bytes wait to be taken."""

    def __init__(self, unsent: int = 0) -> None:
        super().__init__()
        self.unsent = unsent
        self.reading = True
        self.closing = self.aborted = False
        self.written = b""

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_protocol(self) -> asyncio.BaseProtocol:
        return asyncio.Protocol()

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True


async def nothing(_scope: Any, _receive: Any, _send: Any) -> None:
    """The application."""


def on(wire: Wire) -> BoundedProtocol:
    config = uvicorn.Config(nothing, ws=BoundedProtocol, log_config=None)
    config.load()
    protocol = BoundedProtocol(config, ServerState(), {})
    protocol.connection_made(wire)
    return protocol


async def fragmented(wire: Wire, fragments: int) -> BoundedProtocol:
    """A connection on which a message of so many fragments has come, and not its end."""
    protocol = on(wire)
    protocol.data_received(HANDSHAKE)
    await protocol.send({"type": "websocket.accept"})
    wire.written = b""
    protocol.data_received(b"\x01" + EMPTY_FRAGMENT[1:] + EMPTY_FRAGMENT * (fragments - 1))
    return protocol


async def test_reading_goes_on_together_with_writing() -> None:
    protocol = on(wire := Wire())
    protocol.pause_writing()
    assert not wire.reading
    protocol.resume_writing()
    assert wire.reading


async def test_reading_does_not_go_on_as_long_as_a_message_waits_to_be_taken() -> None:
    protocol = on(wire := Wire())
    protocol.frames = [b"message"]
    protocol.send_receive_event_to_app()
    assert not wire.reading
    protocol.pause_writing()
    protocol.resume_writing()
    assert not wire.reading
    await protocol.receive()
    assert wire.reading


async def test_reading_does_not_go_on_for_a_message_that_is_taken_while_nothing_can_be_written() -> None:
    protocol = on(wire := Wire())
    protocol.frames = [b"message"]
    protocol.send_receive_event_to_app()
    protocol.pause_writing()
    await protocol.receive()
    assert not wire.reading
    protocol.resume_writing()
    assert wire.reading


async def test_reading_that_somebody_else_has_resumed_ends_with_what_comes_next() -> None:
    """As uvicorn does when it has closed."""
    protocol = on(wire := Wire())
    protocol.pause_writing()
    wire.resume_reading()
    protocol.data_received(b"")
    assert not wire.reading


async def test_who_has_not_taken_an_earlier_answer_gets_no_websocket() -> None:
    on(wire := Wire(unsent=1))
    assert wire.aborted
    on(taken := Wire())
    assert not taken.closing


async def test_a_connection_fails_once_for_too_many_fragments() -> None:
    wire = Wire()
    protocol = await fragmented(wire, MOST_FRAGMENTS)
    assert (len(protocol.frames), wire.written) == (MOST_FRAGMENTS, b"")
    protocol.data_received(EMPTY_FRAGMENT * 3)
    assert wire.closing
    assert len(protocol.frames) == MOST_FRAGMENTS
    assert wire.written[:1] + wire.written[2:4] == b"\x88" + (1009).to_bytes(2, "big")
    assert wire.written[2:].count((1009).to_bytes(2, "big")) == 1


async def test_who_sends_on_a_connection_that_has_failed_is_told_that_nobody_is_there() -> None:
    """Not that he has closed it himself: the application cannot know of it yet."""
    protocol = await fragmented(Wire(), MOST_FRAGMENTS + 1)
    with pytest.raises(ClientDisconnected):
        await protocol.send({"type": "websocket.send", "text": "hello"})


async def test_uvicorn_is_as_the_protocol_takes_it_to_be() -> None:
    """None of this is promised: where it fails, read gateway/websocket/protocol.py beside the new uvicorn."""
    own = [name for name in vars(BoundedProtocol) if not name.startswith("_")]
    assert [name for name in own if not callable(getattr(WebSocketsSansIOProtocol, name, None))] == []
    config = uvicorn.Config(nothing, ws="websockets-sansio", log_config=None)
    config.load()
    protocol = WebSocketsSansIOProtocol(config, ServerState(), {})
    protocol.connection_made(wire := Wire())
    assert (protocol.frames, protocol.read_paused, protocol.disconnected) == ([], False, False)
    protocol.pause_writing()
    assert (protocol.writable.is_set(), wire.reading) == (False, True)
    protocol.resume_writing()
    assert protocol.writable.is_set()
    protocol.frames = [b"message"]
    protocol.send_receive_event_to_app()
    assert (protocol.frames, protocol.read_paused, wire.reading) == ([], True, False)
    await protocol.receive()
    assert (protocol.read_paused, wire.reading) == (False, True)

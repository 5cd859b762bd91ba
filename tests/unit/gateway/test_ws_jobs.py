"""What a connection on ``/ws/jobs`` makes of a client who has gone away."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from broker.feed import Ending
from gateway.websocket.jobs import Connection


class Stopping:
    """The feed of a gateway that is about to stop, and nothing else of it."""

    def __init__(self) -> None:
        self.context: Any = SimpleNamespace(broker=SimpleNamespace(feed=self))

    @contextmanager
    def watch(self, _: ObjectId) -> Iterator[Ending]:
        ending = Ending()
        ending.event.set()
        yield ending


class Gone:
    """A client who has been accepted, and has gone before anything was sent. ``sent``: what was tried."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.websocket = WebSocket({"type": "websocket"}, self._receive, self._send)

    async def _receive(self) -> Message:
        if self.sent:
            await asyncio.Event().wait()
        return {"type": "websocket.connect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] != "websocket.accept":
            raise OSError("gone")


async def test_all_who_send_hear_that_the_client_has_gone_not_only_the_first() -> None:
    """Starlette tells the first one so, and the others that they send after a close, as if the fault were ours."""
    gone = Gone()
    connection = await failed(gone)
    for _ in range(2):
        with pytest.raises(WebSocketDisconnect):
            await connection.say(lambda: "hello")
    assert [message["type"] for message in gone.sent] == ["websocket.accept", "websocket.send"]


async def failed(gone: Gone) -> Connection:
    """A connection on which something could not be sent."""
    await gone.websocket.accept()
    connection = Connection(gone.websocket, Stopping().context, None)
    with pytest.raises(WebSocketDisconnect):
        await connection.say(lambda: "hello")
    return connection


async def test_a_connection_that_the_client_has_left_is_not_closed_once_more() -> None:
    gone = Gone()
    connection = await failed(gone)
    await connection.run()
    assert [message["type"] for message in gone.sent] == ["websocket.accept", "websocket.send"]

"""A server that is told things, and does with them what a test wants."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks import Webhook

from broker.cancellation import cancel_all

Reply = tuple[int, Mapping[str, str], bytes]


@dataclass(frozen=True, slots=True)
class Message:
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """What it says, if the signature is right. Raises WebhookVerificationError."""
        return Webhook(secret).verify(self.body, dict(self.headers))


async def _content(_: Message) -> Reply:
    return 204, {}, b""


@dataclass
class Receiver:
    """``reply`` answers each message; ``messages``: all that have come, answered or not."""

    port: int = 0
    reply: Callable[[Message], Awaitable[Reply]] = _content
    messages: list[Message] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Nobody is there any more; ``open`` takes the same port again."""
        if self._server is not None:
            self._server.close()
        await cancel_all(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._answer(reader, writer)
        except asyncio.CancelledError:
            """The receiver is closed. The stream protocol would tell of a task that was cancelled."""
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = [line.split(":", 1) for line in head[1:] if ":" in line]
            headers = {name.strip().lower(): value.strip() for name, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            message = Message(head[0].split(" ")[1], headers, body)
            self.messages.append(message)
            status, extra, answer = await self.reply(message)
            sent = {"Content-Length": str(len(answer)), "Connection": "close", **extra}
            lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
            writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + answer)
            await writer.drain()


@asynccontextmanager
async def receiver(reply: Callable[[Message], Awaitable[Reply]] = _content) -> AsyncIterator[Receiver]:
    made = Receiver(reply=reply)
    await made.open()
    try:
        yield made
    finally:
        await made.close()

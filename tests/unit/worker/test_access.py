"""What becomes of requests to servers that break the rules of HTTP, or of the network."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.errors import EngineError, UpstreamBusy, UpstreamTimeout, UpstreamUnreachable
from worker.engines.access import Access, Server
from worker.engines.upstream import Upstream

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WORD = b"9\r\ndata: x\n\n\r\n"


@asynccontextmanager
async def server_that(does: Handler, **access: object) -> AsyncIterator[Server]:
    """It reads the head of a request before it does anything; its connection stays open until the end."""
    gone, served = asyncio.Event(), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        await reader.readuntil(b"\r\n\r\n")
        await does(reader, writer)
        await gone.wait()
        writer.transport.abort()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    server = Server("The server", url, Access(**{"connect": 1.0, "silence": 1.0, **access}))  # type: ignore[arg-type]
    try:
        yield server
    finally:
        await server.close()
        gone.set()
        listener.close()
        await asyncio.gather(*served)


async def asked(server: Server, body: bytes = b"{}") -> bytes:
    async with asyncio.timeout(5), server.exchange("POST", "chat/completions", body) as response:
        return await response.read()


def says(*pieces: bytes) -> Handler:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.02)

    return say


@pytest.mark.parametrize("before", [(), (WORD,)], ids=["at once", "in mid-answer"])
async def test_an_answer_that_goes_on_as_none_is_broken(before: tuple[bytes, ...]) -> None:
    async with server_that(says(HEAD, *before, b"HTTP/1.1 502 Bad Gateway\r\n\r\n"), silence=60.0) as server:
        with pytest.raises(UpstreamUnreachable) as failure:
            await asked(server)
    assert failure.value.reached


async def test_a_server_that_is_closed_in_mid_answer_ends_it() -> None:
    async with server_that(says(HEAD, WORD), silence=60.0) as server:
        reading = asyncio.create_task(asked(server))
        await asyncio.wait({reading}, timeout=0.2)
        assert not reading.done()
        await server.close()
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            await reading


async def test_a_server_that_takes_no_body_is_not_waited_for() -> None:
    async with server_that(says(), connect=0.2, silence=0.2) as server:
        with pytest.raises(UpstreamTimeout, match="silent"):
            await asked(server, b"x" * 30_000_000)


async def test_a_server_that_falls_silent_is_not_waited_for() -> None:
    async with server_that(says(HEAD, WORD), silence=0.2) as server:
        with pytest.raises(UpstreamTimeout, match="silent"):
            await asked(server)


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: " + b"x" * 10_000 + b"\r\n\r\n"])
async def test_no_message_has_what_is_in_the_query(answer: bytes) -> None:
    async with server_that(says(answer), query={"key": "s3cret"}) as server:
        with pytest.raises(EngineError) as failure:
            await asked(server)
    assert failure.value.message.startswith("The server: what it answers cannot be read")
    assert "s3cret" not in failure.value.message


VERSION = {"api-version": "2024-10-21"}


async def test_what_is_no_key_may_be_told() -> None:
    access = Access(1.0, headers={"X-Team": "ocr", "Authorization": "Basic aHVudGVyMg=="}, query=VERSION)
    told = Server("The server", "http://127.0.0.1:9/v1", access).redacted("The ocr of 2024-10-21 has no aHVudGVyMg==.")
    assert told == "The ocr of 2024-10-21 has no ***."


async def test_certificates_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "none.pem"
    missing.write_text("junk")
    monkeypatch.setenv("SSL_CERT_FILE", str(missing))
    server = Server("The server", "https://127.0.0.1:9/v1", Access(1.0))
    with pytest.raises(UpstreamUnreachable, match="SSL_CERT_FILE") as failure:
        await asked(server)
    assert not failure.value.reached


@pytest.mark.parametrize(
    ("coding", "body", "told"),
    [
        ("identity", b"", "answered 500: \ufffd"),
        ("gzip", gzip.compress(b"a" * 30_000_000), "answered 500: aaa"),
        ("identity", b"[" * 60_000, "answered 500: [[["),
    ],
    ids=["half a character", "a bomb", "deep"],
)
async def test_what_is_told_of_an_error_is_short_and_can_be_stored(coding: str, body: bytes, told: str) -> None:
    head = b"HTTP/1.1 500 \xff\xfe\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (coding.encode(), len(body))
    async with server_that(says(head + body)) as server:
        with pytest.raises(UpstreamBusy) as raised:
            await Upstream(server).models()
    raised.value.message.encode()
    assert told in raised.value.message
    assert len(raised.value.message) < 1200

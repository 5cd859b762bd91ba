"""Server-sent events, by way of ASGI itself."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

import pytest
from pymongo.errors import AutoReconnect
from starlette.requests import Request

from gateway import sse
from gateway.problems import Problem
from gateway.sse import EventStream, unless_gone

DISCONNECT = {"type": "http.disconnect"}


class Peer:
    """A client, as ASGI shows it. ``reads``: while it is not set, what is sent is not taken."""

    scope: ClassVar[dict[str, Any]] = {"type": "http", "method": "GET", "path": "/", "headers": []}

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.sent: list[dict[str, Any]] = []
        self.got = asyncio.Condition()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return DISCONNECT

    async def send(self, message: Any) -> None:
        async with self.got:
            self.sent.append(message)
            self.got.notify_all()
        await self.reads.wait()

    async def has(self, count: int) -> None:
        """Returns once so many messages were sent."""
        async with asyncio.timeout(10), self.got:
            await self.got.wait_for(lambda: len(self.sent) >= count)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Source:
    """Events in the test's hand. ``taken``: so many were asked for; ``closed``: it was let go."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.taken = 0
        self.closed = False

    def put(self, *events: bytes | Exception | None) -> "Source":
        for event in events:
            self.queue.put_nowait(event)
        return self

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            while (event := await self.queue.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                self.taken += 1
                yield event
        finally:
            self.closed = True


class Stage:
    def __init__(self) -> None:
        self.peer, self.source, self.left = Peer(), Source(), 0

    async def respond(self) -> None:
        async def on_gone() -> None:
            self.left += 1

        stream = EventStream(self.source.events(), on_gone=on_gone, failed=_failed, headers={"x-request-id": "7"})
        async with asyncio.timeout(10):
            await stream(self.peer.scope, self.peer.receive, self.peer.send)


def _failed(problem: Problem) -> bytes:
    return f"data: {problem.code}\n\n".encode()


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_events_are_sent_as_they_come_and_the_answer_is_ended(stage: Stage) -> None:
    stage.source.put(b"one")
    responding = asyncio.create_task(stage.respond())
    await stage.peer.has(2)
    head, first = stage.peer.sent
    headers = dict(head["headers"])
    assert head["status"] == 200
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-request-id"] == b"7"
    assert b"content-length" not in headers
    assert (first["body"], first["more_body"]) == (b"one", True)
    stage.source.put(b"two", None)
    await responding
    assert stage.peer.body == b"onetwo"
    assert [message["more_body"] for message in stage.peer.sent[1:]] == [True, True, False]
    assert (stage.left, stage.source.closed) == (0, True)


async def test_what_fails_before_the_head_is_answered_as_any_other_problem(stage: Stage) -> None:
    stage.source.put(Problem("stream_expired", "Gone."))
    with pytest.raises(Problem):
        await stage.respond()
    assert stage.peer.sent == []
    assert (stage.left, stage.source.closed) == (0, True)


async def test_what_fails_later_is_the_last_event(stage: Stage) -> None:
    stage.source.put(b"one", Problem("stream_expired", "Gone."))
    await stage.respond()
    assert stage.peer.body == b"onedata: stream_expired\n\n"
    assert stage.peer.sent[-1]["more_body"] is False
    assert stage.left == 0


async def test_the_head_does_not_wait_for_a_first_event_for_long(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HOLD", 0.01)
    responding = asyncio.create_task(stage.respond())
    await stage.peer.has(1)
    assert stage.source.taken == 0
    stage.source.put(Problem("stream_expired", "Gone."))
    await responding
    assert stage.peer.body == b"data: stream_expired\n\n"


async def test_a_client_who_goes_away_is_noticed_while_nothing_comes(stage: Stage) -> None:
    stage.source.put(b"one")
    responding = asyncio.create_task(stage.respond())
    await stage.peer.has(2)
    stage.peer.gone.set()
    await responding
    assert (stage.left, stage.source.closed) == (1, True)


async def test_a_client_who_goes_away_before_the_head_is_noticed(stage: Stage) -> None:
    responding = asyncio.create_task(stage.respond())
    stage.peer.gone.set()
    await responding
    assert (stage.left, stage.source.closed, stage.peer.sent) == (1, True, [])


async def test_a_client_who_goes_away_while_he_does_not_read_is_noticed(stage: Stage) -> None:
    stage.peer.reads.clear()
    stage.source.put(b"one", b"two")
    responding = asyncio.create_task(stage.respond())
    await stage.peer.has(1)
    stage.peer.gone.set()
    await responding
    assert (stage.left, stage.source.closed) == (1, True)


async def test_for_a_slow_reader_no_more_than_one_event_is_taken(stage: Stage) -> None:
    stage.source.put(*(str(number).encode() for number in range(100)), None)
    stage.peer.reads.clear()
    responding = asyncio.create_task(stage.respond())
    await stage.peer.has(1)
    for _ in range(100):
        await asyncio.sleep(0)
    assert stage.source.taken == 1
    stage.peer.reads.set()
    await responding
    assert stage.source.taken == 100


async def test_who_goes_away_after_the_last_event_has_left_nothing(stage: Stage) -> None:
    stage.source.put(b"one", None)
    await stage.respond()
    stage.peer.gone.set()
    assert stage.left == 0


async def test_a_server_that_stops_ends_the_stream_and_nobody_has_left(stage: Stage) -> None:
    stage.source.put(b"one")
    responding = asyncio.create_task(stage.respond())
    await stage.peer.has(2)
    responding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await responding
    assert (stage.left, stage.source.closed) == (0, True)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyError("ours"), "internal_error"), (AutoReconnect("no primary"), "database_unavailable")]
)
async def test_whatever_fails_is_told_and_logged(
    stage: Stage, error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage.source.put(b"one", error)
    await stage.respond()
    assert stage.peer.body == f"onedata: {code}\n\n".encode()
    assert stage.peer.sent[-1]["more_body"] is False
    assert "ours" in caplog.text or "no primary" in caplog.text
    assert (stage.left, stage.source.closed) == (0, True)


async def test_an_error_of_our_own_before_the_head_is_not_hidden(stage: Stage) -> None:
    stage.source.put(KeyError("ours"))
    with pytest.raises(KeyError):
        await stage.respond()
    assert (stage.peer.sent, stage.left, stage.source.closed) == ([], 0, True)


async def test_a_connection_that_breaks_is_no_error_of_the_events(stage: Stage) -> None:
    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("broken")

    stage.source.put(b"one")
    stage.peer.send = send  # type: ignore[method-assign]
    with pytest.raises(OSError, match="broken"):
        await stage.respond()
    assert stage.source.closed


def _request(peer: Peer) -> Request:
    return Request(peer.scope, peer.receive)


async def test_work_is_done_unless_the_client_goes_away() -> None:
    peer, done = Peer(), asyncio.Event()
    asyncio.get_running_loop().call_soon(done.set)
    assert await unless_gone(_request(peer), done.wait())


async def test_work_is_cancelled_when_the_client_goes_away() -> None:
    peer, cancelled = Peer(), False

    async def work() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    asyncio.get_running_loop().call_later(0.01, peer.gone.set)
    assert not await unless_gone(_request(peer), work())
    assert cancelled


async def test_what_the_work_raises_is_raised() -> None:
    async def fail() -> None:
        raise Problem("stream_expired", "Gone.")

    with pytest.raises(Problem):
        await unless_gone(_request(Peer()), fail())

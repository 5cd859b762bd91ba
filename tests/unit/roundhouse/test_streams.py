"""Streams that break, against a gateway that does so on command."""

import gzip
import random
from collections.abc import AsyncIterator

import httpx
import pytest

from roundhouse import (
    End,
    JobFailed,
    Piece,
    Reasoning,
    Restart,
    RoundhouseApiError,
    StreamRestarted,
    Text,
    ToolCallPiece,
    Unreachable,
    Usage,
    retry,
)
from tests.unit.roundhouse.fake import (
    CHAT,
    JOB,
    TOKEN,
    URLS,
    Bytes,
    Gateway,
    Script,
    async_client,
    chunk,
    client,
    event,
    openai_problem,
    problem,
    stream_of,
)

TEXTS = ("Wagen", " rollt", " é漢🚂", "\n\n", "data: x")
EVENTS = stream_of(*TEXTS)
WHOLE: list[Piece] = [*(Text(text) for text in TEXTS), End("stop", Usage(1, 3, 4))]
SIZE = len(b":\n".join([b"", *EVENTS]))
BROKEN = httpx.ReadError("connection reset")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.0)


def told(gateway: httpx.MockTransport, **options: object) -> list[Piece]:
    with client(gateway, **options) as api:
        return list(api.stream("m", "hello"))


async def told_async(gateway: httpx.MockTransport, **options: object) -> list[Piece]:
    async with async_client(gateway, **options) as api:
        return [piece async for piece in api.stream("m", "hello")]


@pytest.mark.parametrize("error", [BROKEN, None], ids=["reset", "ended"])
async def test_a_stream_that_breaks_at_any_byte_is_told_as_if_it_had_not(error: Exception | None) -> None:
    gateway = Gateway(EVENTS, [], error)
    with client(gateway) as api:
        async with async_client(gateway) as other:
            for place in range(SIZE):
                gateway.breaks.append(place)
                assert list(api.stream("m", "hello")) == WHOLE, place
                gateway.breaks.append(place)
                assert [piece async for piece in other.stream("m", "hello")] == WHOLE, place
    assert len(gateway.asked) == 4 * SIZE


async def test_a_stream_that_breaks_again_and_again_is_told_whole() -> None:
    chance = random.Random(6)
    for _ in range(50):
        breaks = [chance.randrange(SIZE) for _ in range(chance.randrange(2, 12))]
        assert told(Gateway(EVENTS, breaks, BROKEN)) == WHOLE, breaks
        assert await told_async(Gateway(EVENTS, breaks)) == WHOLE, breaks


async def test_a_stream_whose_job_a_proxy_does_not_let_through_goes_on_all_the_same() -> None:
    for place in range(0, SIZE, 50):
        gateway = Gateway(EVENTS, [place, SIZE - place], BROKEN)
        gateway.names_job = False
        assert told(gateway) == WHOLE, place
        assert {request.method for request in gateway.asked} == {"POST"}


async def test_a_stream_with_a_time_that_suffices_is_told_whole_also_when_it_is_compressed() -> None:
    def script() -> Script:
        packed = Bytes(gzip.compress(b"".join(EVENTS)))
        return Script(httpx.Response(200, headers={**SSE, "content-encoding": "gzip"}, stream=packed))

    with client(script()) as api:
        assert list(api.stream("m", "hello", timeout=60.0)) == WHOLE
    async with async_client(script()) as other:
        assert [piece async for piece in other.stream("m", "hello", timeout=60.0)] == WHOLE


def test_what_is_asked_again_is_the_same_request_until_the_job_is_known_and_then_the_rest() -> None:
    def head_only(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=SSE, stream=Bytes(b"", BROKEN))

    rest = httpx.Response(200, headers=SSE, stream=Bytes(b"".join(EVENTS)[: len(EVENTS[0]) + 5], BROKEN))
    end = httpx.Response(200, headers=SSE, stream=Bytes(b"".join(EVENTS[1:])))
    gateway = Script(httpx.ConnectError("refused"), httpx.ReadError("reset"), head_only, rest, end)
    assert told(gateway) == WHOLE
    first, second, third, fourth, fifth = gateway.asked
    keys = {request.headers["idempotency-key"] for request in (first, second, third)}
    assert len(keys) == 1
    assert first.content == second.content == third.content
    assert [request.method for request in (third, fourth, fifth)] == ["POST", "GET", "GET"]
    assert "last-event-id" not in fourth.headers
    assert fifth.headers["last-event-id"] == f"{TOKEN}-1"
    assert str(fifth.url) == f"{URLS[0]}{CHAT}/{JOB}?stream=true"


SSE = {"content-type": "text/event-stream", "x-request-id": JOB}


def sse(*events: bytes, error: Exception | None = None) -> httpx.Response:
    return httpx.Response(200, headers=SSE, stream=Bytes(b"".join(events), error))


def test_another_gateway_is_asked_at_once_where_one_is_gone() -> None:
    gateway = Script(sse(EVENTS[0], error=BROKEN), sse(*EVENTS[1:]))
    assert told(gateway, urls=URLS, patience=0.0) == WHOLE
    assert [f"{request.url.scheme}://{request.url.host}" for request in gateway.asked] == list(URLS)


def test_a_gateway_that_stops_is_no_end_of_the_answer() -> None:
    stopping = {"error": {"message": "This gateway stops; the job goes on.", "code": "gateway_stopping"}}
    gateway = Script(sse(*EVENTS[:2], event(None, stopping)), problem(503, "gateway_stopping"), sse(*EVENTS[2:]))
    assert told(gateway) == WHOLE
    assert gateway.asked[-1].headers["last-event-id"] == f"{TOKEN}-2"


@pytest.mark.parametrize("data", ["no JSON", "[]", '{"choices": [{}]}', '{"a": 1}'])
def test_an_event_that_no_gateway_sends_is_an_error_of_the_clients_own(data: str) -> None:
    pieces: list[Piece] = []
    with client(Script(sse(EVENTS[0], event(2, data)))) as api, pytest.raises(RoundhouseApiError) as raised:
        pieces.extend(api.stream("m", "hello"))
    assert (raised.value.code, raised.value.job_id) == ("bad_answer", JOB)
    assert pieces == WHOLE[:1]
    broken = sse(b"event: state\ndata: {\n\n")
    with client(Script(broken)) as api, pytest.raises(RoundhouseApiError, match="bad_answer"):
        list(api.events(JOB))


def test_patience_with_a_gateway_that_stays_away_has_an_end() -> None:
    gateway = Script(sse(*EVENTS[:2], error=BROKEN), *[httpx.ConnectError("refused")] * 3)
    pieces: list[Piece] = []
    with client(gateway, patience=0.0) as api, pytest.raises(Unreachable) as raised:
        pieces.extend(api.stream("m", "hello"))
    assert pieces == WHOLE[:2]
    assert raised.value.job_id == JOB


RESTARTED = {"error": {"message": "The answer is generated anew.", "code": "stream_restarted"}}


@pytest.mark.parametrize("late", [True, False], ids=["in the stream", "before it"])
async def test_two_samples_are_never_spliced(late: bool) -> None:
    def script() -> Script:
        begun = sse(*EVENTS[:2], event(None, RESTARTED)) if late else sse(*EVENTS[:2], error=BROKEN)
        refused = [] if late else [openai_problem(409, "stream_restarted")]
        return Script(begun, *refused, sse(*stream_of("Anew")))

    with pytest.raises(StreamRestarted) as raised:
        told(script())
    assert raised.value.job_id == JOB
    with client(again := script()) as api:
        pieces = list(api.stream("m", "hello", restarts=True))
    assert pieces == [*WHOLE[:2], Restart(), Text("Anew"), WHOLE[-1]]
    assert "last-event-id" not in again.asked[-1].headers
    async with async_client(script()) as other:
        assert [piece async for piece in other.stream("m", "hello", restarts=True)] == pieces


def test_a_job_that_fails_in_the_middle_says_why_and_is_not_asked_for_again() -> None:
    failed = {"error": {"message": "The engine died.", "code": "engine_died"}}
    with pytest.raises(JobFailed, match="The engine died") as raised:
        told(Script(sse(EVENTS[0], event(None, failed))))
    assert (raised.value.code, raised.value.job_id) == ("engine_died", JOB)


def test_a_refusal_that_is_not_to_be_repeated_is_not() -> None:
    refused = openai_problem(502, "engine_unavailable", **{"x-should-retry": "false", "x-request-id": JOB})
    with pytest.raises(JobFailed):
        told(Script(refused))


def test_tools_and_thoughts_come_in_pieces_too() -> None:
    calls = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "find", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x":'}},
    ]
    chunks = [chunk({"reasoning_content": "Hm."}), *(chunk({"tool_calls": [call]}) for call in calls)]
    chunks.append(chunk({}, ends="tool_calls"))
    events = [event(number, data) for number, data in enumerate([*chunks, "[DONE]"], 1)]
    assert told(Gateway(events, [300])) == [
        Reasoning("Hm."),
        ToolCallPiece(0, "", "c1", "find"),
        ToolCallPiece(0, '{"x":'),
        End("tool_calls", None),
    ]


def test_who_leaves_a_stream_cancels_its_job_and_who_reads_it_does_not() -> None:
    gateway = Script(sse(*EVENTS), httpx.Response(200, json={}))
    with client(gateway) as api, api.stream("m", "hello") as stream:
        assert next(stream) == WHOLE[0]
    assert [(request.method, request.url.path) for request in gateway.asked[1:]] == [("DELETE", f"/api/jobs/{JOB}")]
    gateway = Script(sse(*EVENTS))
    with client(gateway) as api, api.stream("m", "hello") as stream:
        assert list(stream) == WHOLE
    assert len(gateway.asked) == 1


class Noted(Bytes):
    """Knows whether it is open."""

    closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in super().__aiter__():
                yield piece
        finally:
            self.closed = True

    async def aclose(self) -> None:
        self.closed = True


async def test_a_stream_that_is_left_is_closed_before_its_job_is_cancelled() -> None:
    left = Noted(b"".join(EVENTS))

    def cancelled(request: httpx.Request) -> httpx.Response:
        assert (request.method, left.closed) == ("DELETE", True)
        return httpx.Response(200, json={})

    gateway = Script(httpx.Response(200, headers=SSE, stream=left), cancelled)
    async with async_client(gateway) as api, api.stream("m", "hello") as stream:
        assert await anext(stream) == WHOLE[0]
    assert len(gateway.asked) == 2


def test_a_stream_that_nobody_has_begun_asks_for_nothing() -> None:
    gateway = Script()
    with client(gateway) as api, api.stream("m", "hello"):
        pass
    assert gateway.asked == []


def test_a_job_is_cancelled_also_before_its_id_is_known() -> None:
    gateway = Script(httpx.ReadError("reset"), sse(*EVENTS), problem(409, "job_finished"))
    with client(gateway, patience=0.0) as api:
        stream = api.stream("m", "hello")
        with pytest.raises(Unreachable):
            next(stream)
        stream.cancel()
    first, second, third = gateway.asked
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert (third.method, third.url.path) == ("DELETE", f"/api/jobs/{JOB}")


def test_what_is_no_event_stream_is_trouble_and_not_an_answer() -> None:
    page = httpx.Response(200, headers={"content-type": "text/html", "x-request-id": JOB}, text="<p>Sign in</p>")
    with pytest.raises(RoundhouseApiError, match="text/event-stream"):
        told(Script(page), patience=0.0)


def test_the_news_of_a_job_go_on_after_the_last_that_came() -> None:
    news = [
        b'id: 1\nevent: state\ndata: {"status": "queued"}\n\n',
        b'id: 2\nevent: page\ndata: {"number": 1}\n\n',
        b'id: 3\nevent: end\ndata: {"status": "failed", "error": {"code": "x"}}\n\n',
    ]
    gateway = Script(sse(*news[:2]), sse(news[2]))
    with client(gateway) as api:
        names = [told.name for told in api.events(JOB)]
    assert names == ["state", "page", "end"]
    assert gateway.asked[1].headers["last-event-id"] == "2"
    with client(Script(httpx.Response(204))) as api:
        assert list(api.events(JOB)) == []

"""A gateway of a test: what it answers is said beforehand, and its connections break where the test wants."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from time import monotonic
from typing import Any

import httpx

from roundhouse import AsyncClient, Client

JOB = "69200000000000000000abcd"
TOKEN = "a" * 32
URLS = ("http://one", "http://two")
CHAT = "/v1/chat/completions"

Answer = httpx.Response | Exception


class Bytes(httpx.SyncByteStream, httpx.AsyncByteStream):
    """``data``, a few bytes at a time, and then an ``error``, if one is given, in place of an end."""

    def __init__(self, data: bytes, error: Exception | None = None, step: int = 7) -> None:
        self._pieces = [data[start : start + step] for start in range(0, len(data), step)]
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


class Beats(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Comments without end, as they keep a stream alive that has nothing to tell. Fails if nobody minds the clock."""

    closed = False

    def __iter__(self) -> Iterator[bytes]:
        enough = monotonic() + 10.0
        while monotonic() < enough:
            yield b":\n"
        raise AssertionError("nobody minded the clock")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            await asyncio.sleep(0)
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


class Script(httpx.MockTransport):
    """Gives ``answers`` in turn, and keeps what was asked."""

    def __init__(self, *answers: Answer | Callable[[httpx.Request], Answer]) -> None:
        super().__init__(self._answer)
        self.asked: list[httpx.Request] = []
        self._answers = list(answers)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self._answers.pop(0)
        answer = answer(request) if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def paths(self) -> list[str]:
        return [request.url.path for request in self.asked]


def client(transport: httpx.BaseTransport, **options: Any) -> Client:
    return Client(options.pop("urls", URLS[0]), **{"token": "t", **options}, transport=transport)


def async_client(transport: httpx.AsyncBaseTransport, **options: Any) -> AsyncClient:
    return AsyncClient(options.pop("urls", URLS[0]), **{"token": "t", **options}, transport=transport)


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"detail": f"It is {code}.", "code": code}, headers=headers)


def openai_problem(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": f"It is {code}.", "code": code}}, headers=headers)


def event(number: int | None, data: object) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = "" if number is None else f"id: {TOKEN}-{number}\n"
    return f"{head}data: {text}\n\n".encode()


def chunk(*deltas: dict[str, Any], ends: str | None = None) -> dict[str, Any]:
    choices = [{"index": index, "delta": delta, "finish_reason": ends} for index, delta in enumerate(deltas)]
    return {"id": f"chatcmpl-{JOB}", "choices": choices, "usage": None}


USAGE = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}


def stream_of(*texts: str) -> list[bytes]:
    """The events of an answer made of these texts."""
    chunks: list[Any] = [chunk({"role": "assistant", "content": text}) for text in texts]
    chunks += [chunk({}, ends="stop"), {"choices": [], "usage": USAGE}, "[DONE]"]
    return [event(number, data) for number, data in enumerate(chunks, 1)]


class Gateway(httpx.MockTransport):
    """Streams ``events``. Connection after connection breaks after as many bytes as ``breaks`` says, with ``error`` or,
    where that is None, as if all was well. Comments, which keep a connection alive, come between the events."""

    def __init__(self, events: Sequence[bytes], breaks: Sequence[int], error: Exception | None = None) -> None:
        super().__init__(self._answer)
        self.names_job = True
        self.events = events
        self.asked: list[httpx.Request] = []
        self.breaks = list(breaks)
        self._error = error

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        last = request.headers.get("last-event-id")
        if request.method != "POST":
            assert request.url.path == f"{CHAT}/{JOB}"
        told = 0 if last is None else int(last.removeprefix(f"{TOKEN}-"))
        data = b":\n".join([b"", *self.events[told:]])
        headers = {"content-type": "text/event-stream; charset=utf-8"}
        if self.names_job:
            headers["x-request-id"] = JOB
        if not self.breaks:
            return httpx.Response(200, headers=headers, stream=Bytes(data))
        return httpx.Response(200, headers=headers, stream=Bytes(data[: self.breaks.pop(0)], self._error))

"""Clients of OpenAI's chat API who note when each piece of an answer comes: each asks again when it has the answer.

On bare httptools, so that what is measured is the server and not the client.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import uvloop

from broker.parent import die_with_parent
from tests.benchmarks import upstream
from tests.benchmarks.work import LINE, Stopwatch


@dataclass(frozen=True, slots=True)
class Asking:
    """What the process is told, as JSON in its first argument.

    ``url``: up to /v1. ``seed``: of the questions. ``known``: the answers are those of ``tests.benchmarks.upstream``
    and are checked word by word. ``processes``: pids by name, whose CPU time is told.
    """

    url: str
    model: str
    seed: int
    clients: int
    questions: int
    """Of each client."""
    tokens: int
    """Of each answer."""
    stream: bool = True
    known: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)
    processes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def given(cls) -> "Asking":
        return cls(**json.loads(sys.argv[1]))

    def text(self) -> str:
        return json.dumps(asdict(self))

    def question(self, client: int, number: int) -> str:
        return f"What is the {number}th thing that client {client} has to ask in round {self.seed}?"

    def body(self, question: str) -> dict[str, Any]:
        """Greedy and of a set length, so that a real model, too, says about the same both ways."""
        messages = [{"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "max_tokens": self.tokens, "temperature": 0.0}
        return body | ({"stream": True} if self.stream else {}) | ({} if self.known else {"ignore_eos": True})


@dataclass(frozen=True, slots=True)
class Told:
    """``firsts``: ms from question to the first piece with text, or to the whole of an answer that is no stream;
    ``gaps``: ms from piece to piece; ``spans``: ms to the end. ``cpu``: µs per answer by process. ``foreign``: as in
    ``work.Figures``."""

    firsts: Sequence[float]
    gaps: Sequence[float]
    spans: Sequence[float]
    seconds: float
    cpu: Mapping[str, float]
    foreign: float


def heard(output: str) -> Told:
    """What such a process told."""
    (line,) = (line for line in output.splitlines() if line.startswith(LINE))
    return Told(**json.loads(line[len(LINE) :]))


class Conversation(asyncio.Protocol):
    """One connection that is kept: questions and answers in turns."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.body = bytearray()
        self.arrivals: list[tuple[float, int]] = []
        """When something came, and how much had come by then."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's derives from no class of asyncio

    async def ask(self, head: bytes, body: bytes) -> None:
        """Returns when the answer has ended."""
        assert self._transport is not None
        self._ended = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self.body.clear()
        self.arrivals = []
        self._transport.write(head % len(body) + body)
        await self._ended

    def data_received(self, data: bytes) -> None:
        now, before = time.perf_counter(), len(self.body)
        self._parser.feed_data(data)
        if len(self.body) > before:
            self.arrivals.append((now, len(self.body)))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(error or ConnectionError("the server has hung up"))

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """Its pieces with text, each with the time at which its last byte came."""

    pieces: Sequence[tuple[float, str]]

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces)


def streamed(conversation: Conversation) -> Answer:
    """The answer of a stream that has ended. Ends the process where it is none."""
    pieces, reason, place = [], None, 0
    arrivals = iter(conversation.arrivals)
    came, length = next(arrivals, (0.0, 0))
    for event in bytes(conversation.body).split(b"\n\n"):
        place += len(event) + 2
        while length < place and (following := next(arrivals, None)):
            came, length = following
        data = next((line[6:] for line in event.splitlines() if line.startswith(b"data: {")), None)
        for choice in json.loads(data).get("choices", ()) if data else ():
            reason = choice.get("finish_reason") or reason
            if text := (choice.get("delta") or {}).get("content"):
                pieces.append((came, text))
    if conversation.status != 200 or reason is None:
        raise SystemExit(f"HTTP {conversation.status}: {bytes(conversation.body[-500:])!r}")
    return Answer(pieces)


def plain(conversation: Conversation) -> Answer:
    """As ``streamed``, of an answer that came whole."""
    if conversation.status != 200:
        raise SystemExit(f"HTTP {conversation.status}: {bytes(conversation.body[:500])!r}")
    text = json.loads(conversation.body)["choices"][0]["message"]["content"]
    return Answer([(conversation.arrivals[-1][0], text)])


class Notes:
    """What all clients measure."""

    def __init__(self) -> None:
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.spans: list[float] = []

    def add(self, start: float, end: float, answer: Answer) -> None:
        times = [came for came, _ in answer.pieces]
        self.firsts.append(_ms(times[0] - start))
        self.gaps += [_ms(later - sooner) for sooner, later in pairwise(times)]
        self.spans.append(_ms(end - start))


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


class Client:
    """Asks its own questions, one after the other."""

    def __init__(self, asking: Asking, number: int) -> None:
        self._asking = asking
        self._number = number
        url = urlsplit(asking.url)
        self._address = url.hostname, url.port
        headers = {"Host": url.netloc, "Content-Type": "application/json", **asking.headers}
        lines = [f"POST {url.path}/chat/completions HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
        self._head = ("\r\n".join(lines) + "\r\nContent-Length: %d\r\n\r\n").encode()
        self._conversation: Conversation | None = None

    async def ask(self, number: int, notes: Notes) -> None:
        # Servers close what was idle for seconds, as connections are while others are still warming up.
        if self._conversation is None or self._conversation.closed:
            loop = asyncio.get_running_loop()
            _, self._conversation = await loop.create_connection(Conversation, *self._address)
        question = self._asking.question(self._number, number)
        body, start = json.dumps(self._asking.body(question)).encode(), time.perf_counter()
        await self._conversation.ask(self._head, body)
        end = time.perf_counter()
        answer = (streamed if self._asking.stream else plain)(self._conversation)
        if self._asking.known and answer.text != upstream.text(question, self._asking.tokens):
            raise SystemExit(f"{question} was answered with {answer.text[:200]!r}")
        notes.add(start, end, answer)

    async def ask_all(self, notes: Notes) -> None:
        for number in range(1, self._asking.questions + 1):
            await self.ask(number, notes)

    def close(self) -> None:
        if self._conversation is not None:
            self._conversation.close()


async def run(asking: Asking) -> Told:
    clients = [Client(asking, number) for number in range(asking.clients)]
    await asyncio.gather(*(client.ask(0, Notes()) for client in clients))  # to warm up
    notes = Notes()
    watch, start = Stopwatch(asking.processes), time.perf_counter()
    await asyncio.gather(*(client.ask_all(notes) for client in clients))
    seconds = time.perf_counter() - start
    figures = watch.stop("streams", asking.clients * asking.questions)
    for client in clients:
        client.close()
    cpu = {"client": figures.cpu["producer"], **figures.cpu}
    return Told(notes.firsts, notes.gaps, notes.spans, seconds, cpu, figures.foreign)


if __name__ == "__main__":
    die_with_parent()
    print(LINE + json.dumps(asdict(uvloop.run(run(Asking.given())))), flush=True)

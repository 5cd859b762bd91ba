"""Clients that each ask their next question as soon as they have the answer: straight to a server that speaks OpenAI's
chat API, or through ``POST /api/chat`` of Roundhouse. The questions are the same both ways.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import httpx
import uvloop

from broker.parent import die_with_parent
from tests.benchmarks import upstream
from tests.benchmarks.work import LINE, Stopwatch

STRAIGHT, SYSTEM = "straight", "through Roundhouse"
WAYS = (STRAIGHT, SYSTEM)
LEAST, MOST = 64, 128
"""Tokens of an answer."""
MEAN = (LEAST + MOST) / 2


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Asking:
    """What the process is told, as JSON in its first argument.

    ``url``: of the server, up to /v1, or of the gateway. ``seed``: of the questions. ``known``: the answers are those
    of ``tests.benchmarks.upstream`` and are checked word by word. ``processes``: pids by name, whose CPU time is told.
    """

    way: str
    url: str
    model: str
    seed: int
    questions: int
    """Of each client."""
    clients: int = 10
    known: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)
    processes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def given(cls) -> "Asking":
        return cls(**json.loads(sys.argv[1]))

    def text(self) -> str:
        return json.dumps(asdict(self))

    def of(self, client: int) -> list[Question]:
        """One client's questions, a first one to warm up included."""
        lengths = random.Random(f"{self.seed}/{client}")
        return [
            Question(f"What is the {number}th thing that client {client} has to ask?", lengths.randint(LEAST, MOST))
            for number in range(self.questions + 1)
        ]


@dataclass(frozen=True, slots=True)
class Answers:
    """``spans``: ms from question to whole answer, client by client. ``tokens``: of all answers. ``seconds``: from the
    first question to the last answer. ``cpu``: µs per answer by process. ``foreign``: as in ``Figures``."""

    spans: Sequence[float]
    tokens: int
    seconds: float
    cpu: Mapping[str, float]
    foreign: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def heard(output: str) -> Answers:
    """What such a process told."""
    (line,) = (line for line in output.splitlines() if line.startswith(LINE))
    return Answers(**json.loads(line[len(LINE) :]))


class Way(Protocol):
    async def ask(self, question: Question) -> tuple[str, int]:
        """The answer and its number of tokens. Ends the process where there is none."""


class Straight:
    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http = http
        self._model = model

    async def ask(self, question: Question) -> tuple[str, int]:
        body = {**_body(question), "model": self._model, "stream": True, "stream_options": {"include_usage": True}}
        pieces, tokens, reason = [], 0, None
        async with self._http.stream("POST", "/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise SystemExit(f"HTTP {response.status_code}: {(await response.aread())[:500]!r}")
            async for chunk in _chunks(response):
                if usage := chunk.get("usage"):
                    tokens = usage["completion_tokens"]
                for choice in chunk["choices"]:
                    pieces.append(choice["delta"].get("content") or "")
                    reason = choice["finish_reason"] or reason
        if reason is None:
            raise SystemExit("an answer was cut off")
        return "".join(pieces), tokens


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


class System:
    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http = http
        self._model = model

    async def ask(self, question: Question) -> tuple[str, int]:
        body = {**_body(question), "model": self._model}
        response = await self._http.post("/api/chat", params={"wait": 60}, json=body)
        job = response.json()
        if response.status_code != 200 or job["status"] != "completed" or job["attempts"] != 1:
            raise SystemExit(f"HTTP {response.status_code}: {response.text[:500]}")
        return job["result"]["message"]["content"], job["result"]["usage"]["completion_tokens"]


def _body(question: Question) -> dict[str, Any]:
    """Greedy, so that a real model, too, says about the same both ways."""
    messages = [{"role": "user", "content": question.text}]
    return {"messages": messages, "max_tokens": question.tokens, "temperature": 0.0}


async def run(asking: Asking) -> Answers:
    ways: dict[str, type[Straight | System]] = {STRAIGHT: Straight, SYSTEM: System}
    questions = [asking.of(client) for client in range(asking.clients)]
    spans: list[list[float]] = [[] for _ in questions]
    tokens = 0

    async with httpx.AsyncClient(base_url=asking.url, headers=asking.headers, timeout=120, trust_env=False) as http:
        way: Way = ways[asking.way](http, asking.model)

        async def ask(client: int, question: Question) -> None:
            nonlocal tokens
            start = time.perf_counter()
            answer, count = await way.ask(question)
            spans[client].append(1e3 * (time.perf_counter() - start))
            tokens += count
            if asking.known and answer != upstream.text(question.text, question.tokens):
                raise SystemExit(f"{question} was answered with {answer[:200]!r}")

        async def client(number: int) -> None:
            for question in questions[number][1:]:
                await ask(number, question)

        await asyncio.gather(*(ask(number, own[0]) for number, own in enumerate(questions)))
        tokens, spans = 0, [[] for _ in questions]
        watch, start = Stopwatch(asking.processes), time.perf_counter()
        await asyncio.gather(*map(client, range(asking.clients)))
        seconds = time.perf_counter() - start
        count = asking.clients * asking.questions
        figures = watch.stop(asking.way, count)
    rounded = [round(span, 3) for own in spans for span in own]
    return Answers(rounded, tokens, seconds, {"client": figures.cpu["producer"], **figures.cpu}, figures.foreign)


if __name__ == "__main__":
    die_with_parent()
    print(LINE + json.dumps(asdict(uvloop.run(run(Asking.given())))), flush=True)

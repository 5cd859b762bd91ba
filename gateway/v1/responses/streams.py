"""Responses as server-sent events, each with a number that a client goes on after, on any gateway.

First come the events of the response's beginning, numbered from 0. What an attempt has generated is numbered from a
million for each attempt before it: so a number tells which attempt it is of, and a client that was told of one is never
told the rest of another. An answer whose pieces are gone is told at once, numbered as one more attempt.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from broker.chunk_feed import Over, Quiet, Restarted
from broker.chunks import Chunk
from broker.job import Job, Status
from broker.results import unpack
from gateway.context import Context
from gateway.problems import Problem
from gateway.query import integer
from gateway.sse import COMMENT, Events
from gateway.v1.answers import as_pieces
from gateway.v1.responses.answers import Answer, complete
from gateway.v1.responses.items import Event, Output

# Numbers of an attempt's events.
SPAN = 1_000_000
MOST = 10**9 - 1


class Narrator:
    """Events after number ``after`` (-1: all) of one job's response. Pure: the same job gives the same bytes.
    ``instructions``: see ``Answer``."""

    def __init__(self, job: Job, after: int = -1, instructions: str | None = None) -> None:
        self.last = max(after, 0)
        """The number of the last event that the client was told."""
        self._answer = Answer(job, instructions)
        self._after = after
        self._output = Output(str(job.id))
        self._number = 0
        self._began = False

    def begin(self, job: Job) -> bytes:
        """What can be told before any piece."""
        first, second = self._heads()
        return self._tell(first if job.status is Status.QUEUED and self._answer.background else [*first, *second])

    def _heads(self) -> tuple[list[Event], list[Event]]:
        """Those of a response that waits, and those of one that is generated."""
        running = {"type": "response.in_progress", "response": self._answer.body("in_progress")}
        if not self._answer.background:
            return [{"type": "response.created", "response": self._answer.body("in_progress")}], [running]
        waiting = self._answer.body("queued")
        return [{"type": f"response.{name}", "response": waiting} for name in ("created", "queued")], [running]

    def _enter(self, attempt: int) -> bytes:
        """Goes over to what attempt number ``attempt``, from 0, has generated. Raises Problem ``stream_restarted`` or
        ``invalid_event_id``."""
        if self._began:
            return b""
        self._began = True
        first, second = self._heads()
        heads = len(first) + len(second)
        rest = self._tell([*first, *second][self._number :])
        start = heads + attempt * SPAN
        if heads <= self._after < start:
            raise Problem("stream_restarted", "The answer is generated anew, as its worker or engine was lost.")
        if self._after >= start + SPAN:
            raise Problem("invalid_event_id", f"No event of this response has the number {self._after}.")
        self._number = start
        return rest

    def pieces(self, begun: int, events: Sequence[str]) -> bytes:
        """``events``: as ``broker.chunks`` has them, of the attempt that was the ``begun``-th."""
        told = self._enter(_attempt(begun))
        choices = (choice for text in events for choice in json.loads(text) if not choice.get("index"))
        return told + self._tell(event for choice in choices for event in self._output.add(choice))

    def end(self, job: Job, result: dict[str, Any], *, whole: bool) -> bytes:
        """The end of a completed job. ``whole``: all pieces that there were have been told. Raises Problem
        ``stream_expired``."""
        pieces_gone = job.chunks is not None and not whole
        attempt = _attempt(job.begun) + (1 if pieces_gone else 0)
        heads = sum(map(len, self._heads()))
        if pieces_gone and (self._began or heads <= self._after < heads + attempt * SPAN):
            raise Problem("stream_expired", "The pieces of this response are gone; get it whole.")
        told = self._enter(attempt)
        if pieces_gone or job.chunks is None:
            told += self._tell(self._output.add(as_pieces(result)[0]))
        told += self._tell(self._output.end(complete=complete(result)))
        body = self._answer.at(job).ended(result, self._output.items)
        return told + self._tell([{"type": f"response.{body['status']}", "response": body}])

    def failure(self, job: Job) -> bytes:
        """The end of a job that has no result."""
        told = self._enter(_attempt(job.begun))
        if job.status is Status.CANCELLED:
            return told + self._tell([_error("cancelled", "The response was cancelled.")])
        return told + self._tell([{"type": "response.failed", "response": self._answer.at(job).state()}])

    def problem(self, problem: Problem) -> bytes:
        """The last event of this connection, and none of the response: it has no number of its own."""
        return _data({**_error(problem.code, problem.message), "sequence_number": self.last}, None)

    def _tell(self, events: Iterable[Event]) -> bytes:
        return b"".join(self._numbered(events))

    def _numbered(self, events: Iterable[Event]) -> Iterator[bytes]:
        for event in events:
            number, self._number = self._number, self._number + 1
            if number > self._after:
                self.last = number
                yield _data({**event, "sequence_number": number}, number)


def _attempt(begun: int) -> int:
    return max(begun - 1, 0)


def _error(code: str, message: str) -> Event:
    return {"type": "error", "code": code, "message": message, "param": None}


def _data(event: Event, number: int | None) -> bytes:
    name = "" if number is None else f"id: {number}\n"
    return f"event: {event['type']}\n{name}data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()


def asked_number(request: Request) -> int:
    """The number of the last event that the client was told, by ``starting_after`` or Last-Event-ID; -1: of none.

    Raises Problem ``invalid_query`` or ``invalid_event_id``.
    """
    if (given := request.headers.get("last-event-id")) is not None:
        if not (given.isascii() and given.isdigit() and len(given) < 10):
            raise Problem("invalid_event_id", f"Last-Event-ID: {given[:100]!r} is no id that a stream here has given.")
        return int(given)
    return integer(request, "starting_after", default=-1, least=0, most=MOST)


async def response_events(gateway: Context, job: Job, narrator: Narrator) -> Events:
    """What ``narrator`` tells of ``job``, as it comes. Raises its Problems, and ``gateway_stopping``."""
    broker, known = gateway.broker, job

    async def load() -> Job:
        nonlocal known
        known = replace(await broker.reader.standing(job.id), asked=job.asked)
        return known

    with gateway.chunk_feed.watch(job.id) as following:
        if head := narrator.begin(job):
            yield head
        async for news in following.news(load, None, gateway.settings.server.heartbeat):
            match news:
                case Chunk(_, token, _, events):
                    if token != known.token:
                        await load()
                    # Pieces of an attempt that is over by now are void, and the next news says so.
                    if token == known.token and (told := narrator.pieces(known.begun, events)):
                        yield told
                case Quiet():
                    yield COMMENT
                case Restarted():
                    raise Problem("stream_restarted", "The answer is generated anew, as its worker or engine was lost.")
                case Over(ended, whole):
                    yield await _end(gateway, narrator, ended, whole=whole)
                    return
    raise Problem("gateway_stopping", "This gateway stops; the job goes on.")


async def _end(gateway: Context, narrator: Narrator, job: Job, *, whole: bool) -> bytes:
    if job.status is not Status.COMPLETED:
        return narrator.failure(job)
    result = await unpack(gateway.broker.files, job)
    assert result is not None  # of a completed job
    return narrator.end(job, dict(result), whole=whole)

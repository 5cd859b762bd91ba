"""Answers as server-sent events, from the first or from where a client has stopped."""

import re

from starlette.requests import Request

from broker.chunk_feed import Over, Place, Quiet, Restarted
from broker.chunks import Chunk
from broker.job import Job, Status
from broker.results import unpack
from gateway.context import Context
from gateway.event_log import NO_TOKEN
from gateway.problems import Problem
from gateway.sse import COMMENT, Events
from gateway.v1.answers import View
from gateway.v1.errors import AnswerFailed

_PLACE = re.compile(r"([0-9a-f]{32})-([0-9]{1,9})")


def asked_place(request: Request) -> Place | None:
    """Where the client has stopped, by Last-Event-ID. Raises Problem ``invalid_event_id`` for what is no such id."""
    if (given := request.headers.get("last-event-id")) is None:
        return None
    found = _PLACE.fullmatch(given)
    if found is None:
        raise Problem("invalid_event_id", f"Last-Event-ID: {given[:100]!r} is no id that a stream here has given.")
    return Place(found[1], int(found[2]))


async def answer_events(gateway: Context, job: Job, place: Place | None) -> Events:
    """The events of the answer to ``job`` after ``place``. Raises AnswerFailed, Problem ``stream_restarted``,
    ``stream_expired`` or ``gateway_stopping``."""
    view, broker = View(job), gateway.broker

    async def load() -> Job:
        return await broker.reader.standing(job.id)

    with gateway.chunk_feed.watch(job.id) as following:
        async for news in following.news(load, place, gateway.settings.server.heartbeat):
            match news:
                case Chunk(_, token, first, events):
                    place = Place(token, news.end)
                    numbered = enumerate(events, first + 1)
                    yield b"".join(_event(token, number, view.chunk(choices)) for number, choices in numbered)
                case Quiet():
                    yield COMMENT
                case Restarted():
                    raise Problem("stream_restarted", "The answer is generated anew, as its worker or engine was lost.")
                case Over(ended, whole):
                    told = place.told if place is not None and place.token == (ended.token or NO_TOKEN) else 0
                    yield await _end(gateway, view, ended, told, whole=whole)
                    return
    raise Problem("gateway_stopping", "This gateway stops; the job goes on.")


async def _end(gateway: Context, view: View, job: Job, told: int, *, whole: bool) -> bytes:
    """``told``: events that the client has got, on this connection or before."""
    if job.status is not Status.COMPLETED:
        raise AnswerFailed(job)
    result = await unpack(gateway.broker.files, job)
    assert result is not None  # of a completed job
    if not whole and told:
        raise Problem("stream_expired", "The pieces of this answer are gone; ask for it whole.")
    # One that was not asked for as a stream has no pieces.
    pieces = 0 if job.chunks is None or not whole else job.chunks
    rest = [*view.ending(result)] if pieces else [view.all_at_once(result), *view.ending(result)]
    token = job.token or NO_TOKEN
    return b"".join(_event(token, number, data) for number, data in enumerate(rest, pieces + 1) if number > told)


def _event(token: str, number: int, data: str) -> bytes:
    return f"id: {token}-{number}\ndata: {data}\n\n".encode()

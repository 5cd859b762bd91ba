"""``GET /api/jobs/{id}/events``: how a job comes along, as server-sent events (HTML Living Standard, section 9.2)."""

from collections.abc import Iterable
from contextlib import aclosing
from time import monotonic

from starlette.requests import Request
from starlette.responses import Response

from broker.chunk_feed import Over, Place, Quiet, Restarted
from broker.chunks import Chunk
from broker.job import Job, Status
from broker.page_feed import Standing
from broker.results import unpack
from gateway.context import Context, context
from gateway.documents.result_formats import Chunks
from gateway.documents.results import Streamed
from gateway.event_log import NO_TOKEN, Event, Known, events, pieces, restarted, whole_answer
from gateway.jobs import asked_job
from gateway.sse import COMMENT, HEADERS
from gateway.v1.answers import as_pieces


async def get_events(request: Request) -> Response:
    job = await asked_job(request)
    known = Known.read(request.headers.get("last-event-id"))
    if known.over:
        # What tells a client not to come again (section 9.2.2).
        return Response(status_code=204, headers=HEADERS)
    return Streamed(job_events(context(request), job, known), headers=HEADERS, media_type="text/event-stream")


async def job_events(gateway: Context, job: Job, known: Known) -> Chunks:
    """What is new to somebody who knows so much of the job, as it comes, to the job's end."""
    yield COMMENT
    source = _of_answer(gateway, job, known) if job.stream else _of_pages(gateway, job, known)
    async with aclosing(source) as all_news:
        async for news in all_news:
            yield news


async def _of_pages(gateway: Context, job: Job, known: Known) -> Chunks:
    async with aclosing(gateway.page_feed.follow(job, gateway.settings.server.heartbeat)) as standings:
        async for standing in standings:
            if news := list(events(known, standing)):
                known = news[-1].known
            yield _encoded(news) or COMMENT


async def _of_answer(gateway: Context, job: Job, known: Known) -> Chunks:
    latest = job

    async def load() -> Job:
        nonlocal latest
        latest = await gateway.broker.reader.standing(job.id)
        return latest

    interval, spoke = min(gateway.settings.queue.poll_interval, gateway.settings.server.heartbeat), monotonic()
    with gateway.chunk_feed.watch(job.id) as following:
        async for news in following.news(load, known.place, interval):
            told: list[Event] = []
            if not latest.status.terminal:
                told += events(known, _standing(latest))
                known = told[-1].known if told else known
            match news:
                case Chunk():
                    told += pieces(known, news)
                case Restarted(token):
                    told.append(restarted(known, token))
                case Over(ended, whole):
                    told += await _end(gateway, known, ended, whole=whole)
                case Quiet():
                    """It is a moment to look whether the job's state has changed."""
            known = told[-1].known if told else known
            if told or monotonic() - spoke >= gateway.settings.server.heartbeat:
                spoke = monotonic()
                yield _encoded(told) or COMMENT


async def _end(gateway: Context, known: Known, job: Job, *, whole: bool) -> list[Event]:
    told: list[Event] = []
    # One that was answered by an earlier job has no pieces, and those of others are gone an hour after the end.
    if job.status is Status.COMPLETED and not (whole and job.chunks):
        result = await unpack(gateway.broker.files, job)
        assert result is not None  # of a completed job
        told += whole_answer(known, as_pieces(result), Place(job.token or NO_TOKEN, job.chunks or 1))
    known = told[-1].known if told else known
    return told + list(events(known, _standing(job)))


def _standing(job: Job) -> Standing:
    return Standing(job.status, job.attempts, job.progress, job.error, {})


def _encoded(told: Iterable[Event]) -> bytes:
    return b"".join(event.encode() for event in told)

"""``GET /api/jobs/{id}/events``: how a job comes along, as server-sent events (HTML Living Standard, section 9.2)."""

from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from broker.job import Job
from broker.page_feed import PageFeed
from gateway.context import context
from gateway.event_log import Known, events
from gateway.jobs import asked_job
from gateway.result_formats import Chunks
from gateway.results import Streamed

# Seconds without news after which a comment is sent, so that nobody on the way takes the connection for dead.
HEARTBEAT = 15.0
# Without an empty line after it: some clients would take that for the end of an event.
_COMMENT = b":\n"
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Accel-Buffering": "no"}


async def get_events(request: Request) -> Response:
    job = await asked_job(request)
    known = Known.read(request.headers.get("last-event-id"))
    if known.over:
        # What tells a client not to come again (section 9.2.2).
        return Response(status_code=204, headers=_HEADERS)
    stream = _stream(context(request).page_feed, job, known)
    return Streamed(stream, headers=_HEADERS, media_type="text/event-stream")


async def _stream(feed: PageFeed, job: Job, known: Known) -> Chunks:
    yield _COMMENT
    async with aclosing(feed.follow(job, HEARTBEAT)) as standings:
        async for standing in standings:
            news = list(events(known, standing))
            if news:
                known = news[-1].known
                yield b"".join(event.encode() for event in news)
            else:
                yield _COMMENT

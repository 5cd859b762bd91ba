"""A client who waits for the answer of a job, whole or in pieces, on the connection that he asked on.

The job is one like any other: it survives crashes, and can be looked up, or followed further, by the id in
``x-request-id``. Without its client it goes on or is cancelled, as ``Call.cancels`` says.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from pymongo.errors import PyMongoError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from broker.errors import JobFinished
from broker.feed import Ending
from broker.job import Idempotency, Job, NewJob, Status
from broker.job_updates import after_end
from broker.results import unpack
from gateway.answer_cache import cache_headers
from gateway.arrival import Arrival
from gateway.context import Context
from gateway.hops import route_headers
from gateway.problems import Problem, is_outage
from gateway.sse import Events, EventStream, unless_gone
from gateway.v1.errors import AnswerFailed

log = logging.getLogger(__name__)

# Seconds for which it is tried to cancel a job that nobody waits for any longer.
PATIENCE = 30.0

REPLAYED = {"Idempotent-Replayed": "true"}


async def answered(
    request: Request,
    arrival: Arrival,
    form: "Form",
    idempotency: Idempotency | None,
    make: Callable[[], Awaitable[NewJob]],
    *,
    stream: bool,
    goes_on: bool = False,
) -> Response:
    """The answer of the job that the same request has made before or, where there is none, of the one that ``make``
    makes. ``goes_on``: that needs no client, whatever the model's entry says."""
    if earlier := await arrival.earlier(idempotency):
        call = Call(request, arrival.gateway, form, headers=arrival.headers | REPLAYED)
        return await call.repeat(earlier, stream=stream)
    new = await make()
    cancels = not goes_on and arrival.cancels(new)
    return await Call(request, arrival.gateway, form, cancels, arrival.headers).submit(new)


class Form(Protocol):
    """How an API tells answers."""

    def whole(self, job: Job, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """The body of the answer."""

    def events(self, gateway: Context, job: Job, request: Request | None) -> Events:
        """Its pieces, from where ``request`` says; None: from the first. Raises Problem for what is wrong with that."""

    def failed(self, problem: Problem) -> bytes:
        """The last event of a stream that went wrong."""


@dataclass(frozen=True, slots=True)
class Call:
    """``form``: of the answer. ``cancels``: the job is not to go on without its client. ``headers``: of the answer."""

    request: Request
    gateway: Context
    form: Form
    cancels: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    async def submit(self, new: NewJob) -> Response:
        """The answer of a new job, or of the one that the same request has made before."""
        broker = self.gateway.broker
        # Whoever watches before the job is there misses nothing and need not look first.
        with broker.feed.watch(new.id) as ending:
            job = await broker.submit(new)
            if job.id == new.id and new.stream:
                self.gateway.chunk_feed.stored(job)
                # Whatever Last-Event-ID says was of another job: clients that repeat a POST send it along.
                return self._stream(job, None)
            if job.id == new.id:
                # One that an earlier answer has answered comes to its end at once.
                return await (self._answer(job) if job.status.terminal else self._ended(job, ending))
        return await self.repeat(job, stream=new.stream)

    async def repeat(self, job: Job, *, stream: bool) -> Response:
        """The answer of a job that was there before."""
        if stream:
            return self.stream(job)
        with self.gateway.broker.feed.watch(job.id) as ending:
            job = await self.gateway.broker.reader.get(str(job.id), None)
            return await (self._answer(job) if job.status.terminal else self._ended(job, ending))

    async def _ended(self, job: Job, ending: Ending) -> Response:
        if not await unless_gone(self.request, ending.event.wait()):
            await self.abandon(job)
            raise ClientDisconnect
        ended = after_end(job, ending.changes) or await self.gateway.broker.reader.get(str(job.id), None)
        return await self._answer(ended)

    async def _answer(self, job: Job) -> Response:
        if not job.status.terminal:
            raise await self._stopping(job)
        if job.status is not Status.COMPLETED:
            raise AnswerFailed(job)
        result = await unpack(self.gateway.broker.files, job)
        assert result is not None  # of a completed job
        return JSONResponse(self.form.whole(job, result), headers=self._headers(job))

    async def _stopping(self, job: Job) -> Problem:
        """Whoever has named no key asks anew, and that would be a second job."""
        await self.abandon(job)
        message = "This gateway stops; " + ("the job is cancelled: ask again." if self.cancels else "the job goes on.")
        return Problem("gateway_stopping", message, headers={**self._headers(job), "Retry-After": "1"})

    def stream(self, job: Job) -> Response:
        """The answer as it is generated, from where the request says."""
        return self._stream(job, self.request)

    def _stream(self, job: Job, request: Request | None) -> Response:
        events = self.form.events(self.gateway, job, request)

        async def abandon() -> None:
            await self.abandon(job)

        return EventStream(events, on_gone=abandon, failed=self.form.failed, headers=self._headers(job))

    async def abandon(self, job: Job) -> None:
        """The client has gone away. A database that is away is waited for, for a while."""
        deadline = monotonic() + PATIENCE
        while self.cancels:
            try:
                with suppress(JobFinished):
                    await self.gateway.broker.queue.cancel(job.id, None)
                return
            except PyMongoError as error:
                if not is_outage(error) or self.gateway.broker.feed.closed or monotonic() > deadline:
                    log.warning("job %s goes on without its client: %s", job.id, error)
                    return
            await asyncio.sleep(self.gateway.settings.queue.poll_interval)

    def _headers(self, job: Job) -> dict[str, str]:
        return {**self.headers, **route_headers(job), **cache_headers(job), "x-request-id": str(job.id)}

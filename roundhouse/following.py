"""Streams of events that outlive their connections, and the gateway at the other end."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from time import monotonic
from typing import Self, TypeAlias

import httpx
from httpx_sse import ServerSentEvent, SSEError

from roundhouse.errors import RoundhouseApiError, StreamRestarted, about, too_late, understood
from roundhouse.models import JobEvent, Piece, Restart
from roundhouse.pieces import Reading
from roundhouse.session import Session
from roundhouse.wire import Request

# Seconds after which a connection that breaks had been a good one.
GOOD = 1.0
# Seconds for which a stream that is left tries to cancel its job. A gateway may hold its head back for half of them.
LEAVING = 10.0

Check: TypeAlias = Callable[[ServerSentEvent], None]


class Following:
    """The events of one stream, over as many connections as it takes. ``job_id``: once the gateway has told it.

    ``request`` gives what to ask for next, by that and by the id of the last event.
    """

    def __init__(
        self,
        session: Session,
        request: Callable[[str | None, str | None], Request],
        deadline: float | None,
        job_id: str | None = None,
    ) -> None:
        self.job_id = job_id
        self._session = session
        self._request = request
        self._deadline = deadline
        self._last: str | None = None

    def forget(self) -> None:
        """The next events are asked for from the first."""
        self._last = None

    async def events(self, check: Check | None = None) -> AsyncGenerator[ServerSentEvent, None]:
        """Each event once. Ends only where the gateway says that there are no more; who knows that it has had the last
        closes it. ``check`` raises what an event tells of, before it counts as told."""
        trouble = self._session.trouble()
        while True:
            response = await self._session.send(
                self._request(self.job_id, self._last), deadline=self._deadline, trouble=trouble, stream=True
            )
            at, opened = self._session.at, monotonic()
            try:
                self.job_id = response.headers.get("x-request-id", self.job_id)
                if response.status_code == httpx.codes.NO_CONTENT:
                    return
                async with aclosing(self._session.wire.events(response)) as events:
                    async for event in events:
                        if check is not None:
                            check(event)
                        trouble.over()
                        self._last = event.id or self._last
                        yield event
                error: RoundhouseApiError = self._session.unreachable("the stream broke off")
            except (httpx.RequestError, SSEError) as broken:
                if self._deadline is not None and monotonic() >= self._deadline:
                    raise too_late() from broken
                error = self._session.unreachable(str(broken) or type(broken).__name__)
            except RoundhouseApiError as told:
                error = told
            finally:
                await self._session.wire.close(response)
            if monotonic() - opened > GOOD:
                trouble.over()
            await self._session.bear(error, trouble, self._deadline, at)


def after(request: Request, last: str | None) -> Request:
    """``request`` for the events after the ``last`` that came."""
    return request if last is None else request.with_headers(**{"Last-Event-ID": last})


def answer_request(submit: Request) -> Callable[[str | None, str | None], Request]:
    """What to ask for a chat's stream: ``submit``, which bears an Idempotency-Key, until its job is known."""

    def request(job_id: str | None, last: str | None) -> Request:
        # Where a proxy keeps the header to itself that names the job, the key finds it each time.
        again = submit
        if job_id is not None:
            again = Request("GET", f"/v1/chat/completions/{job_id}", params={"stream": "true"})
        return after(again, last)

    return request


async def job_events(session: Session, job_id: str, deadline: float | None) -> AsyncGenerator[JobEvent, None]:
    """The news of a job, up to its end. Raises RoundhouseApiError ``job_not_found``."""

    def request(_: str | None, last: str | None) -> Request:
        return after(Request("GET", f"/api/jobs/{job_id}/events"), last)

    following = Following(session, request, deadline, job_id)
    async with aclosing(following.events()) as events:
        with about(job_id):
            async for event in events:
                with understood():
                    news = JobEvent(event.event, json.loads(event.data))
                yield news
                if event.event == "end":
                    return


class AsyncStream:
    """The pieces of an answer, as they are generated. Each comes once, also where connections break and gateways die.

    To leave it before its end, as a context manager or by ``aclose``, cancels the job. ``restarts``: whether an answer
    that is generated anew goes on after a ``Restart``; otherwise it raises StreamRestarted.
    """

    def __init__(self, session: Session, submit: Request, deadline: float | None, *, restarts: bool) -> None:
        self._session = session
        self._submit = submit
        self._following = Following(session, answer_request(submit), deadline)
        self._restarts = restarts
        self._begun = self._over = False
        self._pieces = self._all()

    @property
    def job_id(self) -> str | None:
        """None until the gateway has told it, at the latest with the first piece."""
        return self._following.job_id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        self._begun = True
        return await anext(self._pieces)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._pieces.aclose()
        if self._begun and not self._over:
            with suppress(RoundhouseApiError):
                await self.cancel()

    async def cancel(self) -> None:
        """Cancels the job, if it has not ended. Raises RoundhouseApiError."""
        self._over, deadline = True, monotonic() + LEAVING
        if self.job_id is None:
            # It may be there nevertheless: the same key finds it.
            response = await self._session.send(self._submit, deadline=deadline, stream=True)
            await self._session.wire.close(response)
            with understood():
                self._following.job_id = response.headers["x-request-id"]
        try:
            await self._session.send(Request("DELETE", f"/api/jobs/{self.job_id}"), deadline=deadline)
        except RoundhouseApiError as error:
            if error.code != "job_finished":
                raise

    async def _all(self) -> AsyncGenerator[Piece, None]:
        while True:
            try:
                async with aclosing(self._reading()) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except RoundhouseApiError as error:
                if not (self._restarts and isinstance(error, StreamRestarted)):
                    self._over = True
                    error.job_id = error.job_id or self.job_id
                    raise
            self._following.forget()
            yield Restart()

    async def _reading(self) -> AsyncGenerator[Piece, None]:
        reading, found = Reading(), list[Piece]()

        def read(event: ServerSentEvent) -> None:
            with understood():
                found.extend(reading.add(event.data))

        async with aclosing(self._following.events(read)) as events:
            async for _ in events:
                for piece in found:
                    yield piece
                found.clear()
                if reading.over:
                    self._over = True
                    return

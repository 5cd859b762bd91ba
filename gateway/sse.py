"""Server-sent events (HTML Living Standard, section 9.2) to a client who may go away at any time."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.cancellation import cancel_all
from gateway.problems import Problem, problem_for

Events = AsyncGenerator[bytes, None]

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Accel-Buffering": "no"}
# Without an empty line after it: some clients would take that for the end of an event.
COMMENT = b":\n"
# Seconds for which the answer's head waits for the first event: what fails at once gets the status of its error.
HOLD = 1.0


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed its connection. The request's body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        """What else may still come says nothing."""


async def unless_gone(request: Request, work: Awaitable[object]) -> bool:
    """Whether ``work`` was done before the client went away; it is cancelled otherwise."""
    working = asyncio.ensure_future(work)
    watcher = asyncio.create_task(until_gone(request.receive))
    try:
        await asyncio.wait({working, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        await cancel_all([working, watcher])


class EventStream(Response):
    """``events`` are sent as they come. A reader who is slow is waited for, with nothing kept for him.

    ``on_gone`` is called when the client has gone away before the end. What ``events`` raise is answered as any other
    error until the head is sent, and said by ``failed`` as the last event after that.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Events,
        *,
        on_gone: Callable[[], Awaitable[None]],
        failed: Callable[[Problem], bytes],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers={**HEADERS, **headers})
        del self.headers["content-length"]
        self._events = events
        self._on_gone = on_gone
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone, sending = asyncio.create_task(until_gone(receive)), asyncio.create_task(self._send_all(scope, send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            whole = sending.done()
            await cancel_all([gone, sending])
            await self._events.aclose()
        if not whole:
            await self._on_gone()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        first: asyncio.Task[bytes | None] = asyncio.create_task(self._next())
        try:
            await asyncio.wait({first}, timeout=HOLD)
            if first.done():
                first.result()
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            event, more = await self._told(first, scope)
            while more:
                await send({"type": "http.response.body", "body": event, "more_body": True})
                event, more = await self._told(self._next(), scope)
            await send({"type": "http.response.body", "body": event, "more_body": False})
        finally:
            await cancel_all([first])

    async def _told(self, event: Awaitable[bytes | None], scope: Scope) -> tuple[bytes, bool]:
        """What to send next, and whether there is more to come."""
        try:
            found = await event
        except Exception as error:  # noqa: BLE001 - the client is told, and the unforeseen logged
            return self._failed(problem_for(error, scope)), False
        return (b"", False) if found is None else (found, True)

    async def _next(self) -> bytes | None:
        return await anext(self._events, None)

"""One of the servers of a model: what is under way there, how quick it is, and whether it is left alone."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from time import monotonic
from typing import Any

from broker.errors import EngineError, UpstreamBusy, UpstreamTimeout, UpstreamUnreachable
from broker.registry import BackendState
from config import OpenaiSettings
from config.upstreams import BackendSettings
from worker.backends.breaker import Breaker, Ticket
from worker.backends.choice import Candidate
from worker.engines.access import Access, Server
from worker.engines.base import Chunk
from worker.engines.upstream import Upstream

# Weight of the newest measurement of the time until an answer begins, and seconds after which none of them counts.
_NEWEST = 0.3
_STALE = 30.0
# Characters of an error that operators are shown.
_ERROR = 300


def is_failure(error: EngineError) -> bool:
    """Whether the server is at fault, and not what it was asked."""
    if isinstance(error, UpstreamBusy):
        status = error.details.get("status")
        return isinstance(status, int) and (status >= 500 or status in (408, 429))
    return isinstance(error, UpstreamUnreachable | UpstreamTimeout)


class Backend:
    """``title``: names it in messages. ``settings``: of its entry."""

    def __init__(self, title: str, server: BackendSettings, settings: OpenaiSettings) -> None:
        self.name = server.name
        self.title = title
        self.model = server.model or settings.model
        self.listed: frozenset[str] = frozenset()
        """The names that it lists itself, where it was asked."""
        breaker = settings.breaker
        self.breaker = Breaker(breaker.failures, breaker.window, breaker.pause)
        self.upstream = Upstream(Server(title, server.base_url.rstrip("/"), _access(server, settings)))
        self._server = server
        self._running = 0
        self._latency: float | None = None
        self._measured = 0.0
        self._last_error: str | None = None

    async def close(self) -> None:
        await self.upstream.close()

    @property
    def has_room(self) -> bool:
        most = self._server.max_concurrent
        return most is None or self._running < most

    def candidate(self) -> Candidate:
        fresh = monotonic() - self._measured < _STALE
        return Candidate(self.name, self._server.weight, self._running, self._latency if fresh else None)

    def told(self) -> BackendState:
        now = monotonic()
        return BackendState(
            name=self.name,
            address=self._server.base_url,
            state=self.breaker.state(now).value,
            retry_in=round(self.breaker.retry_in(now), 1),
            running=self._running,
            latency=None if self._latency is None else round(self._latency, 4),
            last_error=self._last_error,
        )

    def take(self) -> Ticket:
        """A request goes there. Whoever takes it runs it at once, see ``run``."""
        ticket = self.breaker.begin(monotonic())
        self._running += 1
        return ticket

    async def run(
        self, ticket: Ticket, task: str, model: str, payload: Mapping[str, Any], deadline: float | None
    ) -> AsyncGenerator[Chunk, None]:
        """``deadline``: of the event loop's clock. Raises as ``Upstream.run``."""
        began, answers = monotonic(), False
        try:
            async with aclosing(self.upstream.run(task, model, payload)) as chunks:
                while (chunk := await self._next(chunks, deadline)) is not None:
                    if not answers:
                        answers = True
                        self._begins(ticket, monotonic() - began)
                    yield chunk
            self.breaker.succeeded(ticket, monotonic())
            self._last_error = None
        except EngineError as error:
            self._ends(ticket, error)
            raise
        finally:
            self._running -= 1
            self.breaker.abandoned(ticket)

    async def _next(self, chunks: AsyncGenerator[Chunk, None], deadline: float | None) -> Chunk | None:
        # Never over a ``yield``: the timer would stop whoever reads the answer, and not the answer.
        try:
            async with asyncio.timeout_at(deadline):
                return await anext(chunks, None)
        except TimeoutError:
            raise UpstreamTimeout(f"{self.title} took longer than the time that the request has.") from None

    def _begins(self, ticket: Ticket, seconds: float) -> None:
        known = self._latency
        self._latency = seconds if known is None else known + _NEWEST * (seconds - known)
        self._measured = monotonic()
        if ticket.probe:
            self.breaker.succeeded(ticket, self._measured)  # the others need not wait for the end of its answer

    def _ends(self, ticket: Ticket, error: EngineError) -> None:
        now = monotonic()
        if is_failure(error):
            self._last_error = error.message[:_ERROR]
            self.breaker.failed(ticket, now, getattr(error, "retry_after", None))
        else:
            self.breaker.succeeded(ticket, now)


def _access(server: BackendSettings, settings: OpenaiSettings) -> Access:
    headers = {} if server.api_key is None else {"Authorization": f"Bearer {server.api_key.get_secret_value()}"}
    headers |= {name: value.get_secret_value() for name, value in server.headers.items()}
    return Access(
        connect=min(settings.connect_timeout, settings.timeout),
        silence=min(settings.read_timeout or settings.timeout, settings.timeout),
        headers=headers,
        query=server.query,
    )

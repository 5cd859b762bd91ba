"""One of the servers of a model: what is under way there, how quick it is, and whether it is left alone."""

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from enum import Enum
from time import monotonic
from typing import Any

from broker.errors import EngineError, UpstreamTimeout
from broker.fallback import others_may
from broker.registry import BackendState
from config import OpenaiSettings
from config.upstreams import BackendSettings
from worker.backends.breaker import Breaker, Ticket
from worker.backends.choice import Candidate
from worker.engines.access import Access, Server
from worker.engines.base import Chunk, Result
from worker.engines.upstream import Upstream

# Weight of the newest measurement of the time until an answer begins, and seconds after which none of them counts.
_NEWEST = 0.3
_STALE = 30.0
# Characters of an error that operators are shown.
_ERROR = 300
# Part of its entry's time for which a server has to have said nothing to anybody before it is blamed: not quite all of
# it, as the clock of the attempt runs a little longer.
_ALL_ITS_TIME = 0.95
# Part of a page's time after which its server is silent for too long. The page's own clock would tell nothing of who
# is to blame.
_OF_A_PAGE = 0.9
_PAYMENT_REQUIRED = 402


class Outcome(Enum):
    """What a request that has failed says of its server."""

    SOUND = "it refuses what is wrong with the request"
    FAILED = "it is at fault"
    UNKNOWN = "it wants another key or model, money, or more time than the request has: it may do others"


def outcome_of(error: EngineError) -> Outcome:
    status = error.details.get("status")
    if not others_may(error.code, status, permanent=error.permanent):
        return Outcome.SOUND
    return Outcome.UNKNOWN if error.permanent or status == _PAYMENT_REQUIRED else Outcome.FAILED


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
        self._at = Server(title, server.base_url.rstrip("/"), _access(server, settings))
        self.upstream = Upstream(self._at)
        self._server = server
        self._timeout = settings.timeout
        self._silence = 0.0
        """Seconds for which it has said nothing to anybody who waited, counted up to ``_silent_until``."""
        self._silent_until = -math.inf
        self._last_failure = -math.inf
        """When a request there last ended in an error that is counted by itself."""
        self._running = 0
        self._unanswered = 0
        """Of those under way, of whose answers nothing has come yet."""
        self._latency: float | None = None
        """None also where the last request, at ``_measured``, got no answer."""
        self._measured = -math.inf
        self._last_error: str | None = None
        self._asked = 0
        self._failed = 0

    async def close(self) -> None:
        await self.upstream.close()

    @property
    def has_room(self) -> bool:
        """None for anybody while it is left alone, or one request tries whether it is back."""
        most = self._server.max_concurrent
        return self.breaker.admits(monotonic()) and (most is None or self._running < most)

    def candidate(self) -> Candidate:
        latency = math.inf if self._latency is None else self._latency
        fresh = monotonic() - self._measured < _STALE
        return Candidate(
            self.name, self._server.weight, self._running, latency if fresh else None, self._unanswered > 0
        )

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
            asked=self._asked,
            failed=self._failed,
        )

    def take(self) -> Ticket:
        """A request goes there. Whoever takes it runs it at once, see ``run``."""
        ticket = self.breaker.begin(monotonic())
        self._running += 1
        self._unanswered += 1
        self._asked += 1
        return ticket

    async def run(
        self, ticket: Ticket, task: str, model: str, payload: Mapping[str, Any], deadline: float | None
    ) -> AsyncGenerator[Chunk, None]:
        """``deadline``: of the event loop's clock. Raises as ``Upstream.run``."""
        began, answers = monotonic(), False
        try:
            async with aclosing(self.upstream.run(task, model, payload)) as chunks:
                while (chunk := await _next(chunks, deadline)) is not None:
                    if not answers:
                        answers = True
                        self._begins(ticket, monotonic() - began)
                    if isinstance(chunk, Result):
                        # Whoever gets it reads no further.
                        self.breaker.succeeded(ticket, monotonic())
                        self._last_error = None
                    yield chunk
        except TimeoutError:
            error = UpstreamTimeout(f"{self.title} took longer than the time that the request has.")
            if not answers:
                self._keeps_waiting(ticket, began, error)
            raise error from None
        except EngineError as error:
            self._last_failure = monotonic()
            self._sign(error)
            self._fails(ticket, error, outcome_of(error), answers)
            raise
        finally:
            self._running -= 1
            self._unanswered -= not answers
            self.breaker.abandoned(ticket)

    def _begins(self, ticket: Ticket, seconds: float) -> None:
        known = self.candidate().latency
        self._unanswered -= 1
        self._latency = seconds if known in (None, math.inf) else known + _NEWEST * (seconds - known)
        self._measured = monotonic()
        if ticket.probe:
            self.breaker.succeeded(ticket, self._measured)  # the others need not wait for the end of its answer

    def _keeps_waiting(self, ticket: Ticket, began: float, error: UpstreamTimeout) -> None:
        """The request's own time is over, however short it was. It is the server's fault where that has said nothing to
        anybody for all of its entry's time: requests that come one after the other may each have had less."""
        now, heard = monotonic(), max(self.upstream.heard, self._last_failure)
        if heard > self._silent_until:
            self._silence = 0.0
        self._silence += now - max(began, heard, self._silent_until)
        self._silent_until = now
        if self._silence >= _ALL_ITS_TIME * self._timeout:
            self._fails(ticket, error, Outcome.FAILED, False)
            return
        # It takes so long at least.
        self._latency, self._measured = max(self.candidate().latency or 0.0, now - began), now

    def _sign(self, error: EngineError) -> None:
        """Of several servers the message says which one it was, and of none its keys, which a server may quote."""
        told = self._at.redacted(error.message)
        error.message = told if self.title in told else f"{self.title}: {told}"
        error.args = (error.message,)

    def _fails(self, ticket: Ticket, error: EngineError, outcome: Outcome, answers: bool) -> None:
        now = monotonic()
        if outcome is Outcome.SOUND:
            self.breaker.succeeded(ticket, now)
            return
        self._failed += 1
        self._last_error = error.message[:_ERROR]
        if not answers:
            # How quick it would be is looked at again when this measurement, too, is of long ago.
            self._latency, self._measured = None, now
        if outcome is Outcome.FAILED:
            self.breaker.failed(ticket, now, getattr(error, "retry_after", None))


async def _next(chunks: AsyncGenerator[Chunk, None], deadline: float | None) -> Chunk | None:
    """Raises TimeoutError. Not over a ``yield``: the timer would stop whoever reads the answer, and not the answer."""
    async with asyncio.timeout_at(deadline):
        return await anext(chunks, None)


def _access(server: BackendSettings, settings: OpenaiSettings) -> Access:
    headers = {} if server.api_key is None else {"Authorization": f"Bearer {server.api_key.get_secret_value()}"}
    headers |= {name: value.get_secret_value() for name, value in server.headers.items()}
    longest = settings.timeout * (_OF_A_PAGE if settings.task == "ocr" else 1.0)
    return Access(
        connect=min(settings.connect_timeout, longest),
        silence=min(settings.read_timeout or longest, longest),
        headers=headers,
        query=server.query,
    )

"""The servers of a model, of which each request gets one, and another where that one fails before it has answered."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from time import monotonic
from typing import Any

from broker.errors import BackendsHeldBack, EngineError, EngineInputError
from broker.fallback import others_may
from config.upstreams import Balance
from worker.backends.backend import Backend
from worker.backends.breaker import Ticket
from worker.backends.choice import Chooser
from worker.engines.base import Chunk

log = logging.getLogger(__name__)

# Seconds: the longest pause before the first other server is asked, and before any.
_BASE = 0.1
_MOST = 2.0


def pause(failures: int, rng: random.Random | None = None) -> float:
    """Seconds before another server is asked after so many have failed («full jitter» in AWS's «Exponential Backoff And
    Jitter»): those whom one server has let down do not come to the next one together."""
    return (rng or random).uniform(0.0, min(_MOST, _BASE * 2.0 ** (failures - 1)))


class Pool:
    """``title`` names the model in messages; ``model``: its upstreams' name for it, where they have no other."""

    def __init__(self, title: str, model: str, backends: Sequence[Backend], balance: Balance) -> None:
        self.backends = backends
        self._title = title
        self._model = model
        self._chooser = Chooser(balance)
        self._freed = asyncio.Event()

    async def close(self) -> None:
        await asyncio.gather(*(backend.close() for backend in self.backends))

    async def run(
        self, task: str, payload: Mapping[str, Any], timeout: float | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """``payload`` may name a server by ``modelKey``, and by ``upstream_model`` a model that is not the entry's own.
        ``timeout``: seconds for the whole answer. Raises as ``Upstream.run``, BackendsHeldBack, and EngineInputError
        ``unknown_backend``."""
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        left = self._eligible(payload)
        failures = 0
        while True:
            backend, ticket = await self._take(left)
            model = payload.get("upstream_model") or backend.model or self._model
            answers = False
            try:
                async with aclosing(backend.run(ticket, task, model, payload, deadline)) as chunks:
                    async for chunk in chunks:
                        answers = True
                        yield chunk
                return
            except EngineError as error:
                left = [other for other in left if other is not backend]
                may = others_may(error.code, error.details.get("status"), permanent=error.permanent)
                if answers or not may or not self._any_admits(left) or _is_over(deadline):
                    raise
                failures += 1
                log.warning("another server of %s is asked: %s", self._title, error.message)
            finally:
                self._freed.set()
            await asyncio.sleep(pause(failures))

    def _eligible(self, payload: Mapping[str, Any]) -> list[Backend]:
        wanted, model = payload.get("modelKey"), payload.get("upstream_model")
        found = [backend for backend in self.backends if wanted in (None, backend.name)]
        if not found:
            names = ", ".join(backend.name for backend in self.backends)
            raise EngineInputError(f"{self._title} has no backend {wanted!r}, but {names}.", code="unknown_backend")
        # Where none of them lists it any more, the server itself has to say so.
        return [backend for backend in found if model in backend.listed] or found

    def _any_admits(self, backends: Sequence[Backend]) -> bool:
        return any(backend.breaker.admits(monotonic()) for backend in backends)

    async def _take(self, backends: Sequence[Backend]) -> tuple[Backend, Ticket]:
        """Waits for room where all that are admitted are busy. Raises BackendsHeldBack."""
        while True:
            now = monotonic()
            admitted = [backend for backend in backends if backend.breaker.admits(now)]
            if not admitted:
                soon = min(backend.breaker.retry_in(now) for backend in backends)
                names = " and ".join(backend.title for backend in backends)
                raise BackendsHeldBack(f"{names} failed of late and is left alone for {soon:.0f} s more.", soon)
            free = {backend.name: backend for backend in admitted if backend.has_room}
            if free:
                chosen = free[self._chooser.choose([backend.candidate() for backend in free.values()])]
                return chosen, chosen.take()
            # One that is left alone may be the next with room.
            pauses = [pause for backend in backends if (pause := backend.breaker.retry_in(now)) > 0]
            self._freed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pauses, default=None)):
                    await self._freed.wait()


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and asyncio.get_running_loop().time() >= deadline

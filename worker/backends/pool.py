"""The servers of a model, of which each request gets one, and another where that one fails before it has answered."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from time import monotonic
from typing import Any

from broker.errors import AttemptTimeout, BackendsHeldBack, EngineError, EngineInputError
from broker.fallback import others_may
from config.upstreams import Balance
from worker.backends.backend import Backend
from worker.backends.breaker import Ticket
from worker.backends.choice import Chooser
from worker.engines.base import Chunk, Result

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
        # For requests that another server has failed, which take no turn from those that come for the first time.
        self._chooser_again = Chooser(balance)
        self._freed = asyncio.Event()

    async def close(self) -> None:
        await asyncio.gather(*(backend.close() for backend in self.backends))

    async def run(
        self, task: str, payload: Mapping[str, Any], timeout: float | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """``payload`` may name a server by ``modelKey``, and by ``upstream_model`` a model that is not the entry's own.
        ``timeout``: seconds for the whole answer. Raises as ``Upstream.run``, BackendsHeldBack, AttemptTimeout, and
        EngineInputError ``unknown_backend``."""
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        left = self._eligible(payload)
        failures: list[EngineError] = []
        route: list[Mapping[str, Any]] = []
        while True:
            backend, ticket = await (
                self._another(left, deadline, failures) if failures else self._take(left, deadline)
            )
            model = payload.get("upstream_model") or backend.model or self._model
            answers = False
            try:
                async with aclosing(backend.run(ticket, task, model, payload, deadline)) as chunks:
                    async for chunk in chunks:
                        if not answers:
                            answers = True
                            if ticket.probe:
                                self._freed.set()  # the others may go there now
                        yield self._with(chunk, route, backend)
                return
            except EngineError as error:
                route.append({"name": backend.name, "code": error.code, "message": error.message})
                if len(self.backends) > 1:
                    error.details["backends"] = list(route)
                left = [other for other in left if other is not backend]
                failures.append(error)
                if answers or not others_may(error.code, error.details.get("status"), permanent=error.permanent):
                    raise
                if not _any_admits(left):
                    raise _verdict(failures, left) from None
            finally:
                self._freed.set()

    def _with(self, chunk: Chunk, route: Sequence[Mapping[str, Any]], backend: Backend) -> Chunk:
        """Of several servers the result says which were asked."""
        if isinstance(chunk, Result) and len(self.backends) > 1:
            return replace(chunk, backends=[*route, {"name": backend.name}])
        return chunk

    def _eligible(self, payload: Mapping[str, Any]) -> list[Backend]:
        wanted, model = payload.get("modelKey"), payload.get("upstream_model")
        found = [backend for backend in self.backends if wanted in (None, backend.name)]
        if not found:
            names = ", ".join(backend.name for backend in self.backends)
            raise EngineInputError(f"{self._title} has no backend {wanted!r}, but {names}.", code="unknown_backend")
        # Where none of them lists it any more, the server itself has to say so.
        return [backend for backend in found if model in backend.listed] or found

    async def _another(
        self, left: Sequence[Backend], deadline: float | None, failures: Sequence[EngineError]
    ) -> tuple[Backend, Ticket]:
        """After a pause. Where there is none in the end, raises what is to be told of ``failures``, which says more."""
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.sleep(pause(len(failures)))
            taken = await self._take(left, deadline, again=True)
        except (TimeoutError, AttemptTimeout, BackendsHeldBack):
            raise _verdict(failures, left) from None
        log.warning("another server of %s is asked: %s", self._title, failures[-1].message)
        return taken

    async def _take(
        self, backends: Sequence[Backend], deadline: float | None, *, again: bool = False
    ) -> tuple[Backend, Ticket]:
        """Waits for room. ``again``: another server has failed the request. Raises BackendsHeldBack where all are left
        alone, AttemptTimeout where the request has no time to wait any more."""
        chooser = self._chooser_again if again else self._chooser
        while True:
            now = monotonic()
            pauses = [backend.breaker.retry_in(now) for backend in backends]
            if all(pauses):
                raise _held_back(backends, min(pauses))
            if _is_over(deadline):
                raise AttemptTimeout(f"{_names(backends)}: there was no room within the time that the request has.")
            free = {backend.name: backend for backend in backends if backend.has_room}
            if free:
                chosen = free[chooser.choose([backend.candidate() for backend in free.values()])]
                return chosen, chosen.take()
            await self._room(deadline, [pause for pause in pauses if pause])

    async def _room(self, deadline: float | None, pauses: Sequence[float]) -> None:
        """Waits until there may be some: one that is left alone for one of ``pauses`` may be the next that has it."""
        self._freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline), asyncio.timeout(min(pauses, default=None)):
                await self._freed.wait()


def _names(backends: Sequence[Backend]) -> str:
    return " and ".join(backend.title for backend in backends)


def _any_admits(backends: Sequence[Backend]) -> bool:
    return any(backend.breaker.admits(monotonic()) for backend in backends)


def _held_back(backends: Sequence[Backend], soon: float) -> BackendsHeldBack:
    told = f"{_names(backends)} failed of late and is left alone for {soon:.0f} s more."
    return BackendsHeldBack(told, soon)


def _verdict(failures: Sequence[EngineError], left: Sequence[Backend]) -> EngineError:
    """What is to be told of an attempt that several servers have failed: ``left`` are those that were not asked. What
    one of them will not do for good, such as for its key, another may do in the next attempt."""
    passing = [error for error in failures if not error.permanent]
    if passing:
        told = passing[-1]
    elif left and not _any_admits(left):
        told = _held_back(left, min(backend.breaker.retry_in(monotonic()) for backend in left))
    else:
        told = failures[-1]
    if "backends" in failures[-1].details:
        told.details["backends"] = failures[-1].details["backends"]
    return told


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and asyncio.get_running_loop().time() >= deadline

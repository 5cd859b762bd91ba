"""Keeps one engine as it is wanted: starts it, starts it again when it dies, and gives up when it cannot be started."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from broker.cancellation import cancel_all
from broker.desired import Desired
from broker.errors import EngineError
from worker.engine_state import EngineState, Lifecycle
from worker.engines.base import Engine
from worker.reconciler import Actual

log = logging.getLogger(__name__)

Death = Callable[[str, str], Awaitable[None]]


@runtime_checkable
class Mortal(Protocol):
    """An engine with processes of its own, which may die."""

    async def until_death(self) -> str:
        """Returns how it ended. Only for one that has started."""


class EngineHost:
    """The engine of the model ``name`` on this worker.

    ``on_change`` is called after each change of state. ``on_death`` is told the model and the reason of each death,
    before the engine starts again.
    """

    def __init__(self, name: str, engine: Engine, on_change: Callable[[], None], on_death: Death) -> None:
        self.name = name
        self.engine = engine
        self._on_change = on_change
        self._on_death = on_death
        self.version = 0
        """Of the Desired that was last acted on, see ``worker.reconciler``."""
        self._life = Lifecycle()
        self._wanted = True
        self._backing_off = False
        self._restarts = 0
        self._resolution: str | None = None
        self._word = asyncio.Event()

    @property
    def state(self) -> EngineState:
        return self._life.state

    @property
    def since(self) -> datetime:
        return self._life.since

    @property
    def reason(self) -> str:
        """Why it is not ready; empty where there is nothing to say."""
        return self._life.reason

    @property
    def ready(self) -> bool:
        return self._life.state is EngineState.READY

    def actual(self) -> Actual:
        return Actual(
            self._life.state,
            version=self.version,
            restarts=self._restarts,
            resolution=self._resolution,
            backing_off=self._backing_off,
        )

    def start(self, desired: Desired) -> None:
        """Has it started under what is desired now."""
        self._restarts, self._resolution = desired.restarts, desired.resolution
        self.want(True)

    def drain(self) -> None:
        """Nothing new from now on. Whoever says so stops it when what runs has ended."""
        self._to(EngineState.DRAINING)

    def want(self, wanted: bool) -> None:
        """An operator's or the planner's word. To want what has failed is to try it again."""
        self._wanted = wanted
        if self._life.state is EngineState.FAILED:
            self._to(EngineState.STOPPED)
        self._word.set()
        self._word = asyncio.Event()

    async def keep(self) -> None:
        """Until cancelled; the engine is stopped then by whoever cancels."""
        while True:
            if not self._wanted or self._life.state is EngineState.FAILED:
                await self._word.wait()
            elif await self._start():
                await self._serve()

    async def _start(self) -> bool:
        self._to(EngineState.STARTING)
        start = asyncio.create_task(self.engine.start())
        try:
            while self._wanted and not start.done():
                await self._word_or(start)
        finally:
            await cancel_all([start])
        if start.cancelled():
            await self._stop()
            return False
        try:
            start.result()
        except EngineError as error:
            await self._back_off(error)
            return False
        self._to(EngineState.READY)
        return True

    async def _back_off(self, error: EngineError) -> None:
        pause = self._life.start_failed(error.message)
        self._backing_off = pause is not None
        log.warning("model %s is not served here: %s", self.name, error.message)
        self._on_change()
        if pause is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._word.wait()
            self._backing_off = False

    async def _stop(self) -> None:
        self._to(EngineState.STOPPING)
        await self.engine.stop()
        self._to(EngineState.STOPPED)

    async def _serve(self) -> None:
        """Until it has died or is no more wanted."""
        death = asyncio.create_task(_death_of(self.engine))
        try:
            while self._wanted and not death.done():
                await self._word_or(death)
        finally:
            await cancel_all([death])
        if death.cancelled():
            await self._stop()
        else:
            await self._died(death.result())

    async def _word_or(self, task: asyncio.Task[Any]) -> None:
        word = asyncio.create_task(self._word.wait())
        try:
            await asyncio.wait({task, word}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all([word])

    async def _died(self, reason: str) -> None:
        log.error("the engine of %s died: %s", self.name, reason)
        self._to(EngineState.STOPPED, reason)
        await self._on_death(self.name, reason)

    def _to(self, state: EngineState, reason: str = "") -> None:
        self._life.to(state, reason)
        self._on_change()


async def _death_of(engine: Engine) -> str:
    if isinstance(engine, Mortal):
        return await engine.until_death()
    await asyncio.Event().wait()  # it has no process that could die
    raise AssertionError

"""Has one engine do what its worker decided, one thing at a time, and says what came of it.

Each command changes the state before it returns, so that nobody takes an engine for ready that is not any more; the
work behind it goes on by itself. What comes next is not decided here but by ``worker.reconciler``.
"""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Protocol, runtime_checkable

from broker.cancellation import cancel_all
from broker.desired import Desired
from broker.errors import EngineError
from broker.measurements import Measurement
from broker.registry import ModelState
from worker.engine_condition import NOT_LOADED, Condition, examine
from worker.engine_state import LOADED, EngineState, Lifecycle
from worker.engines.base import Engine, Loadable, Modal, Remote
from worker.gpus import HOST
from worker.reconciler import Actual

log = logging.getLogger(__name__)

# What is said of an engine that takes memory until it has been asked whether this machine can run it.
UNKNOWN = "it is still being found out whether this machine can run it"
# A start is not shown as done before it is.
_ALMOST = 0.95
# Code of an engine's error: its memory is taken by others just now.
_NO_ROOM = "gpu_memory_short"
# Seconds until it is tried again.
_AGAIN = 5.0
# What an engine holds may grow by this share without being noted again.
_GROWTH = 1.02


@runtime_checkable
class Mortal(Protocol):
    """An engine with processes of its own, which may die."""

    async def until_death(self) -> str:
        """Returns how it ended. Only for one that has started."""


@runtime_checkable
class Bounded(Protocol):
    """An engine that takes no more runs at once than it was started for."""

    max_concurrent: int
    """Of the next start."""


class Listener(Protocol):
    """Who is told of what happens to an engine. All methods return at once."""

    def changed(self) -> None:
        """Of its state."""

    def moved(self) -> None:
        """Its start got further."""

    def died(self, model: str, reason: str) -> None: ...

    def start_failed(self, model: str, reason: str, *, given_up: bool) -> None: ...

    def measured(self, model: str, measured: Measurement) -> None:
        """Only some of it, maybe."""


class EngineHost:
    """The engine of the model ``name`` on this worker. It is stopped at first."""

    def __init__(self, name: str, engine: Engine, listener: Listener) -> None:
        self.name = name
        self.engine = engine
        self.loadable = engine if isinstance(engine, Loadable) else None
        """The engine, where it takes memory."""
        self._listener = listener
        self.version = 0
        """Of the Desired that was last acted on, see ``worker.reconciler``."""
        self._life = Lifecycle()
        self._inability = None if self.loadable is None else UNKNOWN
        self._gpus: tuple[str, ...] = ()
        self._restarts = 0
        self._resolution: str | None = None
        self._due = 0.0
        self._trouble = ""
        self._last_error: str | None = None
        self._phase = ""
        self._began = 0.0
        self._condition = NOT_LOADED
        self._noted = 0
        self._operation: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def state(self) -> EngineState:
        return self._life.state

    @property
    def ready(self) -> bool:
        return self._life.state is EngineState.READY

    @property
    def resolution(self) -> str | None:
        """Of the Desired under which it was last started."""
        return self._resolution

    @property
    def busy(self) -> bool:
        return self._operation is not None and not self._operation.done()

    def actual(self, *, idle: bool = False, limit: float = float("inf")) -> Actual:
        """``idle``: no job runs on it. ``limit``: seconds that a drain may take."""
        drained_for = (datetime.now(UTC) - self._life.since).total_seconds()
        return Actual(
            self._life.state,
            version=self.version,
            restarts=self._restarts,
            resolution=self._resolution,
            can_sleep=self.loadable is not None,
            sleep_frees=self.loadable is not None and self.loadable.can_sleep,
            waits=monotonic() < self._due,
            unable=self._inability is not None,
            busy=self.busy,
            idle=idle,
            overdue=drained_for >= limit,
        )

    # Commands.

    def start(self, desired: Desired, gpus: Sequence[str] = (), max_concurrent: int = 1) -> None:
        """From ``stopped``: under what is desired now, on the devices of those uuids, for so many runs at once."""
        self._restarts, self._resolution, self._gpus = desired.restarts, desired.resolution, tuple(gpus)
        if isinstance(self.engine, Bounded):
            self.engine.max_concurrent = max_concurrent
        if isinstance(self.engine, Modal):
            self.engine.resolution = desired.resolution
        trouble, self._trouble = self._trouble, ""
        self._to(EngineState.STARTING, trouble)
        self._begin(self._start())

    def drain(self) -> None:
        """From ``ready``: nothing new from now on. What comes then is another command."""
        self._to(EngineState.DRAINING)

    def stop(self) -> None:
        """From any state in which there is something to stop: whatever is under way ends."""
        under_way = self._operation
        self._to(EngineState.STOPPING)
        self._begin(self._stop(under_way))

    def sleep(self) -> None:
        """From ``draining``, when nothing runs."""
        self._begin(self._sleep())

    def wake(self) -> None:
        """From ``sleeping``."""
        self._in_phase("waking")
        self._begin(self._wake())

    def reset(self) -> None:
        """From ``failed``: it may be started again."""
        self._to(EngineState.STOPPED)

    async def look(self) -> None:
        """Asks how the engine is, and of a stopped one whether this machine can run it."""
        engine, since = self.loadable, self._life.since
        if engine is None or self.busy:
            return
        if self._life.state is EngineState.STOPPED:
            inability = await engine.unable()
            if since == self._life.since and inability != self._inability:
                self._inability = inability
                self._listener.changed()
        elif self._life.state in LOADED:
            condition = await examine(self.name, engine, self._condition)
            if since == self._life.since:
                self._is_in(condition)

    async def close(self) -> None:
        """Ends the engine and all that is under way."""
        await cancel_all([task for task in (self._operation, self._watch) if task is not None])
        await self._failure_of(self.engine.stop())

    # What is under way.

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._began = monotonic()
        self._operation = asyncio.create_task(work)
        # What was decided while it was under way may have waited for its end.
        self._operation.add_done_callback(lambda _: self._listener.changed())

    async def _start(self) -> None:
        if self.loadable is not None:
            self.loadable.gpus = [gpu for gpu in self._gpus if not gpu.startswith(HOST)]
            self.loadable.on_phase = self._in_phase
            self._inability = await self.loadable.unable()
            if self._inability is not None:
                self._to(EngineState.STOPPED)
                return
        failure = await self._failure_of(self.engine.start())
        if failure is not None and failure.code == _NO_ROOM:
            self._to(EngineState.STOPPED)
            self._waits_for_room(failure.message)
            return
        if failure is not None:
            self._back_off(failure.message)
            return
        seconds = monotonic() - self._began
        self._watch = asyncio.create_task(self._await_death())
        if self.loadable is not None:
            self._condition = await examine(self.name, self.loadable)
        self._to(EngineState.READY)
        if self.loadable is not None:
            self._listener.measured(self.name, Measurement(load_seconds=seconds))
            self._note_memory()

    def _back_off(self, reason: str) -> None:
        self._last_error = reason
        pause = self._life.start_failed(reason)
        self._due = 0.0 if pause is None else monotonic() + pause
        log.warning("model %s is not served here: %s", self.name, reason)
        self._listener.start_failed(self.name, reason, given_up=pause is None)
        self._settle()

    async def _stop(self, under_way: asyncio.Task[None] | None) -> None:
        if under_way is not None:
            await cancel_all([under_way])
        await self._end()

    async def _end(self, reason: str = "") -> None:
        """From ``stopping``."""
        if self._watch is not None:
            await cancel_all([self._watch])
        failure = await self._failure_of(self.engine.stop())
        if failure is not None:
            self._last_error = reason = failure.message
        self._to(EngineState.STOPPED, reason)

    async def _sleep(self) -> None:
        engine = self._loaded()
        if failure := await self._failure_of(engine.sleep()):
            await self._give_up(f"it did not sleep and was stopped: {failure.message}")
            return
        seconds = monotonic() - self._began
        self._condition = await examine(self.name, engine)
        self._to(EngineState.SLEEPING)
        host = None if self._condition.footprint is None else self._condition.footprint.host
        self._listener.measured(self.name, Measurement(sleep_seconds=seconds, host_bytes=host))

    async def _wake(self) -> None:
        engine = self._loaded()
        failure = await self._failure_of(engine.wake())
        if failure is not None and failure.code == _NO_ROOM:
            self._waits_for_room(failure.message)
            return
        if failure is not None:
            await self._give_up(f"it did not wake and starts anew: {failure.message}")
            return
        seconds = monotonic() - self._began
        self._condition = await examine(self.name, engine)
        self._to(EngineState.READY)
        self._listener.measured(self.name, Measurement(wake_seconds=seconds))

    def _waits_for_room(self, reason: str) -> None:
        """Others hold its memory, and nothing is wrong with it: it stays as it is, and no try is counted."""
        self._last_error = self._life.reason = reason
        self._due = monotonic() + _AGAIN
        self._settle()

    def _loaded(self) -> Loadable:
        assert self.loadable is not None, f"{self.name} cannot sleep"
        return self.loadable

    async def _give_up(self, reason: str) -> None:
        self._fails(reason)
        self._to(EngineState.STOPPING, reason)
        await self._end(reason)

    def _fails(self, reason: str) -> None:
        log.error("the engine of %s: %s", self.name, reason)
        self._last_error = self._trouble = reason

    async def _await_death(self) -> None:
        reason = await _death_of(self.engine)
        if self._life.state is EngineState.STOPPING:
            return  # it was told to end, and says so itself
        if self._operation is not None and self.busy:
            self._to(EngineState.STOPPING, reason)  # nobody gives it anything to do in the meantime
            await cancel_all([self._operation])
        self._fails(reason)
        self._to(EngineState.STOPPED, reason)
        self._listener.died(self.name, reason)

    async def _failure_of(self, work: Awaitable[None]) -> EngineError | None:
        """Why the engine could not do it."""
        try:
            await work
        except EngineError as error:
            return error
        except Exception as error:
            # Whatever an engine raises that it should not: the model must not hang on our bug.
            log.exception("the engine of %s raised an unexpected error", self.name)
            return EngineError(f"{type(error).__name__}: {error}")
        return None

    def _to(self, state: EngineState, reason: str = "") -> None:
        self._life.to(state, reason)
        self._settle()

    def _settle(self) -> None:
        self._phase = ""
        if self._life.state in (EngineState.STOPPED, EngineState.FAILED):
            self._condition = NOT_LOADED
        self._listener.changed()

    def _in_phase(self, phase: str) -> None:
        self._phase = str(phase)
        self._listener.moved()

    # What is measured and told.

    def _is_in(self, condition: Condition) -> None:
        news = condition.healthy != self._condition.healthy
        self._condition = condition
        if self._life.state is EngineState.READY:
            self._note_memory()
        if news:
            self._listener.moved()

    def _note_memory(self) -> None:
        """Work may have it take more than it held when it was loaded."""
        memory = self._condition.memory
        if memory is not None and memory > self._noted * _GROWTH:
            self._noted = memory
            self._listener.measured(self.name, Measurement(memory_bytes=memory))

    def told(self, known: Measurement, need: int | None) -> ModelState:
        """``known``: what has been measured of the model. ``need``: bytes on each of its devices."""
        life, engine = self._life, self.loadable
        stopped = life.state is EngineState.STOPPED
        state = ModelState(
            self.ready,
            self._inability if stopped and self._inability is not None else life.state.value,
            reason=life.reason,
            since=life.since,
            version=self.version,
            last_error=self._last_error,
            resolution=None if stopped else self._resolution,
            phase=self._phase,
            progress=self._progress(known),
        )
        if isinstance(self.engine, Remote):
            return replace(state, backends=tuple(self.engine.backends()), listed=tuple(self.engine.listed()))
        if engine is None:
            return state
        return replace(
            state,
            managed=True,
            address=engine.address,
            healthy=self._condition.healthy,
            gpus=self._gpus,
            gpu_count=engine.gpu_count,
            memory_bytes=self._condition.memory,
            need_bytes=need,
            can_sleep=engine.can_sleep,
            host_bytes=_host_need(known, need, engine),
            load_seconds=known.load_seconds,
            sleep_seconds=known.sleep_seconds,
            wake_seconds=known.wake_seconds,
        )

    def _progress(self, known: Measurement) -> float | None:
        """Of a start or a wake, by the time that the last one took."""
        state = self._life.state
        whole = {EngineState.STARTING: known.load_seconds, EngineState.SLEEPING: known.wake_seconds}.get(state)
        if not whole or not self.busy:
            return None
        return round(min((monotonic() - self._began) / whole, _ALMOST), 3)


def _host_need(known: Measurement, need: int | None, engine: Loadable) -> int:
    """Bytes of main memory asleep. Until it is measured all that it holds is taken for what it has to keep."""
    if not engine.can_sleep:
        return 0
    return (need or 0) * engine.gpu_count if known.host_bytes is None else known.host_bytes


async def _death_of(engine: Engine) -> str:
    if isinstance(engine, Mortal):
        return await engine.until_death()
    await asyncio.Event().wait()  # it has no process that could die
    raise AssertionError

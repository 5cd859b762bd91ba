"""Engines that do what a test tells them, and what their hosts tell of them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from broker.desired import Desired
from broker.errors import EngineError, EngineUnavailable
from broker.measurements import Measurement
from tests.conditions import eventually
from worker.engine_host import EngineHost
from worker.engine_state import EngineState
from worker.engines.base import Chunk, Footprint, Request

GPU = "GPU-1"


class Puppet:
    """Starts as often as it may, and dies when it is told to."""

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails
        self.calls: list[str] = []
        self.max_concurrent = 0
        self._death: asyncio.Future[str] | None = None

    def die(self, reason: str) -> None:
        assert self._death is not None
        self._death.set_result(reason)

    async def start(self) -> None:
        self.calls.append("start")
        if self.fails:
            self.fails -= 1
            raise EngineUnavailable("no GPU on this machine")
        self._death = asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        self.calls.append("stop")

    async def until_death(self) -> str:
        assert self._death is not None
        return await self._death

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise NotImplementedError


class Sleeper(Puppet):
    """Takes memory and sleeps. ``gate``: what it waits for in the midst of each call, when it is not set."""

    gpu_count = 1
    can_sleep = True
    address = "/run/engine.sock"

    def __init__(self, fails: int = 0) -> None:
        super().__init__(fails)
        self.gpus: Sequence[str] = ()
        self.on_phase: Callable[[str], None] = lambda _: None
        self.inability: str | None = None
        self.holds = Footprint(1000, 10)
        self.well = True
        self.failure: Exception | None = None
        self.refusal: EngineError | None = None
        """Of starts, as ``failure`` is of sleeps and wakes."""
        self.gate = asyncio.Event()
        self.gate.set()

    async def unable(self) -> str | None:
        return self.inability

    def need(self, total: int) -> int | None:
        return None

    async def footprint(self) -> Footprint | None:
        return self.holds

    async def healthy(self) -> bool:
        return self.well

    async def start(self) -> None:
        self.on_phase("loading")
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        await super().start()

    async def sleep(self) -> None:
        await self._do("sleep")
        self.holds = Footprint(10, 700)

    async def wake(self) -> None:
        await self._do("wake")
        self.holds = Footprint(1000, 10)

    async def _do(self, name: str) -> None:
        self.calls.append(name)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure


@dataclass
class Kept:
    """An engine's host, and all that it has told."""

    engine: Any
    states: list[EngineState] = field(default_factory=list)
    deaths: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str, bool]] = field(default_factory=list)
    known: Measurement = field(default_factory=Measurement)
    phases: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host = EngineHost("model", self.engine, self)

    def changed(self) -> None:
        if not self.states or self.states[-1] is not self.host.state:
            self.states.append(self.host.state)

    def moved(self) -> None:
        self.phases.append(self.host.told(self.known, None).phase)

    def died(self, model: str, reason: str) -> None:
        self.deaths.append((model, reason))

    def start_failed(self, model: str, reason: str, *, given_up: bool) -> None:
        self.failed.append((model, reason, given_up))

    def measured(self, model: str, measured: Measurement) -> None:
        self.known = self.known.updated(measured)

    def start(self) -> None:
        self.host.start(Desired("model"), ["host:here", GPU], max_concurrent=7)

    async def becomes(self, state: EngineState) -> None:
        async def there() -> bool:
            return self.host.state is state and not self.host.busy

        await eventually(there)

    async def gets_ready(self) -> None:
        self.start()
        await self.becomes(EngineState.READY)

    async def falls_asleep(self) -> None:
        await self.gets_ready()
        self.host.drain()
        self.host.sleep()
        await self.becomes(EngineState.SLEEPING)

    async def stops(self) -> None:
        self.host.stop()
        await self.becomes(EngineState.STOPPED)


@asynccontextmanager
async def kept(engine: Puppet) -> AsyncIterator[Kept]:
    it = Kept(engine)
    yield it
    await it.host.close()

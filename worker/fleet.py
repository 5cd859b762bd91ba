"""The engines of a worker: they are made what operators want and what the plan orders, and looked after."""

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from pymongo.errors import PyMongoError

from broker.broker import Broker
from broker.cancellation import cancel_all, together
from broker.desired import Desired, Wanted
from broker.lanes import Resolutions
from broker.measurements import Measurement
from broker.plans import Order
from broker.registry import DeviceState, ModelState
from config import SimulatorSettings, VllmSettings
from worker.engine_host import EngineHost
from worker.engine_state import LOADED, EngineState
from worker.engines.base import Engine, Loadable
from worker.gpus import HOST, Gpus, main_memory
from worker.modes import Modes
from worker.reconciler import Action, action_for

log = logging.getLogger(__name__)

# Seconds between two looks at how engines are. Whether a stopped one could run here may cost more to find out.
HEALTH = 3.0
ABILITY = 10.0
# Seconds for what is still to be written down at the end.
LAST_WRITES = 2.0
# Seconds between two looks at what other workers have measured.
MEMORY = 10.0


class Jobs(Protocol):
    """What runs on the engines."""

    def busy(self, model: str) -> bool:
        """Whether a job of the model has begun and not ended."""

    def hand_back(self, model: str) -> None:
        """Stops the jobs of the model; they are run again, uncharged."""


class Fleet:
    """``engines`` by model name, of the worker that ``broker`` was opened for.

    ``news`` is set when there is something to tell the others before the next heartbeat.
    """

    def __init__(self, broker: Broker, engines: Mapping[str, Engine], jobs: Jobs) -> None:
        assert broker.worker is not None
        self.news = asyncio.Event()
        self._worker = broker.worker
        self._broker = broker
        self._jobs = jobs
        self._hosts = {name: EngineHost(name, engine, self) for name, engine in engines.items()}
        self._modes = Modes(broker, jobs.busy)
        self._gpus = Gpus()
        self._devices: Sequence[DeviceState] = ()
        self._remembered: Mapping[str, Measurement] = {}
        self._measured: dict[str, Measurement] = {}
        self._desired: Mapping[str, Desired] | None = None
        self._orders: Mapping[str, Order] = {}
        self._look = asyncio.Event()
        self._retires = False
        self._writes: set[asyncio.Task[None]] = set()

    def engine(self, model: str) -> Engine:
        return self._hosts[model].engine

    def is_ready(self, model: str) -> bool:
        """Only then may a job be begun. What has begun keeps the engine as it is until it has ended."""
        host = self._hosts.get(model)
        return host is not None and host.ready

    def ready(self) -> list[str]:
        return [name for name, host in self._hosts.items() if host.ready]

    def resolutions(self, model: str) -> Resolutions:
        """Those that jobs may ask for that are to be run here, see ``broker.lanes``."""
        return self._modes.accepted(model)

    def job_ended(self, model: str) -> None:
        if model in self._hosts and self._hosts[model].state is EngineState.DRAINING:
            self._look.set()

    def retire(self) -> None:
        """The worker drains: nothing is started any more."""
        self._retires = True

    async def run(self) -> None:
        """Until cancelled; ``close`` ends the engines then."""
        await together(
            self._look_after(ABILITY, frozenset({EngineState.STOPPED})),
            self._look_after(HEALTH, LOADED),
            self._remember(),
            self._reconcile(),
        )

    async def close(self) -> None:
        await asyncio.gather(*(host.close() for host in self._hosts.values()))
        if self._writes:
            await asyncio.wait(self._writes, timeout=LAST_WRITES)
        await cancel_all(self._writes)

    # What is told of them.

    def states(self) -> dict[str, ModelState]:
        return {name: self._told(host) for name, host in self._hosts.items()}

    def _told(self, host: EngineHost) -> ModelState:
        known = self._known(host.name)
        if host.loadable is None:
            return host.told(known, None)
        told = host.told(known, self._need(host.name, host.loadable, known))
        if host.state is not EngineState.STOPPED and (mode := self._modes.chosen(host.name)):
            told = replace(told, resolution=mode)
        desired = (self._desired or {}).get(host.name, Desired(host.name))
        kept_away = desired.wanted in (Wanted.STOPPED, Wanted.SLEEPING)
        return replace(told, loadable=told.able and host.state is not EngineState.FAILED and not kept_away)

    def _known(self, model: str) -> Measurement:
        """What was measured here goes before what other workers have measured."""
        nothing = Measurement()
        return self._remembered.get(model, nothing).updated(self._measured.get(model, nothing))

    def _need(self, model: str, engine: Loadable, known: Measurement) -> int | None:
        """Bytes on each of its devices: as configured, else as measured, else as the engine reckons."""
        settings = self._broker.models[model]
        configured = settings.memory if isinstance(settings, SimulatorSettings | VllmSettings) else None
        if (need := configured or known.memory_bytes) is not None:
            return need
        gpus = [device.total for device in self._devices if not device.uuid.startswith(HOST)]
        return engine.need(max(gpus)) if gpus else None

    async def devices(self) -> Sequence[DeviceState]:
        """As they are now: the GPUs, or the main memory of a machine without one."""
        # The driver may take its time.
        found = await asyncio.to_thread(self._gpus.devices)
        self._devices = found or [main_memory(self._broker.settings.auto_switch.host_memory)]
        return self._devices

    @property
    def host_memory(self) -> int:
        """Bytes of main memory that sleeping models may fill."""
        return main_memory(self._broker.settings.auto_switch.host_memory).total

    # What they are to be.

    async def _reconcile(self) -> None:
        while True:
            self._look.clear()
            await self._read()
            if self._desired is not None:
                for host in self._hosts.values():
                    desired = self._desired.get(host.name, Desired(host.name))
                    self._act(host, await self._modes.desired(host, desired))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._broker.settings.queue.poll_interval):
                    await self._look.wait()

    async def _read(self) -> None:
        """A database that is away changes nothing: what was known last holds."""
        try:
            self._orders = await self._broker.plans.orders_to(self._worker)
            self._desired = await self._broker.desired.all()
        except PyMongoError as error:
            log.warning("cannot see what is desired: %s", error)

    def _act(self, host: EngineHost, desired: Desired) -> None:
        order = self._orders.get(host.name)
        idle = host.state is EngineState.DRAINING and not self._jobs.busy(host.name)
        actual = host.actual(idle=idle, limit=self._broker.settings.queue.drain_timeout)
        action = action_for(desired, actual, _automatic(host, order))
        # Whoever sees the version takes the state for the answer to it: nothing is awaited between the two.
        host.version = desired.version
        if action is not None:
            self._do(action, host, desired, order)

    def _do(self, action: Action, host: EngineHost, desired: Desired, order: Order | None) -> None:
        if self._retires and action in (Action.START, Action.WAKE):
            return
        log.info("model %s is %s: %s", host.name, host.state, action)
        match action:
            case Action.START:
                gpus = () if order is None else order.gpus
                host.start(desired, gpus, self._broker.models[host.name].max_concurrent)
            case Action.DRAIN:
                host.drain()
            case Action.STOP:
                self._jobs.hand_back(host.name)
                host.stop()
            case Action.SLEEP:
                host.sleep()
            case Action.WAKE:
                host.wake()
            case Action.RESET:
                host.reset()

    async def _look_after(self, pause: float, states: frozenset[EngineState]) -> None:
        while True:
            hosts = [host for host in self._hosts.values() if host.state in states]
            # At the same time: an engine that hangs keeps nobody from looking at the others.
            for failure in await asyncio.gather(*(host.look() for host in hosts), return_exceptions=True):
                if failure is not None:
                    log.error("an engine could not be looked at", exc_info=failure)
            await asyncio.sleep(pause)

    async def _remember(self) -> None:
        while True:
            try:
                self._remembered = await self._broker.measurements.all()
            except PyMongoError as error:
                log.warning("cannot see what has been measured: %s", error)
            await asyncio.sleep(MEMORY)

    # What happens to them. See ``worker.engine_host.Listener``.

    def changed(self) -> None:
        """Everybody is told at once, what waits for it is claimed, and what comes next is done."""
        self.news.set()
        self._look.set()
        self._broker.feed.claimable.set()

    def moved(self) -> None:
        self.news.set()

    def died(self, model: str, reason: str) -> None:
        entry = self._broker.crashes.add_engine_death(self._worker, model, reason)
        self._write(entry, f"the death of the engine of {model} is not in the crash log")

    def start_failed(self, model: str, reason: str, *, given_up: bool) -> None:
        entry = self._broker.crashes.add_failed_start(self._worker, model, reason, given_up=given_up)
        self._write(entry, f"the failed start of {model} is not in the crash log")

    def measured(self, model: str, measured: Measurement) -> None:
        self._measured[model] = self._measured.get(model, Measurement()).updated(measured)
        self._write(self._broker.measurements.note(model, measured), f"what was measured of {model} is not remembered")

    def _write(self, work: Awaitable[None], otherwise: str) -> None:
        task = asyncio.create_task(_written(work, otherwise))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)


def _automatic(host: EngineHost, order: Order | None) -> Wanted:
    """What the engine is to be where operators leave it to others: one that takes memory runs by order only."""
    if host.loadable is None:
        return Wanted.RUNNING
    return Wanted.STOPPED if order is None else order.wanted


async def _written(work: Awaitable[None], otherwise: str) -> None:
    try:
        await work
    except PyMongoError as error:
        log.warning("%s: %s", otherwise, error)

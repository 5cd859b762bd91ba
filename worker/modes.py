"""In which resolution mode an engine reads documents: it has one at a time, chosen when it starts.

Jobs may ask for a mode. A worker claims those that ask for its engine's mode or, where that is the usual one, for none,
and starts its engine anew in another mode when that is what waits and nothing else is to be done, or when it has waited
too long.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, get_args

from pymongo.errors import PyMongoError

from broker.broker import Broker
from broker.desired import Desired
from broker.registry import Worker
from config import Resolution, VllmSettings
from worker.engine_state import EngineState
from worker.engines.base import Engine, Modal

# Seconds for which one of several workers that could take another mode is let go first.
TURN = 3.0
# In these another mode can be chosen. An engine that is under way is let come to rest first.
_AT_REST = frozenset({EngineState.STOPPED, EngineState.READY})


@dataclass(frozen=True, slots=True)
class Waiting:
    """Jobs that wait for a mode. ``longest``: seconds that the first of them has waited."""

    longest: float


class Host(Protocol):
    """An engine on this worker, see ``worker.engine_host``."""

    name: str
    engine: Engine

    @property
    def state(self) -> EngineState: ...


def next_mode(
    current: str,
    waiting: Mapping[str, Waiting],
    *,
    busy: bool,
    elsewhere: frozenset[str],
    bound: float,
    patience: float = 0.0,
) -> str:
    """The mode to be in.

    ``busy``: jobs run in the current one. ``elsewhere``: modes that other workers are in, who take what waits for them.
    ``bound``: seconds after which those who wait for another mode go before those who wait for the current one.
    ``patience``: seconds for which it is left to other workers to take another mode.
    """
    others = {mode: jobs.longest for mode, jobs in waiting.items() if mode != current and mode not in elsewhere}
    others = {mode: longest for mode, longest in others.items() if longest >= patience}
    if not others:
        return current
    first = max(others, key=lambda mode: others[mode])
    idle = not busy and current not in waiting
    return first if idle or others[first] >= bound else current


def usual_mode(settings: VllmSettings, desired: Desired) -> str:
    """That of jobs that ask for none: the operators' last word, else the configured one."""
    return desired.resolution or settings.resolution


class Modes:
    """The modes of the engines of the worker that ``broker`` was opened for."""

    def __init__(self, broker: Broker, busy: Callable[[str], bool]) -> None:
        """``busy`` tells of a model whether jobs of it run here."""
        self._broker = broker
        self._busy = busy
        self._chosen: dict[str, str] = {}
        self._usual: dict[str, str] = {}
        self._versions: dict[str, int] = {}
        self._known: dict[str, Collection[str]] = {}

    def accepted(self, model: str) -> Sequence[str | None] | None:
        """The modes that jobs may ask for which are to be claimed, None of those that ask for none; None: any job.

        Those that ask for a mode that the model does not know are claimed, too: they are told so.
        """
        if model not in self._chosen:
            return None
        mode, unknown = self._chosen[model], set(get_args(Resolution)).difference(self._known[model])
        return [mode, *unknown, *([None] if mode == self._usual[model] else [])]

    async def desired(self, host: Host, desired: Desired) -> Desired:
        """What is desired, with the mode that the engine is to be in, where it has modes."""
        settings = self._broker.models[host.name]
        engine = host.engine
        if not isinstance(settings, VllmSettings) or not isinstance(engine, Modal) or not engine.modes:
            return desired
        self._known[host.name] = engine.modes
        usual = self._usual[host.name] = usual_mode(settings, desired)
        if self._versions.get(host.name) != desired.version:  # an operator's word goes before what was chosen for jobs
            self._versions[host.name] = desired.version
            self._chosen[host.name] = usual
        if host.state in _AT_REST:
            self._chosen[host.name] = await self._next(host.name, self._chosen[host.name], usual)
        return replace(desired, resolution=self._chosen[host.name])

    async def _next(self, model: str, current: str, usual: str) -> str:
        """A database that is away changes nothing."""
        try:
            asked = await self._broker.lanes.resolutions(model)
            waiting: dict[str, Waiting] = {}
            for mode, seconds in asked.items():
                if mode is not None and mode not in self._known[model]:
                    continue
                known = waiting.get(mode or usual, Waiting(0.0))
                waiting[mode or usual] = Waiting(max(known.longest, seconds))
            if not waiting.keys() - {current}:
                return current
            elsewhere, rank = self._others(model, await self._broker.registry.live_workers())
        except PyMongoError:
            return current
        bound, patience = self._broker.settings.auto_switch.max_swap_wait, rank * TURN
        busy = self._busy(model)
        return next_mode(current, waiting, busy=busy, elsewhere=elsewhere, bound=bound, patience=patience)

    def _others(self, model: str, workers: Iterable[Worker]) -> tuple[frozenset[str], int]:
        """The modes that others are in or are about to be in, and how many of them may change before this one does."""
        able = [worker for worker in workers if worker.id != self._broker.worker and not worker.draining]
        states = {worker.id: worker.models[model] for worker in able if model in worker.models}
        running = {key: state for key, state in states.items() if state.state in ("ready", "starting")}
        modes = frozenset(state.resolution for state in running.values() if state.resolution)
        assert self._broker.worker is not None
        return modes, sum(key < self._broker.worker for key in running)

"""In which resolution mode an engine reads documents: it has one at a time, chosen when it starts.

Jobs may ask for a mode. A worker claims those that ask for its engine's mode or, where that is the usual one, for none,
and starts its engine anew in another mode when that is what waits and nothing else is to be done, or when it has waited
too long.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
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
# While it changes its mode an engine goes through all of them; what is told of it is the mode that it will be in.
_LOADED_OR_CHANGING = frozenset({"ready", "starting", "draining", "stopping"})


class Host(Protocol):
    """An engine on this worker, see ``worker.engine_host``."""

    name: str
    engine: Engine

    @property
    def state(self) -> EngineState: ...

    @property
    def resolution(self) -> str | None:
        """That of its last start."""


def next_mode(
    current: str,
    waiting: Mapping[str, float],
    *,
    busy: bool,
    elsewhere: frozenset[str],
    bound: float,
    since: float = float("inf"),
    patience: float = 0.0,
) -> str:
    """The mode to be in.

    ``waiting``: the modes that waiting jobs ask for, and the seconds that the first of those has waited. ``busy``: jobs
    run in the current one. ``elsewhere``: modes that other workers are in, who take what waits for them. ``bound``:
    seconds after which those who wait for another mode go before those who wait for the current one, which has so long
    a turn, too. ``since``: seconds for which the engine has been in it. ``patience``: seconds for which it is left to
    other workers to take another mode.
    """
    others = {mode: waited for mode, waited in waiting.items() if mode != current and mode not in elsewhere}
    if not others:
        return current
    first = max(others, key=lambda mode: others[mode])
    idle = not busy and current not in waiting
    waited, turn = others[first] - patience, since - patience
    return first if (waited >= 0 if idle else min(waited, turn) >= bound) else current


def usual_mode(settings: VllmSettings, desired: Desired, known: Collection[str]) -> str:
    """That of jobs that ask for none: the operators' last word or the configured one, if the model knows it."""
    wanted = [mode for mode in (desired.resolution, settings.resolution) if mode is not None and mode in known]
    return wanted[0] if wanted else next(iter(known))


class Modes:
    """The modes of the engines of the worker that ``broker`` was opened for."""

    def __init__(self, broker: Broker, busy: Callable[[str], bool]) -> None:
        """``busy`` tells of a model whether jobs of it run here."""
        self._broker = broker
        self._busy = busy
        self._chosen: dict[str, str] = {}
        self._usual: dict[str, str] = {}
        self._known: dict[str, Collection[str]] = {}
        self._since: dict[str, float] = {}

    def chosen(self, model: str) -> str | None:
        """The mode that its engine is in or is to be in; None where it has none."""
        return self._chosen.get(model)

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
        model = host.name
        usual, self._known[model] = usual_mode(settings, desired, engine.modes), engine.modes
        if self._usual.get(model) != usual:  # an operator's word goes before what was chosen for jobs
            self._usual[model] = self._chosen[model] = usual
        if self._is_at_rest(host):
            self._chosen[model] = await self._next(model, self._chosen[model], usual)
        return replace(desired, resolution=self._chosen[model])

    def _is_at_rest(self, host: Host) -> bool:
        """Whether another mode may be chosen: what was chosen before is let come true first."""
        if host.state is EngineState.STOPPED:
            return host.resolution in (None, self._chosen[host.name])
        if host.state is not EngineState.READY or host.resolution != self._chosen[host.name]:
            self._since.pop(host.name, None)
            return False
        self._since.setdefault(host.name, monotonic())
        return True

    async def _next(self, model: str, current: str, usual: str) -> str:
        """A database that is away changes nothing."""
        try:
            asked = await self._broker.lanes.resolutions(model)
            waiting: dict[str, float] = {}
            for mode, seconds in asked.items():
                if mode is None or mode in self._known[model]:
                    waiting[mode or usual] = max(waiting.get(mode or usual, 0.0), seconds)
            if not waiting.keys() - {current}:
                return current
            elsewhere, rank = self._others(model, await self._broker.registry.live_workers())
        except PyMongoError:
            return current
        bound, patience = self._broker.settings.auto_switch.max_swap_wait, rank * TURN
        busy, since = self._busy(model), monotonic() - self._since.get(model, 0.0)
        return next_mode(current, waiting, busy=busy, elsewhere=elsewhere, bound=bound, since=since, patience=patience)

    def _others(self, model: str, workers: Iterable[Worker]) -> tuple[frozenset[str], int]:
        """The modes that others are in or are about to be in, and how many of them may change before this one does."""
        able = [worker for worker in workers if worker.id != self._broker.worker and not worker.draining]
        states = {worker.id: worker.models[model] for worker in able if model in worker.models}
        running = {key: state for key, state in states.items() if state.state in _LOADED_OR_CHANGING}
        modes = frozenset(state.resolution for state in running.values() if state.resolution)
        assert self._broker.worker is not None
        return modes, sum(key < self._broker.worker for key in running)

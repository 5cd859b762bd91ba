"""Which models are loaded: a pure function from a `Snapshot` to a `Plan`.

Called every second or two, and whenever an engine has changed; it keeps no state of its own. In this order:

1. What operators ask for: off is stopped, on and pinned are loaded and never yield, asleep is left alone.
2. On demand: who has waited too long for a turn comes first, then the longest queue; into free memory, else in place
   of whoever loses least by it. A replica, whose model is ready on another worker too, yields at once. An idle model
   yields once the waiting outweighs what its own clients are about to lose; a busy one only when the wait has passed
   ``max_swap_wait`` (up to twice that, if outweighed) and its gate is open: it has caught up with its queue. Without
   that gate models throw each other out before they have paid for their load.
3. By pattern: what is expected within the hour is loaded into memory that nobody needs.
4. Fill: memory that is free, and that nobody waits for, is filled in the order of the config; first with models that
   are loaded nowhere, then with second engines on other workers.

Without ``Rules.enabled`` nobody's only engine yields to demand, and nothing is loaded by pattern.

An action is only ever a first step: what yields drains by itself, and is awaited in the plans that follow.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from broker.ledger import Ledger, Spot
from broker.snapshot import FAILED, READY, SLEEPING, STARTING, Action, Kind, Model, Plan, Resident, Rules, Snapshot

_HERE = frozenset({READY, SLEEPING, STARTING})


def plan(snapshot: Snapshot) -> Plan:
    """What to do next. Never raises: what cannot be served is named in ``Plan.waiting``."""
    planning = _Planning(snapshot)
    planning.obey()
    planning.serve()
    if snapshot.rules.enabled:
        planning.prepare()
    if snapshot.rules.fill:
        planning.fill()
    return Plan(tuple(planning.actions), planning.waiting)


@dataclass(frozen=True, slots=True)
class _Victim:
    """``replica``: the model stays loaded without it."""

    model: Model
    resident: Resident
    replica: bool

    @property
    def loss(self) -> tuple[bool, bool, int, float, float]:
        """Less is evicted first: replicas, idle before busy, the shortest queue, the lowest rate, the longest idle."""
        busy = self.model.queued > 0 or self.resident.running > 0
        return not self.replica, busy, self.model.queued, self.model.rate, -self.model.idle_for

    @property
    def idle(self) -> bool:
        return self.model.queued == 0 and self.resident.running == 0


_Yields = Callable[[Model, _Victim], bool]


class _Planning:
    def __init__(self, snapshot: Snapshot) -> None:
        self.rules = snapshot.rules
        self.models = snapshot.models
        self.ledger = Ledger(snapshot)
        self.actions: list[Action] = []
        self.waiting: dict[str, str] = {}
        self._contended: set[str] = set()
        self._touched: set[tuple[str, str]] = set()

    # What operators ask for.

    def obey(self) -> None:
        for model in self.models:
            if model.queued and model.wanted in _REFUSED:
                self.waiting[model.name] = _REFUSED[model.wanted]
            if model.wanted == "off":
                for resident in model.residents:
                    if resident.state in _HERE:
                        self._dismiss(_Victim(model, resident, False), _REFUSED["off"], sleep=False)

    # On demand.

    def serve(self) -> None:
        for model in self.models:
            if model.queued and model.wanted not in _REFUSED and any(one.going for one in model.residents):
                # It wants to come back, and is to find its room.
                self._contend(model)
        for model in sorted(filter(self._lacking, self.models), key=self._turn):
            if reason := self._why_not(model):
                self.waiting[model.name] = reason
            else:
                self._place(model)

    def _turn(self, model: Model) -> tuple[bool, bool, float]:
        """First what operators hold, then who is overdue, the longest first, then the longest queue."""
        overdue = model.waited >= self.rules.max_swap_wait
        return not _held(model), not overdue, -(model.waited if overdue else model.queued)

    def _lacking(self, model: Model) -> bool:
        """It is to be loaded and is not, nor on its way. A model of which an engine is going has had its turn."""
        if any(resident.coming or resident.going for resident in model.residents):
            return False
        return _held(model) or (model.wanted == "auto" and model.queued > 0)

    def _why_not(self, model: Model) -> str | None:
        failed = {resident.worker for resident in model.residents if resident.state == FAILED}
        if not model.workers:
            return "no worker can serve it"
        if not self.ledger.has_devices(model):
            return "no worker that can serve it has a device to load it on"
        if not self.ledger.could_ever_fit(model):
            if failed:
                return "its engine failed, and an operator has to start it again"
            return f"it needs more memory than any worker has {_on(model.gpus)}"
        if not (_held(model) or self.rules.enabled or self.rules.fill):
            return _SWITCHED_OFF
        return None

    def _place(self, model: Model) -> None:
        spots = list(self.ledger.spots(model))
        if free := next((spot for spot in spots if self.ledger.free(spot)), None):
            self._load(model, free, _cause(model))
            return
        self._contend(model)
        if soon := next((spot for spot in spots if self.ledger.free_soon(spot)), None):
            self.ledger.reserve(soon)
            self.waiting[model.name] = f"{soon.worker} is making room"
        elif choice := self._cheapest(model, spots):
            spot, victims = choice
            self.ledger.reserve(spot)
            for victim in victims:
                self._dismiss(victim, f"it makes room for {model.name}: {_cause(model)}", sleep=True)
            self.waiting[model.name] = f"room is made by {', '.join(victim.model.name for victim in victims)}"
        else:
            self._wait(model, spots)

    def _contend(self, model: Model) -> None:
        """Nothing that could wait is loaded where it might go."""
        for spot in self.ledger.spots(model):
            self._contended.update(spot.devices)
        for resident in model.residents:
            self._contended.update(resident.devices)

    def _cheapest(self, model: Model, spots: Iterable[Spot]) -> tuple[Spot, list[_Victim]] | None:
        found = [(spot, victims) for spot in spots if (victims := self._victims(model, spot, self._yields)) is not None]
        return min(found, key=lambda entry: sorted((v.loss for v in entry[1]), reverse=True), default=None)

    def _wait(self, model: Model, spots: list[Spot]) -> None:
        if not (self.rules.enabled or _held(model)):
            self.waiting[model.name] = _SWITCHED_OFF
            return
        overdue = model.waited >= self.rules.max_swap_wait or _held(model)
        if overdue and spots:
            # Nobody behind it may take what becomes free there: a large model would never see enough of it at once.
            self.ledger.reserve(min(spots, key=lambda spot: -self.ledger.room(spot)))
        self.waiting[model.name] = "all that is loaded has work of its own to do first"

    # Who yields.

    def _victims(self, model: Model, spot: Spot, yields: _Yields) -> list[_Victim] | None:
        """Those who have to go so that ``model`` fits there, the least loss first; None if that cannot be."""
        chosen: list[_Victim] = []
        for uuid in spot.devices:
            missing = self.ledger.missing(spot, uuid) - _frees(chosen, uuid)
            while missing > 0:
                there = (v for v in self._on(uuid, chosen) if v.model.name != model.name and yields(model, v))
                victim = min(there, key=lambda victim: victim.loss, default=None)
                if victim is None:
                    return None
                chosen.append(victim)
                missing -= victim.resident.memory
        return self._needed(spot, chosen)

    def _needed(self, spot: Spot, chosen: list[_Victim]) -> list[_Victim]:
        """Without those whose memory a later, larger one has made superfluous."""
        for victim in sorted(chosen, key=lambda victim: victim.loss, reverse=True):
            others = [other for other in chosen if other is not victim]
            if all(self.ledger.missing(spot, uuid) <= _frees(others, uuid) for uuid in spot.devices):
                chosen = others
        return chosen

    def _on(self, uuid: str, chosen: Iterable[_Victim]) -> Iterator[_Victim]:
        """The engines there that are neither gone nor to go. Of two replicas the second one is none any more."""
        gone = self._touched | {(victim.model.name, victim.resident.worker) for victim in chosen}
        for model in self.models:
            if model.wanted in _REFUSED:
                continue
            stay = [r for r in model.residents if r.state in _HERE and (model.name, r.worker) not in gone]
            for resident in stay:
                if uuid in resident.devices:
                    replica = any(other.state == READY for other in stay if other is not resident)
                    yield _Victim(model, resident, replica)

    def _yields(self, model: Model, victim: _Victim) -> bool:
        resident = victim.resident
        if victim.replica:
            return True
        if _held(victim.model) or not (self.rules.enabled or _held(model)):
            return False
        if resident.state == SLEEPING:
            return True
        if resident.state == STARTING:
            return victim.idle
        if _held(model):
            return True
        # One that was loaded into memory that nobody needed, and that nobody has used, has nothing to lose.
        unused = victim.idle and victim.model.idle_for >= resident.loaded_for
        if resident.loaded_for < self.rules.min_residency and not unused:
            return False
        if model.waited < patience(model, victim.model, resident, self.rules):
            return False
        return victim.idle or gate_open(victim.model, resident, self.rules)

    # By pattern.

    def prepare(self) -> None:
        for model in sorted(self.models, key=lambda model: -model.expected):
            if self._worth_preloading(model):
                self._preload(model)

    def _worth_preloading(self, model: Model) -> bool:
        asleep_or_away = all(resident.state == SLEEPING for resident in model.residents)
        expected = model.wanted == "auto" and not model.pinned and model.expected >= self.rules.least_expected
        return expected and asleep_or_away and not model.queued and model.away_for >= self.rules.cooldown

    def _preload(self, model: Model) -> None:
        spots = self._unclaimed(model)
        reason = f"about {model.expected:.0f} jobs are expected within the hour, as a week ago"
        if free := next((spot for spot in spots if self.ledger.free(spot)), None):
            self._load(model, free, reason)
            return
        for spot in spots:
            victims = self._victims(model, spot, self._unneeded)
            if victims is not None:
                self.ledger.reserve(spot)
                for victim in victims:
                    self._dismiss(victim, f"nobody needs it, and {model.name} comes: {reason}", sleep=True)
                return

    def _unneeded(self, model: Model, victim: _Victim) -> bool:
        other, rules = victim.model, self.rules
        if not victim.idle or victim.resident.state == STARTING:
            return False
        if victim.replica:
            return True
        unexpected = other.rate == 0.0 and other.expected * rules.hysteresis <= model.expected
        old = victim.resident.loaded_for >= rules.min_residency and other.idle_for >= rules.unused
        return unexpected and old and not _held(other)

    # With what is left.

    def fill(self) -> None:
        acted = {action.model for action in self.actions}
        for model in sorted(self.models, key=lambda model: sum(resident.coming for resident in model.residents)):
            spots = self._unclaimed(model) if model.name not in acted and self._may_fill(model) else []
            if free := next((spot for spot in spots if self.ledger.free(spot)), None):
                self._load(model, free, "nobody waits for this memory")

    def _may_fill(self, model: Model) -> bool:
        staying = not any(resident.going for resident in model.residents)
        return staying and model.wanted not in _REFUSED and model.away_for >= self.rules.cooldown

    def _unclaimed(self, model: Model) -> list[Spot]:
        return [spot for spot in self.ledger.spots(model) if self._contended.isdisjoint(spot.devices)]

    # Writing it down.

    def _load(self, model: Model, spot: Spot, reason: str) -> None:
        self.ledger.reserve(spot)
        self._touched.add((model.name, spot.worker))
        kind: Kind = "wake" if spot.wakes else "load"
        self.actions.append(Action(kind, model.name, spot.worker, spot.devices, reason))

    def _dismiss(self, victim: _Victim, reason: str, *, sleep: bool) -> None:
        model, resident = victim.model, victim.resident
        self._touched.add((model.name, resident.worker))
        kind: Kind = "stop"
        may_sleep = sleep and resident.state == READY and model.can_sleep
        if may_sleep and self.ledger.take_host(model, resident.worker):
            kind = "sleep"
        self.ledger.frees(resident)
        self.actions.append(Action(kind, model.name, resident.worker, resident.devices, reason))


def gate_open(model: Model, resident: Resident, rules: Rules) -> bool:
    """It has caught up with its queue, or has had a whole turn.

    Caught up: no job that was waiting when it became ready still waits, and the oldest of the others does not wait for
    more than a share of the time for which it has been loaded. An empty queue would be better still (to serve until
    nobody waits makes the mean wait the least), but one that is never empty and never long would hold others off.
    """
    caught_up = resident.still_waiting == 0 and model.oldest_wait <= rules.catch_up * resident.loaded_for
    return caught_up or resident.loaded_for >= rules.turn


def patience(model: Model, victim: Model, resident: Resident, rules: Rules) -> float:
    """Seconds that ``model`` waits before it takes the memory of ``resident``, an engine of ``victim``.

    Those who come to ``victim`` while it is away wait for about two loads; with those who are there already they are
    what ``model`` weighs its queue against. One that is outweighed waits up to ``max_swap_wait`` longer: than not at
    all for an idle engine, than ``max_swap_wait`` for a busy one.
    """
    harmed = victim.queued + resident.running + victim.rate * (victim.load + model.load)
    outweighed = 0.0 if harmed <= model.queued else 1.0 - model.queued / harmed
    busy = victim.queued > 0 or resident.running > 0
    return rules.max_swap_wait * (outweighed + busy)


_REFUSED = {"off": "an operator stopped it", "asleep": "an operator put it to sleep"}
_SWITCHED_OFF = "automatic switching is off"


def _held(model: Model) -> bool:
    return model.wanted == "on" or (model.pinned and model.wanted == "auto")


def _frees(victims: Iterable[_Victim], uuid: str) -> int:
    return sum(victim.resident.memory for victim in victims if uuid in victim.resident.devices)


def _cause(model: Model) -> str:
    if model.queued:
        return f"{model.queued} jobs wait for it, the oldest for {model.oldest_wait:.0f} s"
    return "it is pinned" if model.pinned else "an operator started it"


def _on(gpus: int) -> str:
    return "on one device" if gpus == 1 else f"on {gpus} devices"

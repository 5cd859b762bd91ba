"""Which models are loaded: a pure function from a `Snapshot` to a `Plan`.

Called every second or two, and whenever an engine has changed; it keeps no state of its own. In this order:

1. What operators ask for: off is stopped, on and pinned are loaded and never yield.
2. An engine that has drained goes to sleep or stops.
3. On demand: who has waited too long for a turn comes first, then the longest queue; into free memory, else in place
   of whoever loses least by it. An idle model yields once the waiting outweighs what its own clients are about to
   lose; a busy one only when the wait has passed ``max_swap_wait`` and its gate is open: every job that was waiting
   when it finished loading has been claimed. Without that gate models throw each other out before they have paid for
   their load.
4. By pattern: what is expected within the hour is loaded into memory that nobody needs.

An action is only ever a first step: what yields first drains, and is awaited in the plans that follow.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from broker.ledger import Ledger, Spot
from broker.snapshot import DRAINING, FAILED, READY, SLEEPING, Action, Kind, Model, Plan, Resident, Rules, Snapshot


def plan(snapshot: Snapshot) -> Plan:
    """What to do next. Never raises: what cannot be served is named in ``Plan.waiting``."""
    planning = _Planning(snapshot)
    planning.obey()
    planning.finish_drains()
    planning.serve()
    if snapshot.rules.enabled:
        planning.prepare()
    return Plan(tuple(planning.actions), planning.waiting)


@dataclass(frozen=True, slots=True)
class _Victim:
    model: Model
    resident: Resident

    @property
    def loss(self) -> tuple[bool, int, float, float]:
        """Less is evicted first: idle before busy, the shortest queue, the lowest rate of late, the longest idle."""
        busy = self.model.queued > 0 or self.resident.running > 0
        return busy, self.model.queued, self.model.rate, -self.model.idle_for


_Yields = Callable[[Model, _Victim], bool]


class _Planning:
    def __init__(self, snapshot: Snapshot) -> None:
        self.rules = snapshot.rules
        self.models = snapshot.models
        self.ledger = Ledger(snapshot)
        self.actions: list[Action] = []
        self.waiting: dict[str, str] = {}
        self._touched: set[tuple[str, str]] = set()

    # What operators ask for.

    def obey(self) -> None:
        for model in self.models:
            if model.wanted == "off" and not model.pinned:
                for resident in model.residents:
                    if resident.state in (READY, SLEEPING):
                        self._dismiss(_Victim(model, resident), "an operator stopped it", sleep=False)

    def finish_drains(self) -> None:
        for model in self.models:
            for resident in model.residents:
                if resident.state == DRAINING and resident.running == 0:
                    self._dismiss(_Victim(model, resident), "it has drained", sleep=model.wanted != "off")

    # On demand.

    def serve(self) -> None:
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
        asked = _held(model)
        return asked or (self.rules.enabled and model.wanted == "auto" and model.queued > 0)

    def _why_not(self, model: Model) -> str | None:
        if any(resident.state == FAILED for resident in model.residents):
            return "its engine failed, and an operator has to start it again"
        if not self.ledger.devices:
            return "no worker has a device to load it on"
        if not self.ledger.could_ever_fit(model):
            return f"it needs more memory than any worker has {_on(model.gpus)}"
        return None

    def _place(self, model: Model) -> None:
        spots = list(self.ledger.spots(model))
        if free := next((spot for spot in spots if self.ledger.free(spot)), None):
            self._load(model, free, _cause(model))
        elif soon := next((spot for spot in spots if self.ledger.free_soon(spot)), None):
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

    def _cheapest(self, model: Model, spots: Iterable[Spot]) -> tuple[Spot, list[_Victim]] | None:
        found = [(spot, victims) for spot in spots if (victims := self._victims(model, spot, self._yields)) is not None]
        return min(found, key=lambda entry: sorted((v.loss for v in entry[1]), reverse=True), default=None)

    def _wait(self, model: Model, spots: list[Spot]) -> None:
        overdue = model.waited >= self.rules.max_swap_wait or _held(model)
        if overdue and spots:
            # Nobody behind it may take what becomes free there: a large model would never see enough of it at once.
            self.ledger.reserve(min(spots, key=lambda spot: -self.ledger.room(spot)))
        self.waiting[model.name] = "all that is loaded has work of its own to do first"

    # Who yields.

    def _victims(self, model: Model, spot: Spot, yields: _Yields) -> list[_Victim] | None:
        """Those who have to go so that ``model`` fits there, the least loss first; None if that cannot be."""
        chosen: list[_Victim] = []
        for device in spot.devices:
            missing = self.ledger.missing(spot, device) - sum(
                victim.resident.memory for victim in chosen if device in victim.resident.devices
            )
            there = [v for v in self._on(spot.worker, device) if v not in chosen and v.model.name != model.name]
            for victim in sorted((v for v in there if yields(model, v)), key=lambda victim: victim.loss):
                if missing <= 0:
                    break
                chosen.append(victim)
                missing -= victim.resident.memory
            if missing > 0:
                return None
        return self._needed(spot, chosen)

    def _needed(self, spot: Spot, chosen: list[_Victim]) -> list[_Victim]:
        """Without those whose memory a later, larger one has made superfluous."""
        for victim in sorted(chosen, key=lambda victim: victim.loss, reverse=True):
            others = [other for other in chosen if other is not victim]
            if all(
                self.ledger.missing(spot, device)
                <= sum(o.resident.memory for o in others if device in o.resident.devices)
                for device in spot.devices
            ):
                chosen = others
        return chosen

    def _on(self, worker: str, device: int) -> Iterator[_Victim]:
        for model in self.models:
            for resident in model.residents:
                here = resident.worker == worker and device in resident.devices
                if here and resident.state in (READY, SLEEPING) and (model.name, worker) not in self._touched:
                    yield _Victim(model, resident)

    def _yields(self, model: Model, victim: _Victim) -> bool:
        if _held(victim.model):
            return False
        if victim.resident.state == SLEEPING or _held(model):
            return True
        resident = victim.resident
        if resident.loaded_for < self.rules.min_residency:
            return False
        if victim.model.queued == 0 and resident.running == 0:
            return model.waited >= patience(model, victim.model, self.rules)
        return model.waited >= self.rules.max_swap_wait and gate_open(resident, self.rules)

    # By pattern.

    def prepare(self) -> None:
        if self.waiting:
            return
        for model in sorted(self.models, key=lambda model: -model.expected):
            if self._worth_preloading(model) and not self._why_not(model):
                self._preload(model)

    def _worth_preloading(self, model: Model) -> bool:
        asleep_or_away = all(resident.state == SLEEPING for resident in model.residents)
        wanted = model.wanted == "auto" and model.expected >= self.rules.least_expected
        return wanted and asleep_or_away and not model.queued and model.away_for >= self.rules.cooldown

    def _preload(self, model: Model) -> None:
        spots = list(self.ledger.spots(model))
        reason = f"about {model.expected:.0f} jobs are expected within the hour, as a week ago"
        if free := next((spot for spot in spots if self.ledger.free(spot)), None):
            self._load(model, free, reason)
            return
        for spot in spots:
            victims = self._victims(model, spot, self._unneeded)
            if victims:
                self.ledger.reserve(spot)
                for victim in victims:
                    self._dismiss(victim, f"nobody needs it, and {model.name} comes: {reason}", sleep=True)
                return

    def _unneeded(self, model: Model, victim: _Victim) -> bool:
        other, rules = victim.model, self.rules
        idle = other.queued == 0 and victim.resident.running == 0 and other.idle_for >= rules.unused
        unexpected = other.rate == 0.0 and other.expected * rules.hysteresis <= model.expected
        old = victim.resident.loaded_for >= max(rules.min_residency, rules.unused)
        return idle and unexpected and old and not _held(other)

    # Writing it down.

    def _load(self, model: Model, spot: Spot, reason: str) -> None:
        self.ledger.reserve(spot)
        kind: Kind = "wake" if spot.wakes else "load"
        self.actions.append(Action(kind, model.name, spot.worker, spot.devices, reason))

    def _dismiss(self, victim: _Victim, reason: str, *, sleep: bool) -> None:
        model, resident = victim.model, victim.resident
        self._touched.add((model.name, resident.worker))
        kind: Kind = "stop"
        if resident.state != DRAINING and resident.running > 0:
            kind = "drain"
        elif sleep and resident.state != SLEEPING and model.can_sleep and self.ledger.take_host(model, resident.worker):
            kind = "sleep"
        self.ledger.frees(resident)
        self.actions.append(Action(kind, model.name, resident.worker, resident.devices, reason))


def gate_open(resident: Resident, rules: Rules) -> bool:
    """Every job that was waiting when it finished loading has been claimed, or it has had a whole turn."""
    return resident.claimed_since_loaded >= resident.waiting_when_loaded or resident.loaded_for >= rules.turn


def patience(model: Model, victim: Model, rules: Rules) -> float:
    """Seconds that ``model`` waits before it takes an idle model's memory.

    Those who come to ``victim`` while it is away wait for about two loads; so ``model`` waits until it has gathered as
    many jobs as they will be, at most ``max_swap_wait``.
    """
    harmed = victim.rate * (victim.load + model.load)
    if harmed <= model.queued:
        return 0.0
    return rules.max_swap_wait * (1.0 - model.queued / harmed)


def _held(model: Model) -> bool:
    return model.pinned or model.wanted == "on"


def _cause(model: Model) -> str:
    if model.queued:
        return f"{model.queued} jobs wait for it, the oldest for {model.oldest_wait:.0f} s"
    return "it is pinned" if model.pinned else "an operator started it"


def _on(gpus: int) -> str:
    return "on one device" if gpus == 1 else f"on {gpus} devices"

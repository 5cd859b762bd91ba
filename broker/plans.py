"""What the planner has decided: standing orders to the workers, and why.

All of it is one document, in the collection ``plans``, so that one conditional write is the fence for everything: what
a newer leader has planned, an older one cannot change, nor add to. Before it looks at anything a leader shuts out those
before it (``take``): whatever they were about to write is then either there to be seen or will never be.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from pymongo.errors import DuplicateKeyError

from broker.database import Database
from broker.desired import Wanted

_ID = "plan"
# Seconds for which a plan is believed that is shown to clients.
KNOWN = 1.0

DecisionKind = Literal["load", "wake", "sleep", "stop", "keep"]


@dataclass(frozen=True, slots=True)
class Order:
    """What ``worker`` has to do about its engine of ``model``, until another order comes.

    ``gpus``: uuids of the devices to run on; where it is not to run, of those that it was on. ``at``: when it was
    decided.
    """

    model: str
    worker: str
    wanted: Wanted
    gpus: tuple[str, ...] = ()
    reason: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """An order that was new, or not the one before. ``keep``: what runs already without an order goes on."""

    at: datetime
    kind: DecisionKind
    model: str
    worker: str
    gpus: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """Jobs that the pattern expects for a model in the hour that begins at ``hour``. See ``broker.forecast``."""

    model: str
    hour: datetime
    jobs: float
    trusted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Overview:
    """What there is to tell of the last plan. ``decisions``: of late, the newest first.

    ``waiting``: by model, why one that is wanted is not loaded. ``unfit``: by model, why it fits on no device at all.
    ``others``: by device, bytes that other programs hold.
    """

    planned_at: datetime | None = None
    decisions: tuple[Decision, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)
    unfit: Mapping[str, str] = field(default_factory=dict)
    expected: tuple[Expectation, ...] = ()
    others: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Standing:
    """All that has been planned. ``epoch``: of the leader that did."""

    epoch: int = 0
    orders: tuple[Order, ...] = ()
    overview: Overview = Overview()

    def of(self, model: str) -> list[Order]:
        return [order for order in self.orders if order.model == model]


class Plans:
    """All methods raise PyMongoError."""

    def __init__(self, database: Database) -> None:
        self._plans = database.plans
        self._known: tuple[float, Standing] = (-math.inf, Standing())

    async def orders_to(self, worker: str) -> Mapping[str, Order]:
        """By model."""
        mine = {"$filter": {"input": {"$ifNull": ["$orders", []]}, "cond": {"$eq": ["$$this.worker", worker]}}}
        document = await self._plans.find_one({"_id": _ID}, {"orders": mine}) or {}
        return {order["model"]: _order(order) for order in document.get("orders", ())}

    async def orders(self) -> Sequence[Order]:
        return (await self.look()).orders

    async def look(self) -> Standing:
        return _standing(await self._plans.find_one({"_id": _ID}) or {})

    async def known(self) -> Standing:
        """The plan as it was a moment ago: good enough to tell a client, and free."""
        looked, standing = self._known
        if time.monotonic() - looked > KNOWN:
            standing = await self.look()
            self._known = (time.monotonic(), standing)
        return standing

    async def take(self, epoch: int) -> bool:
        """Shuts out the leaders of smaller epochs. False where one of a greater epoch has planned already."""
        return await self._set({}, epoch)

    async def write(self, orders: Sequence[Order], overview: Overview, epoch: int) -> bool:
        """Makes ``orders`` all orders that stand; what has not changed is not written.

        False, with nothing written, where a leader of a greater epoch has planned.
        """
        stored = await self._plans.find_one({"_id": _ID}) or {}
        told = {"orders": sorted(map(_order_document, orders), key=_key), **_overview_document(overview)}
        return await self._set({name: value for name, value in told.items() if stored.get(name) != value}, epoch)

    async def _set(self, changes: Mapping[str, Any], epoch: int) -> bool:
        mine = {"_id": _ID, "epoch": {"$lte": epoch}}
        try:
            await self._plans.update_one(mine, {"$set": {**changes, "epoch": epoch}}, upsert=True)
        except DuplicateKeyError:  # it is there, of a greater epoch
            return False
        return True


def _key(order: Mapping[str, Any]) -> tuple[str, str]:
    return order["model"], order["worker"]


def _order_document(order: Order) -> dict[str, Any]:
    return {**asdict(order), "wanted": order.wanted.value, "gpus": list(order.gpus)}


def _order(document: Mapping[str, Any]) -> Order:
    return Order(
        model=document["model"],
        worker=document["worker"],
        wanted=Wanted(document["wanted"]),
        gpus=tuple(document.get("gpus", ())),
        reason=document.get("reason", ""),
        at=document.get("at"),
    )


# Model names may hold dots, so they are values and not keys.
def _overview_document(overview: Overview) -> dict[str, Any]:
    return {
        "planned_at": overview.planned_at,
        "decisions": [{**asdict(decision), "gpus": list(decision.gpus)} for decision in overview.decisions],
        "waiting": [{"model": model, "reason": reason} for model, reason in sorted(overview.waiting.items())],
        "unfit": [{"model": model, "reason": reason} for model, reason in sorted(overview.unfit.items())],
        "expected": [asdict(expectation) for expectation in overview.expected],
        "others": [{"uuid": uuid, "bytes": held} for uuid, held in sorted(overview.others.items())],
    }


def _standing(document: Mapping[str, Any]) -> Standing:
    overview = Overview(
        planned_at=document.get("planned_at"),
        decisions=tuple(Decision(**told | {"gpus": tuple(told["gpus"])}) for told in document.get("decisions", ())),
        waiting={told["model"]: told["reason"] for told in document.get("waiting", ())},
        unfit={told["model"]: told["reason"] for told in document.get("unfit", ())},
        expected=tuple(Expectation(**told) for told in document.get("expected", ())),
        others={told["uuid"]: told["bytes"] for told in document.get("others", ())},
    )
    return Standing(document.get("epoch", 0), tuple(map(_order, document.get("orders", ()))), overview)

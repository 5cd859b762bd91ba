"""What the planner has decided: standing orders to the workers, and why.

One document for each model on each worker, in the collection ``plans``, and one with the overview. Each write is fenced
by the epoch of the leader that planned: what a newer leader has written, an older one cannot change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from broker.database import Database
from broker.desired import Wanted


@dataclass(frozen=True, slots=True)
class Order:
    """What ``worker`` has to do about its engine of ``model``, until another order comes.

    ``gpus``: uuids of the devices to run on, where ``wanted`` is RUNNING. ``at``: when it was decided.
    """

    model: str
    worker: str
    wanted: Wanted
    gpus: tuple[str, ...] = ()
    reason: str = ""
    at: datetime | None = None


class Plans:
    """All methods raise PyMongoError."""

    def __init__(self, database: Database) -> None:
        self._plans = database.plans

    async def orders_to(self, worker: str) -> Mapping[str, Order]:
        """By model."""
        return {order.model: order for order in await self._orders({"worker": worker})}

    async def orders(self) -> Sequence[Order]:
        return await self._orders({"worker": {"$exists": True}})

    async def _orders(self, query: Mapping[str, Any]) -> list[Order]:
        return [_order(document) async for document in self._plans.find(query)]


def _order(document: Mapping[str, Any]) -> Order:
    return Order(
        model=document["model"],
        worker=document["worker"],
        wanted=Wanted(document["wanted"]),
        gpus=tuple(document.get("gpus", ())),
        reason=document.get("reason", ""),
        at=document.get("at"),
    )

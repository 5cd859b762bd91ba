"""The order of claims worked out anew, in the slowest and plainest way, to check ``broker.fairness`` against.

It knows nothing of lanes or heads: it looks at all documents that can be claimed, one turn after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson import ObjectId

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Turns:
    """The jobs in the order in which they are to be claimed, and what each client has spent after that."""

    order: list[ObjectId]
    now: float
    spent: dict[str, float]


def turns(
    claimable: Sequence[Document],
    shares: Document,
    weights: Mapping[str, float],
    aging: float,
    now: float,
    most: int,
) -> Turns:
    """``shares`` is the model's document of virtual times, ``now`` the database's time in seconds since 1970."""
    left = list(claimable)
    virtual = float(shares.get("now", 0.0))
    spent = {bytes.fromhex(key).decode(): value for key, value in shares.get("spent", {}).items()}
    order: list[ObjectId] = []
    while left and len(order) < most:
        virtual = max(virtual, min(max(virtual, spent.get(job["subject"], 0.0)) for job in left))

        def rank(job: Document, virtual: float = virtual) -> tuple[int, float, int, int]:
            mine = max(virtual, spent.get(job["subject"], 0.0))
            # A client that has been given more than others does not rise by the age of its own backlog.
            steps = int((now - job["seq"].time) // aging) if mine == virtual else 0
            return max(0, job["level"] - max(0, steps)), mine, job["seq"].time, job["seq"].inc

        best = min(left, key=rank)
        left.remove(best)
        order.append(best["_id"])
        mine = max(virtual, spent.get(best["subject"], 0.0))
        spent[best["subject"]] = mine + 1.0 / weights.get(best["subject"], 1.0)
    return Turns(order, virtual, spent)

"""What operators want of each model. They write it here; the workers reconcile their engines with it.

One document for each model that somebody has asked something of, in the collection ``models``, written with majority:
what an operator was told is done after a failover, too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pymongo import ReturnDocument

from broker.database import Database
from broker.registry import ModelState


class Wanted(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    SLEEPING = "sleeping"


@dataclass(frozen=True, slots=True)
class Desired:
    """What operators want of one model.

    ``wanted`` None: whatever is decided without them. ``graceful``: a stop lets what runs finish. ``version`` grows
    with each request that concerns the engine: a worker says which one it has answered, and an engine that has failed
    tries again. An engine that was started under a smaller ``restarts`` is to be started again.
    """

    model: str
    wanted: Wanted | None = None
    pinned: bool = False
    resolution: str | None = None
    graceful: bool = True
    restarts: int = 0
    version: int = 0
    changed_at: datetime | None = None
    changed_by: str | None = None


class DesiredModels:
    """Reads and writes what is desired. ``by``: the operator's subject. All methods raise PyMongoError."""

    def __init__(self, database: Database) -> None:
        self._models = database.models

    async def all(self) -> Mapping[str, Desired]:
        """By model; one that is not in it is as ``Desired(model)`` says."""
        return {document["_id"]: _desired(document) async for document in self._models.find()}

    async def one(self, model: str) -> Desired:
        document = await self._models.find_one({"_id": model})
        return Desired(model) if document is None else _desired(document)

    async def start(self, model: str, by: str, resolution: str | None = None) -> Desired:
        """``resolution`` None: as it was. An engine that runs in another one is started again."""
        changes = {} if resolution is None else {"resolution": resolution}
        return await self._ask(model, by, {"wanted": Wanted.RUNNING.value, **changes})

    async def stop(self, model: str, by: str, *, graceful: bool = True) -> Desired:
        return await self._ask(model, by, {"wanted": Wanted.STOPPED.value, "graceful": graceful})

    async def sleep(self, model: str, by: str) -> Desired:
        return await self._ask(model, by, {"wanted": Wanted.SLEEPING.value})

    async def wake(self, model: str, by: str) -> Desired:
        return await self._ask(model, by, {"wanted": Wanted.RUNNING.value})

    async def restart(self, model: str, by: str) -> Desired:
        return await self._ask(model, by, {"wanted": Wanted.RUNNING.value}, restarts=1)

    async def automatic(self, model: str, by: str) -> Desired:
        """Takes back a start, stop or sleep: the planner decides again."""
        return await self._ask(model, by, {"wanted": None})

    async def set_resolution(self, model: str, by: str, resolution: str) -> Desired:
        """Whether it runs stays as it is; an engine that runs in another resolution is started again."""
        return await self._ask(model, by, {"resolution": resolution})

    async def pin(self, model: str, by: str) -> Desired:
        return await self._write(model, by, {"pinned": True}, {})

    async def unpin(self, model: str, by: str) -> Desired:
        return await self._write(model, by, {"pinned": False}, {})

    async def _ask(self, model: str, by: str, changes: Mapping[str, Any], *, restarts: int = 0) -> Desired:
        return await self._write(model, by, changes, {"version": 1, "restarts": restarts})

    async def _write(self, model: str, by: str, changes: Mapping[str, Any], counts: Mapping[str, int]) -> Desired:
        update: dict[str, Any] = {"$set": {**changes, "changed_by": by}, "$currentDate": {"changed_at": True}}
        if counts:
            update["$inc"] = dict(counts)
        document = await self._models.find_one_and_update(
            {"_id": model}, update, upsert=True, return_document=ReturnDocument.AFTER
        )
        assert document is not None  # an upsert has always one to return
        return _desired(document)


def _desired(document: Mapping[str, Any]) -> Desired:
    wanted = document.get("wanted")
    return Desired(
        model=document["_id"],
        wanted=None if wanted is None else Wanted(wanted),
        pinned=document.get("pinned", False),
        resolution=document.get("resolution"),
        graceful=document.get("graceful", True),
        restarts=document.get("restarts", 0),
        version=document.get("version", 0),
        changed_at=document.get("changed_at"),
        changed_by=document.get("changed_by"),
    )


_CHANGING = frozenset({"starting", "draining", "stopping"})
_AT_REST: Mapping[Wanted, frozenset[str]] = {
    Wanted.STOPPED: frozenset({"stopped", "failed"}),
    Wanted.SLEEPING: frozenset({"sleeping", "stopped", "failed"}),
}


def settled(desired: Desired, states: Iterable[ModelState]) -> bool:
    """Whether the workers have done what was asked for, or have failed to. ``states``: what they say of the model."""
    able = [state for state in states if state.able]
    answered = [state for state in able if state.version is None or state.version >= desired.version]
    if desired.wanted is Wanted.RUNNING and any(state.ready for state in answered):
        return True
    if len(answered) < len(able):
        return False
    if desired.wanted is None:
        return not any(state.state in _CHANGING for state in answered)
    if desired.wanted is Wanted.RUNNING:
        return bool(answered) and all(state.state == "failed" for state in answered)
    return all(state.state in _AT_REST[desired.wanted] for state in answered)

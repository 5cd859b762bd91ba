"""What has been measured of each model's engine, remembered over restarts: its memory, and how long it takes to load,
to sleep and to wake."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

from broker.database import Database
from config import ModelSettings


@dataclass(frozen=True, slots=True)
class Measurement:
    """Of the last time: bytes (``memory_bytes`` on each device, ``host_bytes`` in main memory asleep) and seconds."""

    memory_bytes: int | None = None
    host_bytes: int | None = None
    load_seconds: float | None = None
    sleep_seconds: float | None = None
    wake_seconds: float | None = None

    def updated(self, newer: "Measurement") -> "Measurement":
        """What ``newer`` does not know stays as it was."""
        return Measurement(**asdict(self) | newer.known())

    def known(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


_FIELDS = frozenset(field.name for field in fields(Measurement))
# What an engine does not depend on. How many run at once counts: it takes memory for them.
_IRRELEVANT = frozenset({"task", "aliases", "description", "max_waiting", "max_retries", "timeout"})


class Measurements:
    """Kept with what operators want of a model. What was measured under another configuration counts for nothing."""

    def __init__(self, database: Database, models: Mapping[str, ModelSettings]) -> None:
        self._models = database.models
        self._fingerprints = {name: _fingerprint(entry) for name, entry in models.items()}

    async def all(self) -> Mapping[str, Measurement]:
        """By model; only of those of which something is known. Raises PyMongoError."""
        found = self._models.find({"measured": {"$exists": True}}, {"measured": 1})
        stored = {document["_id"]: document["measured"] async for document in found}
        return {
            name: _measurement(measured["values"])
            for name, measured in stored.items()
            if measured["of"] == self._fingerprints.get(name)
        }

    async def note(self, model: str, measured: Measurement) -> None:
        """What it does not know stays as it was. Raises PyMongoError."""
        fingerprint = self._fingerprints[model]
        # In one write: several workers may have measured the same model.
        same = {"$eq": ["$measured.of", fingerprint]}
        before = {"$cond": [same, "$measured.values", {}]}
        values = {"$mergeObjects": [before, {"$literal": measured.known()}]}
        update = [{"$set": {"measured": {"of": fingerprint, "values": values}}}]
        await self._models.update_one({"_id": model}, update, upsert=True)


def _measurement(values: Mapping[str, Any]) -> Measurement:
    """A worker of another release may have noted more than is known here."""
    return Measurement(**{name: value for name, value in values.items() if name in _FIELDS})


def _fingerprint(entry: ModelSettings) -> str:
    told: dict[str, Any] = entry.model_dump(mode="json", exclude=set(_IRRELEVANT))
    return sha256(repr(sorted(told.items())).encode()).hexdigest()[:16]

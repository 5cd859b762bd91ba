"""What has been measured of each model's engine, remembered over restarts: its memory, and how long it takes to load,
to sleep and to wake."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
            name: Measurement(**measured["values"])
            for name, measured in stored.items()
            if measured["of"] == self._fingerprints.get(name)
        }

    async def note(self, model: str, **values: float) -> None:
        """Fields of Measurement; others stay as they were. Raises PyMongoError."""
        known = (await self.all()).get(model, Measurement())
        measured = {"of": self._fingerprints[model], "values": asdict(known) | values}
        await self._models.update_one({"_id": model}, {"$set": {"measured": measured}}, upsert=True)


def _fingerprint(entry: ModelSettings) -> str:
    told: dict[str, Any] = entry.model_dump(mode="json")
    return sha256(repr(sorted(told.items())).encode()).hexdigest()[:16]

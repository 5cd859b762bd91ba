"""The parameters of models that operators may change while everything runs.

They are kept with what is desired of the model, go before the configuration, and outlive restarts. Each process looks
for changes by itself, so that no process need be told.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pymongo.errors import PyMongoError

from broker.database import Database
from config import ModelSettings
from config.values import Seconds

log = logging.getLogger(__name__)

# Seconds between two looks for changes.
REFRESH = 0.8


class Parameters(BaseModel):
    """What may change while a model runs. Unset or null: as the configuration says; for sampling, as the model does."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Jobs that run at once, over all workers. A vLLM engine takes more than it was started with at its next start."""
    max_waiting: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Jobs that may wait beyond those."""
    timeout: Seconds | None = None
    """Longest run of one attempt (of one page, for documents), for jobs that come from now on."""
    max_retries: Annotated[int, Field(ge=0, le=100)] | None = None
    """Further attempts, for jobs that come from now on."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """For requests that say none."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """For requests that say none."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """For requests that say none."""


SAMPLING = frozenset({"temperature", "top_p", "max_tokens"})
_OF_CONFIGURATION = Parameters.model_fields.keys() - SAMPLING


class LiveModels(Mapping[str, ModelSettings]):
    """The configured models with the parameters that hold just now. ``run`` keeps it up to date."""

    def __init__(self, models: Mapping[str, ModelSettings], database: Database) -> None:
        self._configured = models
        self._collection = database.models
        self._changed: dict[str, Parameters] = {}
        self._models = dict(models)

    def __getitem__(self, name: str) -> ModelSettings:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def changed(self, name: str) -> Parameters:
        """What operators have changed."""
        return self._changed.get(name, Parameters())

    def sampling(self, name: str) -> dict[str, Any]:
        """``temperature``, ``top_p`` and ``max_tokens`` for requests that say none, as far as they are set."""
        return self.changed(name).model_dump(include=set(SAMPLING), exclude_none=True)

    async def change(self, name: str, changes: Parameters, by: str) -> None:
        """Changes what is set in ``changes``; None goes back to the configuration. Raises PyMongoError."""
        given = changes.model_dump(exclude_unset=True)
        kept = {f"parameters.{key}": value for key, value in given.items() if value is not None}
        dropped = {f"parameters.{key}": "" for key, value in given.items() if value is None}
        update: dict[str, Any] = {"$set": {**kept, "changed_by": by}, "$currentDate": {"changed_at": True}}
        if dropped:
            update["$unset"] = dropped
        await self._collection.update_one({"_id": name}, update, upsert=True)
        await self.refresh()

    async def refresh(self) -> None:
        """Reads all that is changed. There are few documents, and by a newest time one would now and then be missed:
        of two that are written at once, the later one may be seen first. Raises PyMongoError.
        """
        found = self._collection.find({"parameters": {"$exists": True}}, {"parameters": 1})
        stored = {document["_id"]: document["parameters"] async for document in found}
        changed = {name: _read(name, values) for name, values in stored.items() if name in self._configured}
        if changed != self._changed:
            self._changed = changed
            self._models = {name: self._effective(name) for name in self._configured}

    def _effective(self, name: str) -> ModelSettings:
        # The values have been checked against the limits of the configuration's own fields.
        changes = self.changed(name).model_dump(include=set(_OF_CONFIGURATION), exclude_none=True)
        return self._configured[name].model_copy(update=changes)

    async def run(self) -> None:
        """Keeps up to date, until cancelled; where the database is away, with what was known last."""
        while True:
            await asyncio.sleep(REFRESH)
            try:
                await self.refresh()
            except PyMongoError as error:
                log.warning("the models' parameters cannot be read: %s", error)


def _read(name: str, values: Mapping[str, Any]) -> Parameters:
    """What cannot be understood was written by another release: the configuration counts then."""
    try:
        return Parameters.model_validate(values)
    except ValidationError as error:
        log.warning("the stored parameters of %s are not used: %s", name, error)
        return Parameters()

"""What is remembered of engines, on a real database."""

import asyncio
from typing import Any

import pytest

from broker.database import Database
from broker.desired import DesiredModels
from broker.measurements import Measurement, Measurements
from config import ModelSettings, VllmSettings

MODEL = "big"


def entry(**more: Any) -> ModelSettings:
    return VllmSettings(task="chat", engine="vllm", **more)


def measurements(store: Database, **more: Any) -> Measurements:
    return Measurements(store, {MODEL: entry(**more)})


async def test_what_is_noted_is_known_to_others_and_the_rest_stays_as_it_was(store: Database) -> None:
    mine, theirs = measurements(store), measurements(store)
    assert await theirs.all() == {}
    await mine.note(MODEL, Measurement(load_seconds=40.0, memory_bytes=7 * 2**30))
    await theirs.note(MODEL, Measurement(sleep_seconds=2.5, memory_bytes=8 * 2**30))
    assert await mine.all() == {MODEL: Measurement(8 * 2**30, None, 40.0, 2.5, None)}


async def test_two_who_note_at_the_same_time_lose_nothing(store: Database) -> None:
    await asyncio.gather(
        measurements(store).note(MODEL, Measurement(load_seconds=1.0)),
        measurements(store).note(MODEL, Measurement(sleep_seconds=2.0)),
        measurements(store).note(MODEL, Measurement(wake_seconds=3.0)),
    )
    assert await measurements(store).all() == {MODEL: Measurement(None, None, 1.0, 2.0, 3.0)}


@pytest.mark.parametrize("change", [{"max_model_len": 4096}, {"model": "/models/other"}, {"max_concurrent": 64}])
async def test_what_was_measured_under_another_configuration_counts_for_nothing(
    store: Database, change: dict[str, Any]
) -> None:
    await measurements(store).note(MODEL, Measurement(load_seconds=40.0, memory_bytes=1))
    changed = measurements(store, **change)
    assert await changed.all() == {}
    await changed.note(MODEL, Measurement(memory_bytes=2))
    assert await changed.all() == {MODEL: Measurement(memory_bytes=2)}


@pytest.mark.parametrize(
    "change", [{"description": "better"}, {"aliases": ["b"]}, {"timeout": 5.0}, {"max_waiting": 1}]
)
async def test_what_does_not_change_the_engine_leaves_what_was_measured(
    store: Database, change: dict[str, Any]
) -> None:
    await measurements(store).note(MODEL, Measurement(memory_bytes=1))
    assert await measurements(store, **change).all() == {MODEL: Measurement(memory_bytes=1)}


async def test_models_that_are_not_configured_any_more_are_left_out(store: Database) -> None:
    await measurements(store).note(MODEL, Measurement(memory_bytes=1))
    assert await Measurements(store, {}).all() == {}


async def test_what_a_later_release_has_noted_besides_is_passed_over(store: Database) -> None:
    await measurements(store).note(MODEL, Measurement(memory_bytes=1))
    await store.models.update_one({"_id": MODEL}, {"$set": {"measured.values.watts": 300}})
    assert await measurements(store).all() == {MODEL: Measurement(memory_bytes=1)}


async def test_it_leaves_what_operators_want_alone_and_they_it(store: Database) -> None:
    desired = DesiredModels(store)
    await measurements(store).note(MODEL, Measurement(memory_bytes=1))
    assert (await desired.one(MODEL)).wanted is None
    before = await desired.start(MODEL, "ann")
    await measurements(store).note(MODEL, Measurement(load_seconds=2.0))
    assert await desired.one(MODEL) == before
    assert await measurements(store).all() == {MODEL: Measurement(memory_bytes=1, load_seconds=2.0)}

"""Parameters that change while everything runs, on the real database."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from broker.cancellation import cancel_all
from broker.database import Database
from broker.desired import DesiredModels
from broker.errors import QueueFull
from broker.job import NewJob
from broker.parameters import REFRESH, SAMPLING, LiveModels, Parameters
from broker.queue import JobQueue
from config import ModelSettings
from tests.conditions import eventually
from tests.unit.broker.conftest import MODELS, SETTINGS

Make = Callable[..., NewJob]


@pytest.fixture
def live(store: Database) -> LiveModels:
    return LiveModels(MODELS, store)


def test_without_changes_the_configuration_holds(live: LiveModels) -> None:
    assert dict(live) == MODELS
    assert len(live) == 2
    assert live.changed("alpha") == Parameters()
    assert live.sampling("alpha") == {}
    with pytest.raises(KeyError):
        live["none"]


async def test_a_change_holds_at_once_and_is_kept(store: Database, live: LiveModels) -> None:
    change = Parameters.model_validate({"max_concurrent": 7, "timeout": "5m", "temperature": 0, "max_waiting": 0})
    await live.change("alpha", change, "ada")
    assert (live["alpha"].max_concurrent, live["alpha"].max_waiting, live["alpha"].timeout) == (7, 0, 300.0)
    assert live["alpha"].max_retries == MODELS["alpha"].max_retries
    assert live.sampling("alpha") == {"temperature": 0.0}
    assert live["beta"] == MODELS["beta"]
    restarted = LiveModels(MODELS, store)
    await restarted.refresh()
    assert dict(restarted) == dict(live)
    assert restarted.changed("alpha") == change


async def test_null_goes_back_to_the_configuration_and_what_is_not_named_stays(live: LiveModels) -> None:
    await live.change("alpha", Parameters(max_concurrent=7, max_retries=0, top_p=0.5), "ada")
    await live.change("alpha", Parameters(max_concurrent=None), "ada")
    assert live["alpha"].max_concurrent == MODELS["alpha"].max_concurrent
    assert live.changed("alpha") == Parameters(max_retries=0, top_p=0.5)


async def test_parameters_and_what_is_desired_share_a_document_and_keep_apart(
    store: Database, live: LiveModels
) -> None:
    desired = DesiredModels(store)
    await desired.restart("alpha", "ada")
    await live.change("alpha", Parameters(max_concurrent=7), "bob")
    await desired.stop("alpha", "ada")
    await live.refresh()
    assert live["alpha"].max_concurrent == 7
    one = await desired.one("alpha")
    assert (one.restarts, one.version, one.changed_by) == (1, 2, "ada")


async def test_another_process_sees_a_change_within_about_a_second(store: Database, live: LiveModels) -> None:
    other = LiveModels(MODELS, store)
    running = asyncio.create_task(other.run())
    await live.change("alpha", Parameters(max_concurrent=7), "ada")

    async def seen() -> bool:
        return other["alpha"].max_concurrent == 7

    await eventually(seen)
    assert REFRESH < 1.0
    await cancel_all([running])


async def test_a_queue_follows_its_models(store: Database, live: LiveModels, new_job: Make) -> None:
    queue = JobQueue(store, live, SETTINGS)
    await live.change("alpha", Parameters(max_concurrent=1, max_waiting=0), "ada")
    await queue.submit(new_job())
    with pytest.raises(QueueFull):
        await queue.submit(new_job())
    await live.change("alpha", Parameters(max_waiting=1, max_retries=9, timeout=7.0), "ada")
    job = await queue.submit(new_job())
    assert (job.max_retries, job.timeout) == (9, 7.0)
    claims = await queue.claim("alpha", "worker-1", 5)
    assert len(claims.jobs) == 1, "at most max_concurrent of them"


@pytest.mark.parametrize(
    "wrong",
    [{"max_concurrent": 0}, {"max_concurrent": "7"}, {"timeout": "soon"}, {"temperature": 2.1}, {"engine": "vllm"}],
)
def test_what_is_out_of_bounds_or_unknown_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Parameters.model_validate(wrong)


async def test_what_another_release_has_stored_and_nobody_understands_does_not_count(
    store: Database, live: LiveModels, caplog: pytest.LogCaptureFixture
) -> None:
    await store.models.insert_one({"_id": "alpha", "parameters": {"max_concurrent": 0}})
    await store.models.insert_one({"_id": "gone", "parameters": {"max_concurrent": 5}})
    await live.refresh()
    assert dict(live) == MODELS
    assert "alpha" in caplog.text


def test_the_limits_are_those_of_the_configuration() -> None:
    for name in Parameters.model_fields.keys() - SAMPLING:
        configured = ModelSettings.model_fields[name]
        told = TypeAdapter(Parameters).json_schema()["properties"][name]["anyOf"]
        expected = TypeAdapter(ModelSettings).json_schema()["properties"][name]
        expected = expected.get("anyOf", [{k: v for k, v in expected.items() if k in ("type", "minimum", "maximum")}])
        assert [part for part in told if part != {"type": "null"}] == expected, f"{name}: {configured}"

"""In which mode documents are read: jobs go to an engine in theirs, and an idle engine changes to what is asked for."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.broker import Broker
from broker.errors import EngineInputError
from broker.job import Job
from config import AutoSwitchSettings, Settings
from tests.conditions import eventually
from tests.deployments import default_config, make_settings
from tests.unit.worker import readers
from tests.unit.worker.readers import Scripted, pages
from tests.unit.worker.workers import ended
from worker.engines.base import Request
from worker.modes import next_mode

MODEL = "deepseek-ocr"
NOWHERE = frozenset[str]()


def test_an_engine_keeps_its_mode_while_there_is_work_in_it() -> None:
    waiting = {"gundam": 3.0, "tiny": 5.0}
    assert next_mode("gundam", waiting, busy=False, elsewhere=NOWHERE, bound=60.0) == "gundam"
    assert next_mode("gundam", {"tiny": 5.0}, busy=True, elsewhere=NOWHERE, bound=60.0) == "gundam"


def test_an_idle_engine_changes_to_the_mode_for_which_somebody_has_waited_longest() -> None:
    waiting = {"tiny": 5.0, "large": 9.0}
    assert next_mode("gundam", waiting, busy=False, elsewhere=NOWHERE, bound=60.0) == "large"
    assert next_mode("gundam", {}, busy=False, elsewhere=NOWHERE, bound=60.0) == "gundam"


def test_who_has_waited_too_long_goes_before_what_is_in_its_mode() -> None:
    waiting = {"gundam": 3.0, "tiny": 60.0}
    assert next_mode("gundam", waiting, busy=True, elsewhere=NOWHERE, bound=60.0) == "tiny"


def test_what_another_worker_is_in_the_mode_for_is_left_to_it() -> None:
    waiting = {"tiny": 60.0, "large": 1.0}
    assert next_mode("gundam", waiting, busy=False, elsewhere=frozenset({"tiny"}), bound=60.0) == "large"
    elsewhere = frozenset({"tiny", "large"})
    assert next_mode("gundam", waiting, busy=False, elsewhere=elsewhere, bound=60.0) == "gundam"


def test_two_modes_for_which_both_have_waited_too_long_have_their_turns() -> None:
    waiting = {"gundam": 700.0, "tiny": 900.0}
    for since, expected in ((0.0, "gundam"), (59.0, "gundam"), (60.0, "tiny")):
        chosen = next_mode("gundam", waiting, busy=True, elsewhere=NOWHERE, bound=60.0, since=since)
        assert chosen == expected


def test_of_workers_that_could_help_those_who_have_waited_too_long_one_goes_first() -> None:
    waiting = {"gundam": 1.0, "tiny": 62.0}
    for patience, expected in ((0.0, "tiny"), (3.0, "gundam")):
        chosen = next_mode("gundam", waiting, busy=True, elsewhere=NOWHERE, bound=60.0, patience=patience)
        assert chosen == expected


def test_one_worker_after_the_other_may_take_another_mode() -> None:
    waiting = {"tiny": 2.0}
    assert next_mode("gundam", waiting, busy=False, elsewhere=NOWHERE, bound=60.0, patience=3.0) == "gundam"
    assert next_mode("gundam", waiting, busy=False, elsewhere=NOWHERE, bound=60.0, patience=0.0) == "tiny"


class Modal(Scripted):
    """Notes in which mode it was started, and what it read in which."""

    resolution: str | None = None
    modes = ("tiny", "base", "large")

    def __init__(self, slow: float = 0.0) -> None:
        super().__init__(self._read)
        self._slow = slow
        self.starts: list[str | None] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> None:
        self.starts.append(self.resolution)

    async def recogniser(self, request: Request) -> Scripted.Pages:
        asked = request.payload["options"].get("resolution")
        if asked not in (None, *self.modes):
            raise EngineInputError(f"There is no {asked} here.", code="resolution_unsupported")
        return await super().recogniser(request)

    async def _read(self, number: int, attempt: int) -> str:
        await self.gate.wait()
        await asyncio.sleep(self._slow)
        return f"in {self.starts[-1]}"


@pytest.fixture
def settings(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Settings:
    config = default_config()
    config["models"][MODEL] = {"task": "ocr", "engine": "vllm", "resolution": "base"}
    return make_settings(tmp_path, mongod_uri, database.name, config)


async def sent(broker: Broker, resolution: str | None, count: int = 1) -> Job:
    options = {} if resolution is None else {"resolution": resolution}
    return await readers.sent(broker, pages(count), model=MODEL, **options)


async def test_each_job_is_read_in_the_mode_that_it_asks_for_or_the_usual_one(settings: Settings) -> None:
    engine = Modal()
    async with readers.reading(settings, engine, MODEL) as (broker, _):
        for asked, expected in ((None, "base"), ("tiny", "tiny"), ("tiny", "tiny"), (None, "base"), ("base", "base")):
            job = await ended(broker, await sent(broker, asked))
            assert job.result is not None, job.error
            assert job.result["text"] == f"in {expected}"
    assert engine.starts == ["base", "tiny", "base"]


async def test_a_job_that_asks_for_a_mode_that_the_model_does_not_know_is_told_so(settings: Settings) -> None:
    engine = Modal()
    async with readers.reading(settings, engine, MODEL) as (broker, _):
        job = await ended(broker, await sent(broker, "gundam"))
    assert (job.error or {})["code"] == "resolution_unsupported"
    assert engine.starts == ["base"]


async def test_a_job_of_another_mode_waits_until_those_of_the_present_one_are_done(settings: Settings) -> None:
    engine = Modal()
    async with readers.reading(settings, engine, MODEL) as (broker, _):
        engine.gate.clear()
        first = await sent(broker, None, count=4)
        await engine.begun(1)
        other, second = await sent(broker, "large"), await sent(broker, "base")
        engine.gate.set()
        jobs = [await ended(broker, job) for job in (first, second, other)]
        *in_base, in_large = [job.finished_at for job in jobs if job.finished_at]
        assert in_large > max(in_base)
        texts = [set(job.result["text"].split("\n\n")) for job in jobs if job.result]
        assert texts == [{"in base"}, {"in base"}, {"in large"}]
    assert engine.starts == ["base", "large"]


async def test_two_modes_that_are_both_overdue_are_both_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the engine for a while: it is not started anew for the other before it has read anything."""
    settings = settings.model_copy(update={"auto_switch": AutoSwitchSettings(max_swap_wait=1.0)})
    engine = Modal(slow=0.1)
    async with readers.reading(settings, engine, MODEL) as (broker, _):
        jobs = [await sent(broker, mode, count=20) for mode in ("base", "tiny")]
        for job in jobs:
            assert (await ended(broker, job)).status == "completed"
    # How often depends on the machine; for each page in turn it would be forty times.
    assert len(engine.starts) <= 20
    assert sum(engine.reads.values()) <= 40 + 2 * len(engine.starts)


async def test_two_workers_in_two_modes_take_what_is_theirs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else both may change on a machine that is so slow that the first one has not done so by its turn's end.
    monkeypatch.setattr("worker.modes.TURN", 60.0)
    one, two = Modal(), Modal()
    async with readers.reading(settings, one, MODEL) as (broker, _), readers.reading(settings, two, MODEL):
        assert (await ended(broker, await sent(broker, None))).status == "completed"
        assert (await ended(broker, await sent(broker, "tiny"))).status == "completed"

        async def both_modes_are_there() -> bool:
            states = [worker.models[MODEL] for worker in await broker.registry.live_workers()]
            return {state.resolution for state in states if state.ready} == {"base", "tiny"}

        await eventually(both_modes_are_there)
        for mode in ("tiny", "base", "tiny", None):
            job = await ended(broker, await sent(broker, mode))
            assert job.result is not None
            assert job.result["text"] == f"in {mode or 'base'}"
    assert sorted(len(engine.starts) for engine in (one, two)) == [1, 2], "nobody had to change again"


async def test_the_operators_word_is_the_usual_mode_from_then_on(settings: Settings) -> None:
    engine = Modal()
    async with readers.reading(settings, engine, MODEL) as (broker, _):
        await ended(broker, await sent(broker, "tiny"))
        await broker.desired.set_resolution(MODEL, "admin", "large")
        job = await ended(broker, await sent(broker, None))
        assert job.result is not None
        assert job.result["text"] == "in large"

"""How a worker reads documents: what is read, how often, by whose turn, and what becomes of it when things go wrong."""

import asyncio
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.broker import Broker
from broker.errors import EngineDied, EngineNotRunning, EngineUnavailable
from broker.job import Job
from broker.results import unpack
from config import Settings
from ocr.errors import PageLooped, RecogniserError
from ocr.page import Reading
from tests.conditions import eventually
from tests.deployments import default_config, make_settings
from tests.documents import tiff
from tests.unit.worker.readers import BARRED, MODEL, WHITE, Scripted, as_numbered, held_at, pages, reading, sent
from tests.unit.worker.workers import ended, reached
from worker import document_attempt

Configure = Callable[..., Settings]


@pytest.fixture
def configure(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Configure:
    def make(lease: float = 5.0, **model: Any) -> Settings:
        config = default_config()
        config["queue"] |= {"lease": lease, "retry_backoff": 0.02, "retry_backoff_max": 0.04, "drain_timeout": 60}
        config["models"][MODEL] |= model
        return make_settings(tmp_path, mongod_uri, database.name, config)

    return make


async def result(broker: Broker, job: Job) -> Any:
    """Of a job that is to be completed."""
    job = await ended(broker, job)
    assert job.status == "completed", job.error
    return await unpack(broker.files, job)


async def failure(broker: Broker, job: Job) -> Job:
    job = await ended(broker, job)
    assert job.status in ("failed", "timeout"), job.result
    return job


async def test_pages_are_read_side_by_side_and_stand_in_order(configure: Configure) -> None:
    gate = asyncio.Event()

    async def last_first(number: int, attempt: int) -> str:
        if number == 5:
            gate.set()
        await (gate.wait() if number in (1, 2) else asyncio.sleep(0))
        return f"page {number}"

    engine = Scripted(last_first, places=3)
    async with reading(configure(), engine) as (broker, _):
        read = await result(broker, await sent(broker, pages(5)))
    assert [page["number"] for page in read["pages"]] == [1, 2, 3, 4, 5]
    assert read["text"] == "\n\n".join(f"page {number}" for number in range(1, 6))
    assert (engine.most, read["partial"], read["failed_pages"], read["engine"]) == (3, False, [], "scripted")


async def test_only_the_pages_that_are_asked_for_are_read(configure: Configure) -> None:
    engine = Scripted()
    async with reading(configure(), engine) as (broker, _):
        job = await ended(broker, await sent(broker, pages(9), pages="2-3,7"))
        assert job.progress == {"done": 3, "total": 3, "unit": "pages"}
        missing = await failure(broker, await sent(broker, pages(2), pages="2-3"))
    assert sorted(engine.order) == [2, 3, 7]
    assert missing.error is not None
    assert missing.error["code"] == "no_such_page"


async def test_a_blank_page_is_never_shown_to_a_recogniser(configure: Configure) -> None:
    engine = Scripted()
    async with reading(configure(), engine) as (broker, _):
        read = await result(broker, await sent(broker, pages(3, blank=2)))
    assert [page["status"] for page in read["pages"]] == ["blank", "blank", "completed"]
    assert (engine.order, read["text"]) == ([3], "page 3")


async def test_a_page_that_fails_is_tried_again_and_only_that_one(configure: Configure) -> None:
    async def third_time(number: int, attempt: int) -> str:
        if number == 2 and attempt < 3:
            raise PageLooped("It said the same again and again.")
        return f"page {number}, try {attempt}"

    engine = Scripted(third_time)
    async with reading(configure(), engine) as (broker, _):
        job = await ended(broker, await sent(broker, pages(3)))
        read = await result(broker, job)
    assert (read["pages"][1]["text"], read["pages"][1]["tries"]) == ("page 2, try 3", 3)
    assert (read["partial"], job.attempts) == (False, 1)
    assert engine.reads == Counter({2: 3, 1: 1, 3: 1})


async def test_a_page_that_cannot_be_read_is_named_and_kept_with_its_best_text(configure: Configure) -> None:
    async def never(number: int, attempt: int) -> str:
        if number != 2:
            return f"page {number}"
        error = PageLooped("It said the same again and again.")
        error.partial = Reading(["", "the best of it", "less"][attempt - 1], "")
        raise error

    async with reading(configure(page_retries=2), Scripted(never)) as (broker, _):
        read = await result(broker, await sent(broker, pages(3)))
    failed = {"number": 2, "code": "page_looped", "message": "It said the same again and again."}
    assert (read["partial"], read["failed_pages"]) == (True, [failed])
    assert (read["pages"][1]["status"], read["pages"][1]["text"]) == ("failed", "the best of it")


async def test_a_permanent_error_of_a_page_is_not_tried_again(configure: Configure) -> None:
    async def refused(number: int, attempt: int) -> str:
        error = RecogniserError("The picture is too large.")
        error.permanent = number == 1
        raise error

    engine = Scripted(refused)
    async with reading(configure(page_retries=1, max_page_error_rate=1), engine) as (broker, _):
        await result(broker, await sent(broker, pages(2)))
    assert engine.reads == Counter({1: 1, 2: 2})


async def test_a_document_of_which_too_much_cannot_be_read_has_failed(configure: Configure) -> None:
    async def odd_ones(number: int, attempt: int) -> str:
        if number % 2:
            raise PageLooped("It said the same again and again.")
        return "text"

    engine = Scripted(odd_ones)
    async with reading(configure(page_retries=0, max_page_error_rate=0.3), engine) as (broker, _):
        job = await failure(broker, await sent(broker, pages(10)))
        states = await broker.pages.states(job.id)
    assert job.error is not None
    assert (job.status, job.error["code"], job.attempts) == ("failed", "page_looped", 1)
    assert "4 of 10 pages" in job.error["message"]
    assert sum(page.state == "failed" for page in states) == 4, "it stopped as soon as that was certain"


async def test_the_timeout_counts_for_each_try_of_a_page_and_not_for_the_document(configure: Configure) -> None:
    async def slow(number: int, attempt: int) -> str:
        await (asyncio.Event().wait() if number == 3 else asyncio.sleep(0.3))
        return f"page {number}"

    async with reading(configure(timeout=0.8, page_retries=1), Scripted(slow, places=1)) as (broker, _):
        read = await result(broker, await sent(broker, pages(5)))
        alone = await failure(broker, await sent(broker, pages(3), pages="3"))
    assert [page["status"] for page in read["pages"]].count("completed") == 4
    assert read["failed_pages"][0]["code"] == "recogniser_timeout"
    assert (alone.status, alone.error and alone.error["code"]) == ("timeout", "recogniser_timeout")


async def test_an_engine_that_dies_costs_a_document_no_page_and_no_attempt_as_long_as_it_gets_further(
    configure: Configure,
) -> None:
    async def dies(number: int, attempt: int) -> str:
        if engine.reads[number] == 1 and number % 3 == 0:
            raise EngineDied("The engine died while the request ran.")
        return f"page {number}"

    engine = Scripted(dies, places=1)
    async with reading(configure(max_retries=0), engine) as (broker, _):
        job = await ended(broker, await sent(broker, pages(12)))
        read = await result(broker, job)
    assert [page["tries"] for page in read["pages"]] == [1] * 12, "a page is not to blame for its engine"
    assert (job.attempts, len(job.errors)) == (1, 4)
    assert engine.reads == Counter({number: 2 if number % 3 == 0 else 1 for number in range(1, 13)})


async def test_an_overloaded_engine_is_asked_again_and_costs_neither_page_nor_attempt(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocr.tries.PAUSES", (0.01,) * 20)
    running = 0

    async def takes_two_at_once(number: int, attempt: int) -> str:
        nonlocal running
        if running == 2:
            raise EngineUnavailable("It answered 429.")
        running += 1
        await asyncio.sleep(0.02)
        running -= 1
        return f"page {number}"

    async with reading(configure(max_retries=0), Scripted(takes_two_at_once, places=4)) as (broker, _):
        job = await ended(broker, await sent(broker, pages(8)))
        read = await result(broker, job)
    assert ([page["tries"] for page in read["pages"]], job.attempts, job.errors) == ([1] * 8, 1, ())


async def test_pages_are_not_blamed_for_an_engine_that_is_away(configure: Configure) -> None:
    """It is handed back each time, oftener than a page may be begun without an end."""

    async def away(number: int, attempt: int) -> str:
        if sum(engine.reads.values()) <= 12:
            raise EngineNotRunning("It does not run.")
        return f"page {number}"

    engine = Scripted(away, places=1)
    async with reading(configure(page_retries=1), engine) as (broker, _):
        job = await ended(broker, await sent(broker, pages(2)))
        read = await result(broker, job)
    assert (read["partial"], job.attempts) == (False, 1)


async def test_a_document_that_runs_alone_lets_those_in_who_were_claimed_meanwhile(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_attempt, "SLICE", 3)
    gate = asyncio.Event()
    engine = Scripted(held_at(2, gate), places=1)
    async with reading(configure(), engine) as (broker, _):
        big = await sent(broker, pages(30), suspect=True)
        await engine.begun(2)
        small = await sent(broker, pages(1))
        await reached(broker, small, "processing")
        gate.set()
        big, small = await ended(broker, big), await ended(broker, small)
    assert small.finished_at is not None
    assert big.finished_at is not None
    assert small.finished_at < big.finished_at
    assert sum(engine.reads.values()) == 31


def test_a_record_that_is_too_large_loses_what_matters_least_first(monkeypatch: pytest.MonkeyPatch) -> None:
    word = {"text": "word", "bbox": [0, 0, 1, 1], "confidence": 1.0}
    block = {"type": "text", "text": "t" * 100, "bbox": None, "confidence": None, "words": [word] * 10}
    record = {"text": "t" * 2_000, "markdown": "m" * 2_000, "blocks": [block] * 10, "warnings": ["before"]}
    assert document_attempt.fitted(record) == record
    for most, words, blocks in ((10_000, 0, 10), (5_000, 0, 0)):
        monkeypatch.setattr(document_attempt, "MOST_OF_A_PAGE", most)
        smaller = document_attempt.fitted(record)
        assert len(smaller["blocks"]) == blocks
        assert all(len(block["words"]) == words for block in smaller["blocks"])
        assert smaller["text"] == record["text"]
    monkeypatch.setattr(document_attempt, "MOST_OF_A_PAGE", 3_000)
    monkeypatch.setattr(document_attempt, "MOST_TEXT", 500)
    shortest = document_attempt.fitted(record)
    assert (len(shortest["text"]), len(shortest["markdown"]), len(shortest["warnings"])) == (500, 500, 4)


async def test_attempts_that_get_nowhere_count(configure: Configure) -> None:
    async def dies(number: int, attempt: int) -> str:
        raise EngineDied("The engine died while the request ran.")

    async with reading(configure(max_retries=1), Scripted(dies)) as (broker, _):
        job = await failure(broker, await sent(broker, pages(3)))
    assert (job.attempts, job.error and job.error["code"]) == (2, "engine_died")


async def test_a_page_that_ends_its_engine_each_time_is_given_up_and_the_others_are_read(configure: Configure) -> None:
    """At last it is read alone, so that no other page is taken for what kills the engine."""

    async def poisonous(number: int, attempt: int) -> str:
        if number == 2:
            raise EngineDied("The engine died while the request ran.")
        await asyncio.sleep(0.05)
        return f"page {number}"

    engine = Scripted(poisonous, places=3)
    async with reading(configure(max_retries=3, page_retries=3), engine) as (broker, _):
        read = await result(broker, await sent(broker, pages(6)))
    assert read["failed_pages"][0]["code"] == "page_never_ended"
    assert [page["status"] for page in read["pages"]] == ["completed", "failed", *["completed"] * 4]
    assert engine.reads[2] == 4


async def test_a_worker_that_stops_finishes_its_pages_and_another_goes_on_with_the_rest(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.worker.READS_ON", 0.0)
    settings, gate = configure(), asyncio.Event()

    async def held(number: int, attempt: int) -> str:
        if number > 2:
            await gate.wait()
        return f"page {number}"

    first, second = Scripted(held), Scripted(as_numbered)
    async with reading(settings, first) as (broker, worker):
        job = await sent(broker, pages(8))

        async def two_are_under_way() -> bool:
            return len(first.order) == 4

        await eventually(two_are_under_way)
        worker.drain()
        gate.set()
        await reached(broker, job, "queued")
        assert (await broker.reader.get(str(job.id), None)).progress == {"done": 4, "total": 8, "unit": "pages"}
    async with reading(settings, second) as (broker, _):
        job = await ended(broker, job)
        read = await result(broker, job)
    assert (sorted(first.order), sorted(second.order)) == ([1, 2, 3, 4], [5, 6, 7, 8])
    assert ([page["number"] for page in read["pages"]], job.attempts, job.errors) == (list(range(1, 9)), 1, ())


async def test_a_large_document_makes_room_for_those_who_wait_and_loses_nothing(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_attempt, "SLICE", 3)
    gate = asyncio.Event()
    engine = Scripted(held_at(2, gate), places=1)
    async with reading(configure(max_concurrent=1), engine) as (broker, _):
        big = await sent(broker, pages(20))
        await engine.begun(2)
        small = await sent(broker, pages(1))
        gate.set()
        read = await result(broker, big)
        big, small = await ended(broker, big), await ended(broker, small)
    assert small.finished_at is not None
    assert big.finished_at is not None
    assert small.finished_at < big.finished_at
    assert (len(read["pages"]), big.attempts, engine.reads[2]) == (20, 1, 1)
    assert sum(engine.reads.values()) == 21


async def test_a_searchable_pdf_has_every_page_also_those_that_were_not_read(
    configure: Configure, tmp_path: Path
) -> None:
    """One is blank, one cannot be read, one cannot even be drawn."""

    async def not_two(number: int, attempt: int) -> str:
        if number == 2:
            raise PageLooped("It said the same again and again.")
        return f"page {number}"

    good = [(64, 64, WHITE), (64, 64, BARRED), (64, 64, BARRED)]
    document = tiff([*good, (60_000, 60_000, b"\xff" * 8)])
    async with reading(configure(page_retries=0), Scripted(not_two)) as (broker, _):
        job = await ended(broker, await sent(broker, document, searchable_pdf=True))
        assert (job.status, len((job.result or {})["failed_pages"])) == ("completed", 2)
        (tmp_path / "whole.pdf").write_bytes(await broker.files.get(job.files["searchable.pdf"]))
    pdfinfo = partial(subprocess.run, capture_output=True, text=True, check=True)
    told = await asyncio.to_thread(pdfinfo, ["pdfinfo", tmp_path / "whole.pdf"])
    assert re.search(r"Pages: +4\b", told.stdout)
    assert told.stderr == ""


async def test_a_cancelled_document_stops_and_keeps_no_page_going(configure: Configure) -> None:
    async def held(number: int, attempt: int) -> str:
        await (asyncio.Event().wait() if number > 1 else asyncio.sleep(0))
        return "page"

    engine = Scripted(held)
    async with reading(configure(), engine) as (broker, _):
        job = await sent(broker, pages(6))

        async def others_are_under_way() -> bool:
            return engine._now == 2 and 1 not in engine.order[-2:]

        await eventually(others_are_under_way)
        await broker.queue.cancel(job.id, None)

        async def none_is() -> bool:
            return engine._now == 0

        await eventually(none_is)
        assert (await ended(broker, job)).status == "cancelled"
    assert set(engine.order) == {1, 2, 3}


async def test_two_attempts_at_once_end_each_page_once(configure: Configure) -> None:
    """As after a lease that was lost by a worker that lives: both go on for a while."""
    settings, gate = configure(lease=1.0), asyncio.Event()

    async def held(number: int, attempt: int) -> str:
        if number == 3:
            await gate.wait()
        return f"page {number}"

    async with reading(settings, Scripted(held)) as (broker, _), reading(settings, Scripted(held)) as (other, _):
        job = await sent(broker, pages(6))

        async def page_two_is_done() -> bool:
            return (await broker.pages.get(job.id, 2)) is not None

        await eventually(page_two_is_done)
        # The lease is taken from its worker, who does not hear of it before its next renewal.
        await broker.database.jobs.update_one(
            {"_id": job.id}, {"$set": {"status": "queued", "lane": "1:ann"}, "$unset": {"slot": "", "token": ""}}
        )
        gate.set()
        read = await result(broker, job)
        assert [page["number"] for page in read["pages"]] == [1, 2, 3, 4, 5, 6]
        assert len(await other.pages.states(job.id)) == 6


async def test_an_engine_that_reads_no_documents_says_so(configure: Configure) -> None:
    class Talker:
        async def start(self) -> None: ...

        async def stop(self) -> None: ...

        def run(self, request: Any) -> Any:
            raise NotImplementedError

    async with reading(configure(), Talker()) as (broker, _):  # type: ignore[arg-type]
        job = await failure(broker, await sent(broker, pages(1)))
    assert job.error is not None
    assert job.error["code"] == "task_unsupported"

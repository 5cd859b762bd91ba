"""`roundhouse submit` against a gateway that is a process of its own, on documents that the test reads for it."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.broker import Broker
from broker.job import Failure
from config import Settings
from ocr.page import PageRecord
from tests import documents
from tests.conditions import eventually
from tests.contract.ocr_jobs import PDF, Reader, failed_page, page, page_with_figure
from tests.system import System
from tests.terminals import OnTerminal


@pytest.fixture
async def broker(settings: Settings) -> AsyncIterator[Broker]:
    """With leases that nobody has to renew while a test takes the part of the worker."""
    patient = settings.model_copy(update={"queue": settings.queue.model_copy(update={"lease": 600.0})})
    broker = await Broker.open(patient)
    broker.start()
    await broker.ready.wait()
    yield broker
    await broker.close()


@pytest.fixture
async def system(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]], broker: Broker
) -> AsyncIterator[System]:
    with System(tmp_path, mongod_uri, database.name) as system:
        await asyncio.to_thread(system.gateway)
        (tmp_path / "scan.pdf").write_bytes(documents.scanned_pdf(1))
        yield system


async def next_document(broker: Broker) -> Reader:
    claimed: list[Reader] = []

    async def waits() -> bool:
        claimed.extend(Reader(broker, job) for job in (await broker.queue.claim("tesseract", "a test")).jobs)
        return bool(claimed)

    # The command has to start first, which takes a busy machine a while.
    await eventually(waits, within=120)
    return claimed[0]


async def submit(system: System, broker: Broker, *options: str, pages: list[PageRecord]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a submit whose document has these pages."""
    run = partial(system.run, "submit", "--no-cache", str(system.home / "scan.pdf"), *options)
    command = asyncio.create_task(asyncio.to_thread(run))
    reader = await next_document(broker)
    await reader.ends(*pages)
    await reader.completes({"searchable.pdf": await reader.store("searchable.pdf", PDF)})
    done = await command
    return done.returncode, done.stdout, done.stderr


async def test_the_text_is_printed_and_each_page_that_failed_is_told(system: System, broker: Broker) -> None:
    pages = [page(1), failed_page(2, "Half"), page(3), failed_page(4)]
    code, out, err = await submit(system, broker, pages=pages)
    assert (code, out) == (0, "This is page 1.\n\nHalf\n\nThis is page 3.\n")
    assert "page 2 could not be read: The model wrote the same words again and again. (page_looped)" in err
    assert err.count("could not be read:") == 2
    assert "2 of 4 pages could not be read, at least not whole: 2,4." in err


async def test_each_format_is_written_where_it_is_wanted(system: System, broker: Broker) -> None:
    target = system.home / "out"
    pages = [page_with_figure(1), page(2)]
    for wanted, begins in (("zip", b"PK\x03\x04"), ("pdf", PDF), ("html", b"<!doctype html>")):
        code, out, err = await submit(system, broker, "--format", wanted, "--output", str(target), pages=pages)
        assert (code, out) == (0, ""), err
        assert target.read_bytes().startswith(begins)
    code, out, _ = await submit(system, broker, "--format", "markdown", pages=pages)
    assert (code, out.splitlines()[0]) == (0, "<!-- page 1 -->")
    code, out, _ = await submit(system, broker, "--format", "json", pages=pages)
    assert [found["number"] for found in json.loads(out)["pages"]] == [1, 2]


async def test_what_is_chosen_reaches_the_job(system: System, broker: Broker) -> None:
    options = "--pages 3,1 --text ocr --instruction locate --term stamp --format pdf".split()
    code, _, err = await submit(system, broker, *options, "-o", str(system.home / "out"), pages=[page(1), page(3)])
    assert code == 0, err
    [job] = await broker.database.jobs.find({}).to_list()
    assert job["payload"]["options"] == {
        "pages": "1,3",
        "text": "ocr",
        "instruction": "locate",
        "term": "stamp",
        "searchable_pdf": True,
    }


async def test_a_document_that_fails_says_why_and_with_json_shows_the_job(system: System, broker: Broker) -> None:
    for options in ((), ("--json",)):
        command = asyncio.create_task(asyncio.to_thread(system.run, "submit", str(system.home / "scan.pdf"), *options))
        reader = await next_document(broker)
        await broker.queue.fail(reader.job, Failure("encrypted_document", "It needs a password.", permanent=True))
        done = await command
        assert done.returncode == 1
        if options:
            assert json.loads(done.stdout)["error"]["code"] == "encrypted_document"
        else:
            assert f"{reader.job.id} failed: It needs a password. (encrypted_document)" in done.stderr


async def test_what_cannot_be_is_said_before_anything_is_sent(system: System, broker: Broker) -> None:
    scan = str(system.home / "scan.pdf")
    for options, says in (
        (("--json", "--format", "text"), "take one of them"),
        (("--pages", "3-1"), "e.g. 1-3,7"),
        (("--instruction", "locate"), "needs a term"),
        (("--output", str(system.home / "missing" / "out.txt")), "There is no directory"),
    ):
        done = await asyncio.to_thread(system.run, "submit", scan, *options)
        assert done.returncode != 0
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert await broker.database.jobs.count_documents({}) == 0


async def test_on_a_terminal_there_is_a_bar_of_pages_and_failures_stay(system: System, broker: Broker) -> None:
    with OnTerminal(system, "submit", str(system.home / "scan.pdf")) as command:
        reader = await next_document(broker)
        await reader.ends(page(1), failed_page(2), total=4)
        await command.shows("2 of 4 pages", "page 2 could not be read")
        await reader.ends(page(3), page(4), total=4)
        await reader.completes()
        assert await asyncio.to_thread(command.ends) == 0
        assert "This is page 4." in command.text


async def test_ctrl_c_leaves_the_job_alone_and_says_how_to_look(system: System, broker: Broker) -> None:
    with OnTerminal(system, "submit", str(system.home / "scan.pdf")) as command:
        reader = await next_document(broker)
        await reader.ends(page(1), total=4)
        await command.shows("1 of 4 pages")
        command.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(command.ends) == 130
        assert re.search(rf"job {reader.job.id} goes on; look it up by `roundhouse jobs`", command.text)
        assert "Traceback" not in command.text
        assert (await broker.reader.get(str(reader.job.id), None)).status == "processing"


async def test_a_terminal_is_not_given_bytes(system: System) -> None:
    with OnTerminal(system, "submit", str(system.home / "scan.pdf"), "--format", "zip") as command:
        assert await asyncio.to_thread(command.ends) == 2
        assert "--output" in command.text

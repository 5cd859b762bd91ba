"""The whole path, with the real tools."""

import asyncio
import contextlib
import json
import time
from pathlib import Path

import psutil
import pytest

from ocr.document import PageResult, ReadOptions, read_document
from ocr.errors import OcrError
from ocr.protocol import DecodeLimits
from tests.conditions import eventually
from tests.documents import (
    blank_pdf,
    character_error_rate,
    endless_pdf,
    hostile_documents,
    page_jpeg,
    page_png,
    scan_text,
    scanned_pdf,
)
from tests.unit.ocr.conftest import Offspring, names

SAMPLES = Path(__file__).parents[3] / "samples"
HOSTILE = hostile_documents()


async def test_the_sample_is_read_with_an_error_rate_under_two_percent() -> None:
    document = await read_document((SAMPLES / "letter.pdf").read_bytes(), "application/pdf")
    truth = (SAMPLES / "letter.txt").read_text(encoding="ascii")
    assert character_error_rate(document.text, truth) < 0.003
    assert [page.number for page in document.pages] == [1, 2]
    assert all(page.confidence is not None and page.confidence > 0.9 for page in document.pages)


async def test_fourteen_pages_come_back_in_order_and_are_reported_as_they_are_done() -> None:
    reports: list[tuple[int, int, int | None]] = []

    async def note(done: int, total: int, page: PageResult | None) -> None:
        reports.append((done, total, page.number if page else None))

    options = ReadOptions(limits=DecodeLimits(dpi=150))
    document = await read_document(scanned_pdf(14), "application/pdf", options, note)
    truths = [scan_text(number) for number in range(1, 15)]
    errors = [character_error_rate(page.text, truth) for page, truth in zip(document.pages, truths, strict=True)]
    assert max(errors) < 0.05
    assert sum(errors) / len(errors) < 0.02
    assert reports[0] == (0, 14, None)
    assert [done for done, _, _ in reports] == list(range(15))
    assert sorted(number for _, _, number in reports if number) == list(range(1, 15))


@pytest.mark.parametrize(("media_type", "data"), [("image/png", page_png()), ("image/jpeg", page_jpeg())])
async def test_a_picture_gives_a_result_of_the_documented_shape(media_type: str, data: bytes) -> None:
    result = json.loads(json.dumps((await read_document(data, media_type)).to_json()))
    (page,) = result.pop("pages")
    text = "The quick brown fox jumps over the lazy dog."
    assert result == {"text": text, "engine": "tesseract", "media_type": media_type}
    assert page.pop("confidence") > 0.8
    assert page == {
        "number": 1, "text": text, "width": 1275, "height": 1650, "rotation": 0, "languages": ["eng"]
    }  # fmt: skip


async def test_a_blank_document_is_empty_text_and_keeps_its_pages() -> None:
    document = await read_document(blank_pdf(pages=2), "application/pdf", ReadOptions(limits=DecodeLimits(dpi=72)))
    assert document.text == ""
    assert [(page.number, page.text) for page in document.pages] == [(1, ""), (2, "")]


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_input_ends_quickly_with_its_code(name: str) -> None:
    data, media_type, code = HOSTILE[name]
    began = time.monotonic()
    with pytest.raises(OcrError) as caught:
        await read_document(data, media_type)
    assert caught.value.code == code
    assert caught.value.permanent
    assert caught.value.message.endswith(".")
    assert time.monotonic() - began < 10


async def test_a_good_page_is_read_after_a_hostile_one() -> None:
    data, media_type, _ = HOSTILE["30,000 x 30,000 PNG"]
    with pytest.raises(OcrError):
        await read_document(data, media_type)
    assert (await read_document(page_png(), "image/png")).text.startswith("The quick brown fox")


def running(offspring: Offspring, name: str) -> int:
    """How many programs of that name are at work on a page."""
    count = 0
    for process in offspring():
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()  # nothing, once it has ended
            count += process.name() == name and bool(command) and "--list-langs" not in command
    return count


async def until_running(offspring: Offspring, name: str) -> None:
    async def started() -> bool:
        return running(offspring, name) > 0

    await eventually(started, every=0.01)


@pytest.mark.parametrize(("data", "tool"), [(endless_pdf(), "pdftoppm"), (scanned_pdf(3), "tesseract")])
async def test_a_reading_that_is_cancelled_leaves_no_process_and_no_file(
    data: bytes, tool: str, scratch: Path, offspring: Offspring
) -> None:
    reading = asyncio.create_task(read_document(data, "application/pdf"))
    await until_running(offspring, tool)
    assert len(names(scratch)) == 1
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert offspring() == []
    assert names(scratch) == []


async def test_cancelled_twice_it_is_no_worse(scratch: Path, offspring: Offspring) -> None:
    reading = asyncio.create_task(read_document(scanned_pdf(3), "application/pdf"))
    await until_running(offspring, "tesseract")
    while not reading.done():
        reading.cancel()
        await asyncio.sleep(0)
    assert reading.cancelled()
    assert names(scratch) == []


async def test_what_the_callback_raises_ends_the_reading() -> None:
    async def refuse(done: int, total: int, page: PageResult | None) -> None:
        if done == 1:
            raise LookupError("the lease is lost")

    with pytest.raises(LookupError, match="the lease is lost"):
        await read_document(scanned_pdf(3), "application/pdf", on_page=refuse)


async def test_slots_bound_the_recognisers_of_all_documents_together(offspring: Offspring) -> None:
    most = 0

    async def count() -> None:
        nonlocal most
        while True:
            most = max(most, running(offspring, "tesseract"))
            await asyncio.sleep(0.01)

    counting = asyncio.create_task(count())
    slots = asyncio.Semaphore(1)
    await asyncio.gather(*(read_document(page_png(), "image/png", slots=slots) for _ in range(3)))
    counting.cancel()
    assert most == 1

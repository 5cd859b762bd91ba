"""The whole path, with the real tools."""

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ocr.document import Opened, PageBegun, PageEnded, ReadOptions, read_document
from ocr.errors import OcrError, RecogniserCrashed
from ocr.page import PageRecord, Reading
from ocr.protocol import DecodeLimits, Page
from ocr.tesseract import Tesseract
from ocr.turns import PageTurns
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


@dataclass(frozen=True)
class Read:
    """``begun`` and ``done``: page numbers, in the order in which it was told of them."""

    opened: tuple[int, ...]
    begun: list[int]
    done: list[int]
    pages: list[PageRecord]
    files: dict[str, bytes]

    @property
    def text(self) -> str:
        return "\n\n".join(page.text for page in self.pages if page.text)


async def read(
    data: bytes, media_type: str, options: ReadOptions | None = None, turns: PageTurns | None = None
) -> Read:
    told = Read((), [], [], [], {})
    pages: dict[int, PageRecord] = {}
    opened: tuple[int, ...] = ()
    async for event in read_document(data, media_type, await Tesseract.find(("eng",)), turns or PageTurns(2), options):
        match event:
            case Opened(numbers):
                opened = numbers
            case PageBegun(number):
                told.begun.append(number)
            case PageEnded(record, files):
                told.done.append(record.number)
                pages[record.number] = record
                told.files.update(files)
    return Read(opened, told.begun, told.done, [pages[number] for number in sorted(pages)], told.files)


async def test_the_sample_is_read_with_an_error_rate_under_two_percent() -> None:
    document = await read((SAMPLES / "letter.pdf").read_bytes(), "application/pdf")
    truth = (SAMPLES / "letter.txt").read_text(encoding="ascii")
    assert character_error_rate(document.text, truth) < 0.003
    assert [page.number for page in document.pages] == [1, 2]
    assert all(page.confidence is not None and page.confidence > 0.9 for page in document.pages)


async def test_fourteen_pages_come_back_and_are_reported_as_they_are_done() -> None:
    document = await read(scanned_pdf(14), "application/pdf", ReadOptions(limits=DecodeLimits(dpi=150)))
    truths = [scan_text(number) for number in range(1, 15)]
    errors = [character_error_rate(page.text, truth) for page, truth in zip(document.pages, truths, strict=True)]
    assert max(errors) < 0.05
    assert sum(errors) / len(errors) < 0.02
    numbers = tuple(range(1, 15))
    assert (document.opened, tuple(sorted(document.begun)), tuple(sorted(document.done))) == (numbers,) * 3


@pytest.mark.parametrize(("media_type", "data"), [("image/png", page_png()), ("image/jpeg", page_jpeg())])
async def test_a_picture_gives_a_record_of_the_documented_shape(media_type: str, data: bytes) -> None:
    (record,) = (await read(data, media_type)).pages
    page = json.loads(json.dumps(record.to_json()))
    text = "The quick brown fox jumps over the lazy dog."
    (block,) = page.pop("blocks")
    left, top, right, bottom = block["bbox"]
    assert 0 < left < right < 1275
    assert 0 < top < bottom < 1650 / 4
    assert (block["type"], block["text"]) == ("text", text)
    assert page.pop("confidence") > 0.8
    assert page.pop("duration") > 0
    assert page == {
        "number": 1, "status": "completed", "text": text, "markdown": text, "width": 1275, "height": 1650,
        "rotation": 0, "languages": ["eng"], "engine": "tesseract", "mode": None, "source": "ocr", "tokens": None,
        "tries": 1, "figures": [], "warnings": [], "error": None,
    }  # fmt: skip


async def test_a_blank_document_is_empty_text_and_keeps_its_pages() -> None:
    document = await read(blank_pdf(pages=2), "application/pdf", ReadOptions(limits=DecodeLimits(dpi=72)))
    assert document.text == ""
    assert [(page.number, page.status, page.text) for page in document.pages] == [(1, "blank", ""), (2, "blank", "")]
    assert sorted(document.files) == ["page-0001.jpg", "page-0002.jpg"]


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_input_ends_quickly_with_its_code(name: str) -> None:
    """As the error of the document, or as that of its last page."""
    data, media_type, code = HOSTILE[name]
    began = time.monotonic()
    try:
        error = (await read(data, media_type)).pages[-1].error
    except OcrError as refusal:
        error = {"code": refusal.code, "message": refusal.message} if refusal.permanent else None
    assert time.monotonic() - began < 15
    assert error is not None
    assert error["code"] == code
    assert error["message"].endswith(".")


async def test_a_good_page_is_read_after_a_hostile_one() -> None:
    data, media_type, _ = HOSTILE["30,000 x 30,000 PNG"]
    with contextlib.suppress(OcrError):
        await read(data, media_type)
    assert (await read(page_png(), "image/png")).text.startswith("The quick brown fox")


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
    reading = asyncio.create_task(read(data, "application/pdf"))
    await until_running(offspring, tool)
    assert len(names(scratch)) == 1
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert offspring() == []
    assert names(scratch) == []


async def test_cancelled_twice_it_is_no_worse(scratch: Path, offspring: Offspring) -> None:
    reading = asyncio.create_task(read(scanned_pdf(3), "application/pdf"))
    await until_running(offspring, "tesseract")
    while not reading.done():
        reading.cancel()
        await asyncio.sleep(0)
    assert reading.cancelled()
    assert names(scratch) == []


async def test_events_that_nobody_wants_any_more_leave_nothing(scratch: Path, offspring: Offspring) -> None:
    reading = read_document(scanned_pdf(3), "application/pdf", await Tesseract.find(("eng",)), PageTurns(2))
    async with contextlib.aclosing(reading) as events:
        async for event in events:
            if isinstance(event, PageEnded):
                break
    assert offspring() == []
    assert names(scratch) == []


async def test_what_a_recogniser_raises_that_lies_in_no_page_ends_the_reading() -> None:
    class Broken:
        name = "broken"
        page_side = None
        wants_straight = False

        async def recognise(self, page: Page, attempt: int) -> Reading:
            raise LookupError("the engine is gone")

    events = read_document(page_png(), "image/png", Broken(), PageTurns(1))
    with pytest.raises(LookupError, match="the engine is gone"):
        _ = [event async for event in events]


async def test_a_recogniser_that_somebody_killed_reads_the_page_again_in_the_same_way() -> None:
    tries: list[int] = []

    class Struck:
        name = "struck"
        page_side = None
        wants_straight = False

        async def recognise(self, page: Page, attempt: int) -> Reading:
            tries.append(attempt)
            if len(tries) < 4:
                raise RecogniserCrashed("It was ended.", signal="SIGSEGV" if len(tries) == 3 else "SIGKILL")
            return Reading("text", "text")

    events = [event async for event in read_document(page_png(), "image/png", Struck(), PageTurns(1))]
    assert tries == [1, 1, 1, 2]
    assert isinstance(events[-1], PageEnded)
    assert (events[-1].record.status, events[-1].record.tries) == ("completed", 2)


async def test_the_turns_bound_the_recognisers_of_all_documents_together(offspring: Offspring) -> None:
    most = 0

    async def count() -> None:
        nonlocal most
        while True:
            most = max(most, running(offspring, "tesseract"))
            await asyncio.sleep(0.01)

    counting = asyncio.create_task(count())
    turns = PageTurns(1)
    await asyncio.gather(*(read(page_png(), "image/png", turns=turns) for _ in range(3)))
    counting.cancel()
    assert most == 1

"""RapidOCR in its process, for real where the extra is installed, as it is for the tests."""

import asyncio
import signal
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

import ocr
from broker.errors import EngineInputError, EngineUnavailable
from config import RapidocrSettings
from ocr.errors import RecogniserCrashed
from ocr.process import python_arguments
from ocr.protocol import Page
from ocr.rapid import Line, RapidOcr, paragraphs, reading_of
from tests.documents import character_error_rate, scanned_page
from tests.unit.ocr.conftest import Offspring
from worker.engines.base import Reader, Request
from worker.engines.rapidocr import RapidocrEngine

TEXT = (
    "The foreman had a slate by the door. On it he wrote which engine stood in which stall, how hot it was, "
    "and which train was waiting for it. Nobody had to remember anything."
)
SETTINGS = RapidocrSettings(engine="rapidocr", task="ocr")
REQUEST = Request("job", 1, {"options": {}})
installed = pytest.mark.skipif(find_spec("rapidocr") is None, reason="the extra rapidocr is not installed")


@pytest.fixture
async def rapid() -> AsyncIterator[RapidOcr]:
    rapid = RapidOcr()
    yield rapid
    await rapid.stop()


def page_of(image: Image.Image, scratch: Path) -> Page:
    path = scratch.parent / "page-000001.png"
    image.save(path)
    return Page(1, path, image.width, image.height, 150)


@installed
async def test_a_page_is_read_and_the_next_one_by_the_same_process(
    rapid: RapidOcr, scratch: Path, offspring: Offspring
) -> None:
    page = page_of(scanned_page(f"{TEXT}\n\nThe end."), scratch)
    reading = await rapid.recognise(page, 1)
    first, last = reading.blocks
    assert character_error_rate(first.text, TEXT) < 0.02
    assert last.text == "The end."
    assert reading.text == f"{first.text}\n\n{last.text}"
    assert reading.confidence is None
    assert first.bbox is not None
    assert last.bbox is not None
    assert 100 < first.bbox[0] < 200 < first.bbox[3] < last.bbox[1] + 20
    [process] = offspring()
    assert (await rapid.recognise(page_of(Image.new("L", (600, 400), 255), scratch), 1)).blocks == ()
    assert offspring() == [process]


@installed
async def test_a_page_that_is_given_up_takes_the_process_along_and_the_next_one_gets_another(
    rapid: RapidOcr, scratch: Path, offspring: Offspring
) -> None:
    await rapid.start()
    [process] = offspring()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await rapid.recognise(page_of(scanned_page(TEXT), scratch), 1)
    assert offspring() == []
    assert (await rapid.recognise(page_of(scanned_page("Track 7"), scratch), 2)).text == "Track 7"


@installed
async def test_a_process_that_dies_over_a_page_is_an_error_with_the_signals_name(
    rapid: RapidOcr, scratch: Path, offspring: Offspring
) -> None:
    await rapid.start()
    [process] = offspring()
    process.send_signal(signal.SIGSTOP)
    reading = asyncio.create_task(rapid.recognise(page_of(scanned_page(TEXT), scratch), 1))
    await asyncio.sleep(0)
    process.send_signal(signal.SIGSEGV)
    process.send_signal(signal.SIGCONT)
    with pytest.raises(RecogniserCrashed, match="RapidOCR was ended by SIGSEGV"):
        await reading


@installed
async def test_a_process_that_died_meanwhile_is_replaced(rapid: RapidOcr, scratch: Path, offspring: Offspring) -> None:
    await rapid.start()
    [process] = offspring()
    process.kill()
    # Not only gone: asyncio hears of it a little later, and until then the next page would go to the dead process.
    assert rapid._child is not None
    await rapid._child.ended()
    assert offspring() == []
    assert (await rapid.recognise(page_of(scanned_page("Track 7"), scratch), 1)).text == "Track 7"


@installed
async def test_what_is_no_png_is_an_error(rapid: RapidOcr, scratch: Path) -> None:
    path = scratch.parent / "page-000001.png"
    path.write_text("/etc/passwd\n")
    with pytest.raises(RecogniserCrashed, match="RapidOCR failed with status 1") as caught:
        await rapid.recognise(Page(1, path, 10, 10, None), 1)
    assert "UnidentifiedImageError" in str(caught.value.details["stderr"])


@installed
async def test_the_engine_is_a_reader_that_starts_and_stops_its_process(offspring: Offspring) -> None:
    engine = RapidocrEngine(SETTINGS)
    assert isinstance(engine, Reader)
    await engine.start()
    assert len(offspring()) == 1
    assert (await engine.recogniser(REQUEST)).name == "rapidocr"
    with pytest.raises(EngineInputError, match="no searchable PDFs"):
        await engine.recogniser(Request("job", 1, {"options": {"searchable_pdf": True}}))
    await engine.stop()
    assert offspring() == []


async def test_an_engine_whose_extra_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # What a machine without the extra has: everything but this module.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['rapidocr'] = None\n")
    root = Path(ocr.__file__).parents[1]
    monkeypatch.setattr(
        "ocr.rapid.python_arguments",
        lambda *arguments: ["env", f"PYTHONPATH={tmp_path}:{root}", *python_arguments(*arguments)],
    )
    engine = RapidocrEngine(SETTINGS)
    with pytest.raises(EngineUnavailable, match=r"RapidOCR is not installed here \(rapidocr\): pip install") as caught:
        await engine.start()
    assert caught.value.code == "rapidocr_missing"


def test_lines_further_apart_than_usual_are_paragraphs_and_what_stands_beside_is_none_of_theirs() -> None:
    lines = [Line(str(top), (0, top, 100, top + 30), top) for top in (0, 40, 80, 140, 180)]
    beside = Line("beside", (200, 180, 300, 210), 180)
    assert [[line.text for line in part] for part in paragraphs([*lines, beside])] == [
        ["0", "40", "80"],
        ["140", "180"],
        ["beside"],
    ]
    assert paragraphs([]) == []


def test_a_paragraphs_box_is_around_its_lines_and_its_markdown_shows_what_was_read() -> None:
    reading = reading_of([Line("# 1", (10, 0, 50, 30), 0), Line("two", (5, 40, 90, 70), 40)])
    assert reading.blocks[0].bbox == (5, 0, 90, 70)
    assert (reading.text, reading.markdown) == ("# 1\ntwo", "\\# 1\ntwo")

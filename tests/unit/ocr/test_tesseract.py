"""Reading single pages with the Tesseract that is installed, and the choice of languages."""

import asyncio
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image

from ocr.decoder import straight
from ocr.errors import LanguageMissing, RecogniserError, RecogniserTimeout, ToolMissing
from ocr.page import Box, Reading
from ocr.protocol import Page, Straight
from ocr.straight import write_straight
from ocr.tesseract import (
    Orientation,
    Tesseract,
    installed_languages,
    languages_for,
    layout,
    parsed_orientation,
)
from samples.make_sample import draw_page
from tests.conditions import eventually
from tests.documents import character_error_rate, scan_text, scanned_page
from tests.unit.ocr.conftest import Offspring

TEXT = (
    "The foreman had a slate by the door. On it he wrote which engine stood in which stall, how hot it was, "
    "and which train was waiting for it. Nobody had to remember anything."
)


def page_of(image: Image.Image, scratch: Path, dpi: int | None = 150) -> Page:
    path = scratch.parent / "page-000001.png"
    image.save(path)
    return Page(1, path, image.width, image.height, dpi, straight=straight(path, *write_straight(image, path)))


async def reading(image: Image.Image, scratch: Path, timeout: float = 60.0, attempt: int = 1) -> Reading:
    return await (await Tesseract.find(["eng"], timeout)).recognise(page_of(image, scratch), attempt)


async def read(image: Image.Image, scratch: Path) -> tuple[str, float | None, int]:
    result = await reading(image, scratch)
    return result.text, result.confidence, result.rotation


def ink_of(image: Image.Image) -> Box:
    """The smallest box around everything dark."""
    box = image.point([255 if value < 128 else 0 for value in range(256)]).getbbox()
    assert box is not None
    return box


def far_apart(one: Box, other: Box) -> int:
    """Pixels by which the sides that are furthest apart are."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("turned", "rotation"), [(0, 0), (180, 180), (90, 90), (270, 270)])
async def test_a_page_is_read_however_it_lies(turned: int, rotation: int, scratch: Path) -> None:
    image = scanned_page(TEXT).rotate(turned, expand=True)
    text, confidence, found = await read(image, scratch)
    assert character_error_rate(text, TEXT) < 0.02
    assert confidence is not None
    assert 0.8 < confidence <= 1
    assert found == rotation


async def test_a_page_with_too_little_on_it_to_find_its_orientation_is_read_all_the_same(scratch: Path) -> None:
    text, _, rotation = await read(draw_page(["Track 7"], dpi=150)[0], scratch)
    assert (text, rotation) == ("Track 7", 0)


async def test_a_blank_page_has_no_text_and_no_confidence(scratch: Path) -> None:
    assert await read(Image.new("L", (850, 1100), 255), scratch) == ("", None, 0)


async def test_nothing_is_left_beside_the_page(scratch: Path) -> None:
    page = page_of(scanned_page("Track 7"), scratch)
    before = set(page.path.parent.iterdir())
    await (await Tesseract.find()).recognise(page, 1)
    assert set(page.path.parent.iterdir()) == before


async def test_a_list_of_paths_named_png_never_reaches_tesseract(scratch: Path) -> None:
    path = scratch.parent / "page-000001.png"
    list_of_paths, picture = path, path.with_name("picture.png")
    list_of_paths.write_text("/etc/passwd\n")
    Image.new("L", (10, 10)).save(picture)
    tesseract = await Tesseract.find()
    for page, turned, part in (
        (list_of_paths, None, None),
        (picture, list_of_paths, picture),
        (picture, picture, list_of_paths),
    ):
        lines = Straight(turned, part, 1.0, 2) if turned and part else None
        with pytest.raises(ValueError, match=r"page-000001\.png is not a PNG"):
            await tesseract.recognise(Page(1, page, 10, 10, None, straight=lines), 1)


async def test_a_page_whose_reading_is_given_up_leaves_no_process_and_no_file(
    scratch: Path, offspring: Offspring
) -> None:
    page = page_of(scanned_page(TEXT), scratch)
    before = set(page.path.parent.iterdir())
    task = asyncio.create_task((await Tesseract.find(["eng"])).recognise(page, 1))

    async def reads() -> bool:
        with suppress(psutil.NoSuchProcess):  # one that came before may end while it is looked at
            return any(process.name() == "tesseract" for process in offspring())
        return False

    await eventually(reads)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert offspring() == []
    assert set(page.path.parent.iterdir()) == before


async def test_a_page_that_takes_too_much_processor_time_ends_in_a_timeout_that_may_be_tried_again(
    scratch: Path,
) -> None:
    page, _ = draw_page([" ".join(["The foreman had a slate by the door."] * 150)], dpi=150)
    four = Image.new("L", (2 * page.width, 2 * page.height))
    for corner in ((0, 0), (page.width, 0), (0, page.height), (page.width, page.height)):
        four.paste(page, corner)
    with pytest.raises(RecogniserTimeout, match="Tesseract used up its processor time") as caught:
        await reading(four, scratch, timeout=1)
    assert not caught.value.permanent


async def test_a_page_that_tesseract_cannot_read_gives_what_it_said(scratch: Path) -> None:
    path = scratch.parent / "page-000001.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    tesseract = await Tesseract.find()
    with pytest.raises(RecogniserError, match="failed with status 1 on page 1") as caught:
        await tesseract.recognise(Page(1, path, 10, 10, None), 1)
    assert "png" in str(caught.value.details["stderr"]).lower()


async def test_a_language_that_is_not_installed_is_named() -> None:
    with pytest.raises(LanguageMissing, match="Tesseract has no xyz here") as caught:
        await Tesseract.find(["eng", "xyz"])
    assert caught.value.details["missing"] == ["xyz"]
    assert caught.value.permanent


async def test_a_machine_without_tesseract_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match="install tesseract-ocr"):
        await installed_languages()


async def test_what_is_installed_is_found() -> None:
    assert {"eng", "osd"} <= set(await installed_languages())


@pytest.mark.parametrize(
    ("script", "installed", "languages"),
    [
        ("Latin", ("osd", "eng"), ("eng",)),
        ("Latin", ("rus", "fra", "eng", "deu"), ("deu", "fra", "eng")),
        ("Cyrillic", ("eng", "osd", "rus"), ("rus",)),
        ("Cyrillic", ("eng", "osd"), ("eng",)),
        ("Klingon", ("eng", "deu"), ("deu", "eng")),
        ("Latin", ("osd", "tha", "jpn"), ("jpn",)),
    ],
)
def test_a_script_is_read_with_its_languages_of_those_installed(
    script: str, installed: tuple[str, ...], languages: tuple[str, ...]
) -> None:
    assert languages_for(script, installed) == languages


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
async def test_blocks_and_words_lie_where_they_are_on_the_page_as_it_was_drawn(turned: int, scratch: Path) -> None:
    drawn = draw_page([TEXT], dpi=150)[0].rotate(1.5, fillcolor=255).rotate(turned, expand=True)
    result = await reading(drawn, scratch)
    [block] = result.blocks
    assert block.type == "text"
    assert block.bbox is not None
    assert far_apart(block.bbox, ink_of(drawn)) < 12
    [word] = [word for word in block.words if word.text == "foreman"]
    left, top, right, bottom = word.bbox
    assert {0: left < 400, 90: bottom > drawn.height - 400, 180: right > drawn.width - 400, 270: top < 400}[turned]
    assert sorted((right - left, bottom - top))[1] < 150
    assert ink_of(drawn.crop(word.bbox))


async def test_each_word_block_and_page_has_its_confidence(scratch: Path) -> None:
    result = await reading(scanned_page(TEXT), scratch)
    [block] = result.blocks
    assert [word.text for word in block.words] == result.text.split()
    assert all(0 < word.confidence <= 1 for word in block.words)
    assert (
        min(word.confidence for word in block.words) < result.confidence < max(word.confidence for word in block.words)
    )  # type: ignore[operator]
    assert block.confidence == result.confidence


async def test_a_second_and_a_third_try_read_the_page_in_other_ways(scratch: Path) -> None:
    image = scanned_page(TEXT)
    for attempt in (2, 3):
        assert character_error_rate((await reading(image, scratch, attempt=attempt)).text, TEXT) < 0.02


def test_tries_differ_except_for_a_page_that_has_to_be_turned() -> None:
    upright, turned = Orientation("Latin", 0), Orientation("Latin", 180)
    assert [layout(upright, attempt)[1] for attempt in (1, 2, 3, 4)] == ["3", "4", "6", "6"]
    assert [layout(None, attempt)[1] for attempt in (1, 2, 3)] == ["3", "4", "6"]
    assert [layout(Orientation("Han", 0), attempt)[1] for attempt in (1, 2, 3)] == ["1", "4", "6"]
    assert {layout(turned, attempt) for attempt in (1, 2, 3)} == {("--psm", "1", "-c", "min_orientation_margin=0")}


@pytest.mark.parametrize("number", [1, 3, 8])
async def test_a_line_whose_script_is_taken_for_another_is_read_as_what_it_is(number: int, scratch: Path) -> None:
    """Where Russian is installed, Tesseract takes these for Cyrillic."""
    recogniser = await Tesseract.find()
    assert "rus" in recogniser.installed
    result = await recogniser.recognise(page_of(scanned_page(scan_text(number), dpi=300), scratch, 300), 1)
    assert character_error_rate(result.text, scan_text(number)) < 0.05


def test_languages_that_are_asked_for_are_the_only_ones_that_are_tried() -> None:
    installed = ("eng", "deu", "rus", "osd")
    auto, asked = Tesseract(installed, None, 60.0), Tesseract(installed, ["rus"], 60.0)
    cyrillic = Orientation("Cyrillic", 0)
    assert auto.candidates(cyrillic) == [("rus",), ("deu", "eng")]
    assert auto.candidates(Orientation("Latin", 0)) == [("deu", "eng")]
    assert auto.candidates(None) == [("deu", "eng"), ("rus",)]
    assert asked.candidates(cyrillic) == asked.candidates(None) == [("rus",)]


def test_an_orientation_report_is_understood_and_an_unsure_one_is_not_believed() -> None:
    report = "Rotate: 180\nOrientation confidence: 1.82\nScript: Cyrillic\nScript confidence: 0.41\n"
    assert parsed_orientation(report) == Orientation("Cyrillic", 180)
    assert parsed_orientation(report.replace("1.82", "0.22")) is None
    assert parsed_orientation("") is None

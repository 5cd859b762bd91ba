"""Reading single pages with the Tesseract that is installed, and the choice of languages."""

from pathlib import Path

import pytest
from PIL import Image

from ocr.errors import LanguageMissing, RecogniserError, RecogniserTimeout, ToolMissing
from ocr.protocol import Page
from ocr.tesseract import (
    Orientation,
    Tesseract,
    installed_languages,
    languages_for,
    mean_confidence,
    parsed_orientation,
)
from samples.make_sample import draw_page
from tests.documents import character_error_rate, scanned_page
from tests.unit.ocr.conftest import Offspring

TEXT = (
    "The foreman had a slate by the door. On it he wrote which engine stood in which stall, how hot it was, "
    "and which train was waiting for it. Nobody had to remember anything."
)


def page_of(image: Image.Image, scratch: Path, dpi: int | None = 150) -> Page:
    path = scratch.parent / "page-000001.png"
    image.save(path)
    return Page(1, path, image.width, image.height, dpi)


async def read(image: Image.Image, scratch: Path, timeout: float = 60.0) -> tuple[str, float | None, int]:
    result = await (await Tesseract.find(["eng"], timeout)).recognise(page_of(image, scratch))
    return result.text, result.confidence, result.rotation


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
    await (await Tesseract.find()).recognise(page)
    assert set(page.path.parent.iterdir()) == before


async def test_a_list_of_paths_named_png_never_reaches_tesseract(scratch: Path) -> None:
    path = scratch.parent / "page-000001.png"
    path.write_text("/etc/passwd\n")
    with pytest.raises(ValueError, match="is not a PNG"):
        await (await Tesseract.find()).recognise(Page(1, path, 10, 10, None))


async def test_a_page_that_takes_too_long_ends_in_a_timeout_that_may_be_tried_again(
    scratch: Path, offspring: Offspring
) -> None:
    with pytest.raises(RecogniserTimeout, match=r"longer than 0\.1 s for page 1") as caught:
        await read(scanned_page(TEXT), scratch, timeout=0.1)
    assert not caught.value.permanent
    assert offspring() == []


async def test_a_page_that_tesseract_cannot_read_gives_what_it_said(scratch: Path) -> None:
    path = scratch.parent / "page-000001.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(RecogniserError, match="failed with status 1 on page 1") as caught:
        await (await Tesseract.find()).recognise(Page(1, path, 10, 10, None))
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
        ("Latin", ("rus", "fra", "deu", "eng"), ("eng", "deu", "fra")),
        ("Cyrillic", ("eng", "osd", "rus"), ("rus",)),
        ("Cyrillic", ("eng", "osd"), ("eng",)),
        ("Klingon", ("eng", "deu"), ("eng", "deu")),
        ("Latin", ("osd", "tha", "jpn"), ("jpn",)),
    ],
)
def test_a_script_is_read_with_its_languages_of_those_installed(
    script: str, installed: tuple[str, ...], languages: tuple[str, ...]
) -> None:
    assert languages_for(script, installed) == languages


def test_an_orientation_report_is_understood_and_an_unsure_one_is_not_believed() -> None:
    report = "Page number: 0\nOrientation in degrees: 180\nRotate: 180\nScript: Cyrillic\nScript confidence: 2.50\n"
    assert parsed_orientation(report) == Orientation("Cyrillic", 180)
    assert parsed_orientation(report.replace("2.50", "0.74")) is None
    assert parsed_orientation("") is None


def test_confidence_is_weighted_by_length_and_ignores_what_is_no_word() -> None:
    head = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n"
    rows = "4\t1\t1\t1\t1\t0\t0\t0\t9\t9\t-1\t\n5\t1\t1\t1\t1\t1\t0\t0\t9\t9\t90\tabc\n"
    rows += '5\t1\t1\t1\t1\t2\t0\t0\t9\t9\t50\t"\n5\t1\t1\t1\t1\t3\t0\t0\t9\t9\t95\t \n'
    assert mean_confidence(head + rows) == 0.8
    assert mean_confidence(head) is None

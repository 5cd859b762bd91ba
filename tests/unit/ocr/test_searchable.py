"""Searchable PDFs, read by poppler: the text is there, and where its picture is."""

import re
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from ocr.decoder import straight
from ocr.errors import OcrError, ToolMissing
from ocr.protocol import Page
from ocr.searchable import AT_ONCE, NoTextLayer, Part, Picture, TextLayer, joined, with_picture
from ocr.searchable_pictures_child import jpeg_header
from ocr.straight import write_straight
from ocr.tesseract import Tesseract
from samples.make_sample import draw_page, scanned
from tests.documents import blank_pdf, character_error_rate, encoded, page_jpeg, scanned_page

DPI = 150
TEXT = (
    "The foreman had a slate by the door. On it he wrote which engine stood in which stall, how hot it was, "
    "and which train was waiting for it. Nobody had to remember anything."
)
WORD = re.compile(r'<word xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)">(.*?)</word>')


def told(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def searchable(image: Image.Image, scratch: Path, dpi: int | None = DPI) -> Path:
    """The file of the one-page PDF that is made of the picture."""
    path = scratch.parent / "page-000001.png"
    image.save(path)
    tesseract = await Tesseract.find(["eng"], searchable=True)
    lines = straight(path, *write_straight(image, path))
    reading = await tesseract.recognise(Page(1, path, image.width, image.height, dpi, straight=lines), 1)
    assert reading.pdf is not None
    output = scratch.parent / "page.pdf"
    output.write_bytes(reading.pdf)
    return output


async def parts(*pages: bytes | Part) -> AsyncIterator[Part]:
    for page in pages:
        yield TextLayer(page) if isinstance(page, bytes) else page


def ink_around(page: Image.Image, box: tuple[float, float, float, float]) -> float:
    """The share of dark pixels in a box given in points."""
    part = page.crop(tuple(round(side * DPI / 72) for side in box))  # type: ignore[arg-type]
    return sum(part.histogram()[:128]) / (part.width * part.height)


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
async def test_words_are_found_where_they_are_seen_on_an_upright_page(turned: int, scratch: Path) -> None:
    page = scanned(draw_page([TEXT], dpi=DPI)[0], 2.0, seed=1, sigma=5).rotate(turned, expand=True)
    pdf = await searchable(page, scratch)
    assert character_error_rate(told("pdftotext", pdf, "-"), TEXT) < 0.02
    told("pdftoppm", "-r", str(DPI), "-gray", "-png", "-singlefile", pdf, pdf.with_suffix(""))
    with Image.open(pdf.with_suffix(".png")) as seen:
        assert seen.size == (1275, 1650), "it is shown upright"
        words = WORD.findall(told("pdftotext", "-bbox", pdf, "-"))
        assert len(words) == len(TEXT.split())
        shares = [ink_around(seen, tuple(map(float, word[:4]))) for word in words]  # type: ignore[arg-type]
        # Tesseract itself places a single "a" beside its ink now and then.
        assert sum(share > 0.02 for share in shares) > 0.9 * len(words), "each box has the ink of its word"
        assert ink_around(seen, (80, 300, 500, 700)) < 0.001, "there is none where there is no text"


async def test_the_page_has_the_size_of_its_paper_and_a_file_much_smaller_than_the_picture(scratch: Path) -> None:
    image = scanned_page(TEXT)
    pdf = await searchable(image, scratch)
    assert "612 x 792 pts (letter)" in told("pdfinfo", pdf)
    assert pdf.stat().st_size < len(encoded(image)) / 5
    assert "Page rot:        0" in told("pdfinfo", pdf)


async def test_a_colour_photo_of_unknown_resolution_becomes_a_page_in_colour(scratch: Path) -> None:
    pdf = await searchable(Image.merge("RGB", [scanned_page(TEXT)] * 3), scratch, dpi=None)
    assert re.search(r"image +1275 +1650 +rgb +3 +8 +jpeg", told("pdfimages", "-list", pdf))


async def test_a_blank_page_is_a_page_too(scratch: Path) -> None:
    pdf = await searchable(Image.new("L", (850, 1100), 250), scratch, dpi=100)
    assert told("pdftotext", pdf, "-").strip() == ""
    assert "612 x 792 pts" in told("pdfinfo", pdf)


async def test_pages_are_joined_in_their_order_however_many_they_are(scratch: Path) -> None:
    first = (await searchable(scanned_page("Page one of many"), scratch)).read_bytes()
    last = (await searchable(scanned_page(TEXT).rotate(180), scratch)).read_bytes()
    empty = blank_pdf(width=200, height=100)
    whole = scratch.parent / "whole.pdf"
    whole.write_bytes(await joined(parts(first, *[empty] * (2 * AT_ONCE), last)))
    count = 2 * AT_ONCE + 2
    information = told("pdfinfo", "-f", "1", "-l", str(count), whole)
    assert f"Pages:           {count}" in information
    assert [int(turn) for turn in re.findall(r"Page +\d+ rot: +(\d+)", information)][:: count - 1] == [0, 180]
    pages = told("pdftotext", whole, "-").split("\f")
    assert [pages[0].strip(), pages[1], pages[count - 1][:11]] == ["Page one of many", "", "The foreman"]


async def test_one_page_is_the_whole() -> None:
    assert await joined(parts(b"%PDF")) == b"%PDF"


async def test_a_page_without_a_text_layer_is_its_picture_at_its_place(scratch: Path) -> None:
    text = (await searchable(scanned_page(TEXT), scratch)).read_bytes()
    grey = Picture(encoded(scanned_page(TEXT), "JPEG"), 2550, 3300)
    colour = Picture(encoded(Image.new("RGB", (160, 40), "red"), "JPEG", progressive=True), 320, 80)
    whole = scratch.parent / "whole.pdf"
    whole.write_bytes(await joined(parts(grey, text, colour)))
    sizes = re.findall(r"Page +\d+ size: +([\d.]+) x ([\d.]+) pts", told("pdfinfo", "-l", "3", whole))
    assert [(round(float(width)), round(float(height))) for width, height in sizes] == [
        (651, 842),
        (612, 792),
        (842, 210),
    ]
    assert [page.strip()[:11] for page in told("pdftotext", whole, "-").split("\f")] == ["", "The foreman", "", ""]
    told("pdftoppm", "-r", "72", "-png", whole, scratch.parent / "seen")
    with Image.open(scratch.parent / "seen-1.png") as seen, Image.open(scratch.parent / "seen-3.png") as red:
        assert sum(seen.convert("L").histogram()[:128]) > 1000, "the words are seen"
        corners = [red.getpixel(place) for place in ((1, 1), (840, 1), (1, 208), (840, 208))]
        assert all(found[0] > 240 and found[1] < 20 for found in corners)  # type: ignore[index]


async def test_a_picture_that_is_no_jpeg_is_an_error_and_nothing_is_left() -> None:
    with pytest.raises(OcrError, match="makes pages of pictures ended with status 1") as caught:
        await joined(parts(Picture(b"GIF89a", 10, 10)))
    assert "is no JPEG" in caught.value.details["stderr"]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8" + b"\xff" * 100,
        b"\xff\xd8\xff\xe0\xff\xff",
        b"\xff\xd8\xff\xc0\0\x11\x08",
        b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, 0, 10, 3),
        b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, 10, 10, 4),
        b"\xff\xd8\xff\xe0\0\0" * 50,
    ],
)
def test_the_header_of_a_damaged_jpeg_is_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="no JPEG"):
        jpeg_header(damaged)


async def test_of_no_pages_nothing_is_made() -> None:
    with pytest.raises(ValueError, match="There is no page"):
        await joined(parts())


async def test_pages_that_cannot_be_joined_end_in_an_error_that_says_why() -> None:
    with pytest.raises(OcrError, match="pdfunite ended with status") as caught:
        await joined(parts(b"%PDF-1.5 and no more", blank_pdf()))
    assert caught.value.details["stderr"]


async def test_a_machine_without_pdfunite_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match="install poppler-utils"):
        await joined(parts(blank_pdf(), blank_pdf()))


def test_a_file_that_is_no_text_layer_is_refused() -> None:
    with pytest.raises(NoTextLayer, match="has nothing like"):
        with_picture(b"%PDF-1.5", page_jpeg(), (10, 10), True, 0)

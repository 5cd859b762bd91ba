"""PDF pages, limits, and the life and death of the decoding child."""

import asyncio
import dataclasses
import io
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image

from ocr.decoder import PageDecoder
from ocr.errors import (
    DecoderCrashed,
    DecodeTimeout,
    DocumentTooLarge,
    ImageTooLarge,
    NoPages,
    NoSuchPage,
    TooManyPages,
    UnreadableDocument,
)
from ocr.protocol import DecodeLimits
from ocr.skew import skew_of
from samples.make_sample import draw_page
from tests.conditions import eventually
from tests.documents import (
    blank_pdf,
    encrypted_pdf,
    endless_pdf,
    giant_page_pdf,
    page_png,
    pdf_of_scans,
    pdf_that_claims_pages,
    png_bomb,
    scan_text,
    scanned_page,
    scanned_pdf,
    write_pdf,
)
from tests.unit.ocr.conftest import Offspring, names

PDF = "application/pdf"


async def test_pages_are_drawn_at_the_resolution_asked_for() -> None:
    async with PageDecoder(scanned_pdf(3), PDF, DecodeLimits(dpi=100)) as decoder:
        assert decoder.page_count == 3
        sizes = [(page.number, page.width, page.height, page.dpi) async for page in decoder]
    assert sizes == [(number, 850, 1100, 100) for number in (1, 2, 3)]


async def test_only_pages_that_were_asked_for_lie_on_the_disk(scratch: Path) -> None:
    async with PageDecoder(scanned_pdf(4), PDF, DecodeLimits(dpi=50)) as decoder:
        page = await decoder.page(3)
        assert page.path.parent.parent == scratch
        assert names(page.path.parent) == ["document", page.preview.name, page.path.name]


async def test_calls_that_overlap_get_their_own_pages() -> None:
    async with PageDecoder(scanned_pdf(4), PDF, DecodeLimits(dpi=50)) as decoder:
        pages = await asyncio.gather(*(decoder.page(number) for number in (4, 2, 3, 1)))
    assert [page.number for page in pages] == [4, 2, 3, 1]


async def test_only_the_pages_asked_for_are_numbered_and_drawn() -> None:
    async with PageDecoder(scanned_pdf(6), PDF, DecodeLimits(dpi=50), pages="5,2-3,2") as decoder:
        assert decoder.page_count == 6
        assert decoder.numbers == (2, 3, 5)
        assert [page.number async for page in decoder] == [2, 3, 5]


async def test_the_limit_of_pages_is_one_of_those_asked_for() -> None:
    async with PageDecoder(scanned_pdf(6), PDF, DecodeLimits(max_pages=2), pages="5-6") as decoder:
        assert decoder.numbers == (5, 6)
    for pages in ("1-3", None):
        with pytest.raises(TooManyPages) as caught:
            async with PageDecoder(scanned_pdf(6), PDF, DecodeLimits(max_pages=2), pages=pages):
                pytest.fail("the document was opened")
        assert caught.value.permanent


async def test_a_page_beyond_the_end_is_refused_when_the_document_is_opened() -> None:
    with pytest.raises(NoSuchPage, match=r"Page 9 was asked for, and the document has 2\.") as caught:
        async with PageDecoder(scanned_pdf(2), PDF, pages="1,9"):
            pytest.fail("the document was opened")
    assert caught.value.permanent
    with pytest.raises(NoSuchPage, match="'two' is not a page"):
        PageDecoder(scanned_pdf(2), PDF, pages="two")


async def test_a_preview_shows_the_whole_page_small() -> None:
    async with PageDecoder(scanned_pdf(1), PDF, DecodeLimits(dpi=300)) as decoder:
        page = await decoder.page(1)
        with Image.open(page.preview) as preview:
            assert (preview.format, preview.size) == ("JPEG", (1236, 1600))
        assert page.preview.stat().st_size < 600_000


async def test_a_blank_page_is_called_so_among_others() -> None:
    white = Image.new("L", scanned_page("x").size, 250)
    data = pdf_of_scans([scanned_page(scan_text(1)), white, scanned_page("7")])
    async with PageDecoder(data, PDF, DecodeLimits(dpi=150)) as decoder:
        assert [page.blank async for page in decoder] == [False, True, False]


async def test_parts_of_a_page_are_cropped_as_they_look_and_within_the_page() -> None:
    async with PageDecoder(blank_pdf(content=b"0 0 306 396 re f"), PDF, DecodeLimits(dpi=72)) as decoder:
        page = await decoder.page(1)
        boxes = [(300, 390, 312, 402), (-50, 700, 10, 9_000), (5, 5, 5, 5), (9_000, 9_000, 9_999, 9_999)]
        parts = [Image.open(io.BytesIO(part)) for part in await decoder.crop(1, boxes) if part is not None]
        assert [part.size for part in parts] == [(12, 12), (10, 92), (1, 1), (1, 1)]
        assert [parts[0].getpixel(place) for place in ((0, 11), (11, 11), (0, 0))] == [0, 255, 255]
        assert await decoder.crop(1, []) == []
        assert names(page.path.parent) == ["document", page.preview.name, page.path.name]


async def test_a_part_is_reduced_to_what_people_look_at() -> None:
    async with PageDecoder(scanned_pdf(1), PDF, DecodeLimits(dpi=300)) as decoder:
        page = await decoder.page(1)
        middle = page.width // 2
        half, strip = await decoder.crop(1, [(0, 0, middle, page.height), (middle, 0, page.width, 99)])
        assert half is not None
        assert strip is not None
        assert (Image.open(io.BytesIO(half)).size, Image.open(io.BytesIO(strip)).size) == ((618, 1600), (1275, 99))
        assert len(half) < 618 * 1600 / 2, "it is packed"


async def test_more_is_not_cropped_than_a_page_holds_nor_a_page_that_was_not_drawn() -> None:
    async with PageDecoder(scanned_pdf(2), PDF, DecodeLimits(dpi=50)) as decoder:
        page = await decoder.page(1)
        whole, dot = (0, 0, page.width, page.height), (0, 0, 1, 1)
        first, second = await decoder.crop(1, [whole, dot])
        assert (first is not None, second) == (True, None), "the first that fit"
        half = (-500, 0, page.width // 2, page.height)
        strip = (0, 0, 2, page.height)
        kept = await decoder.crop(1, [half, whole, half, strip])
        assert [part is not None for part in kept] == [True, False, True, False]
        assert [part is not None for part in await decoder.crop(1, [dot] * 300)] == [True] * 200 + [False] * 100
        assert names(page.path.parent) == ["document", page.preview.name, page.path.name]
        with pytest.raises(FileNotFoundError):
            await decoder.crop(2, [(0, 0, 9, 9)])
        assert len(await decoder.crop(1, [(0, 0, 9, 9)] * 2)) == 2


async def test_a_smaller_limit_is_made_of_a_larger_one() -> None:
    limits = dataclasses.replace(DecodeLimits(), cpu_seconds=3.0)
    assert (limits.cpu_seconds, limits.opening_cpu_seconds, limits.dpi) == (3.0, 1.5, 300)


async def test_an_owner_locked_pdf_is_read() -> None:
    async with PageDecoder(encrypted_pdf(password=""), PDF, DecodeLimits(dpi=72)) as decoder:
        page = await decoder.page(1)
        with Image.open(page.path) as image:
            assert image.getpixel((30, 114)) == 0
            assert image.getpixel((114, 30)) == 255


async def test_a_page_of_200_inches_is_drawn_within_the_clamp_and_with_its_ink() -> None:
    async with PageDecoder(giant_page_pdf(200), PDF, DecodeLimits(page_pixels=20_000_000)) as decoder:
        page = await decoder.page(1)
        assert 15_000_000 < page.width * page.height <= 20_010_000
        with Image.open(page.path) as image:
            assert image.getpixel((page.width // 2, page.height // 2)) == 0
            assert image.getpixel((page.width // 2, 5)) == 255


async def test_a_page_beyond_any_resolution_is_refused_with_its_size() -> None:
    async with PageDecoder(giant_page_pdf(20_000), PDF) as decoder:
        with pytest.raises(ImageTooLarge, match=r"Page 1 of the PDF measures 20,000 x 20,000 inches"):
            await decoder.page(1)


async def test_a_page_that_is_not_there_is_refused_by_number() -> None:
    async with PageDecoder(blank_pdf(pages=1, claimed=2), PDF, DecodeLimits(dpi=50)) as decoder:
        assert (await decoder.page(1)).number == 1
        with pytest.raises(UnreadableDocument, match="PDF") as caught:
            await decoder.page(2)
    assert caught.value.details["page"] == 2


async def test_a_false_page_count_is_too_many_pages_whether_poppler_sees_through_it_or_not() -> None:
    for data in (pdf_that_claims_pages(), pdf_that_claims_pages(objects=10)):
        with pytest.raises(TooManyPages, match="has 200,000 pages; at most 500 are read"):
            async with PageDecoder(data, PDF):
                pytest.fail("the document was opened")


async def test_a_pdf_without_a_page_tree_has_no_pages_or_is_unreadable() -> None:
    with pytest.raises((NoPages, UnreadableDocument)):
        async with PageDecoder(write_pdf([b"<< /Type /Catalog >>"]), PDF):
            pytest.fail("the document was opened")


async def test_bytes_that_only_look_like_a_pdf_are_unreadable_with_what_poppler_said() -> None:
    with pytest.raises(UnreadableDocument) as caught:
        async with PageDecoder(b"%PDF-1.7\nnothing else\n%%EOF\n", PDF):
            pytest.fail("the document was opened")
    assert "trailer" in str(caught.value.details["stderr"])


async def test_a_page_that_is_drawn_for_ever_meets_its_processor_time() -> None:
    async with PageDecoder(endless_pdf(), PDF, DecodeLimits(cpu_seconds=1)) as decoder:
        with pytest.raises(DecodeTimeout, match="more than 1 s of processor time") as caught:
            await decoder.page(1)
    assert caught.value.permanent
    assert caught.value.details["tool"] == "pdftoppm"


async def test_a_picture_that_takes_too_much_processor_time_is_a_timeout_too() -> None:
    limits = DecodeLimits(cpu_seconds=0, image_pixels=400_000_000)
    async with PageDecoder(png_bomb(20_000, 20_000), "image/png", limits) as decoder:
        with pytest.raises(DecodeTimeout) as caught:
            await decoder.page(1)
    assert caught.value.details["clock"] == "cpu"


async def test_time_on_the_wall_is_a_timeout_that_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocr.decoder.GRACE", 0.0)
    # Enough to open the document, on any machine, and more processor time than that.
    async with PageDecoder(endless_pdf(), PDF, DecodeLimits(wall_seconds=3, cpu_seconds=60)) as decoder:
        with pytest.raises(DecodeTimeout, match="page 1 took longer than 3 s") as caught:
            await decoder.page(1)
    assert not caught.value.permanent


async def test_a_picture_that_needs_too_much_memory_is_refused() -> None:
    with pytest.raises((ImageTooLarge, DocumentTooLarge)) as caught:
        async with PageDecoder(png_bomb(9_000, 9_900), "image/png", DecodeLimits(memory=150 * 2**20)) as decoder:
            await decoder.page(1)
    assert caught.value.permanent


async def test_a_pdf_page_that_needs_too_much_memory_is_refused() -> None:
    async with PageDecoder(giant_page_pdf(), PDF, DecodeLimits(memory=200 * 2**20)) as decoder:
        with pytest.raises((DocumentTooLarge, UnreadableDocument)) as caught:
            await decoder.page(1)
    assert caught.value.permanent


async def test_a_page_that_needs_too_large_a_file_is_refused() -> None:
    async with PageDecoder(page_png(), "image/png", DecodeLimits(file_size=100_000)) as decoder:
        with pytest.raises(DocumentTooLarge, match="Page 1 needs a file larger"):
            await decoder.page(1)


@pytest.mark.parametrize(("number", "permanent"), [(signal.SIGSEGV, True), (signal.SIGKILL, False)])
async def test_a_signal_death_is_named(number: signal.Signals, permanent: bool, offspring: Offspring) -> None:
    async with PageDecoder(scanned_pdf(1), PDF) as decoder:
        (child,) = offspring()
        child.send_signal(number)
        with pytest.raises(DecoderCrashed, match=f"was ended by {number.name}") as caught:
            await decoder.page(1)
    assert caught.value.permanent is permanent
    assert caught.value.details["signal"] == number.name


async def test_a_document_does_not_see_our_secrets(monkeypatch: pytest.MonkeyPatch, offspring: Offspring) -> None:
    monkeypatch.setenv("JWT_SECRET", "well kept")
    async with PageDecoder(scanned_pdf(1), PDF):
        (child,) = offspring()
        assert "JWT_SECRET" not in child.environ()
        assert (child.rlimit(psutil.RLIMIT_CORE), child.rlimit(psutil.RLIMIT_NOFILE)) == ((0, 0), (64, 64))
        assert child.rlimit(psutil.RLIMIT_AS) == (DecodeLimits().memory, DecodeLimits().memory)


async def test_an_error_in_the_block_still_ends_the_child_and_removes_the_files() -> None:
    async def stumble() -> None:
        async with PageDecoder(scanned_pdf(1), PDF) as decoder:
            await decoder.page(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stumble()


VICTIM = """
import asyncio, sys
from ocr.decoder import PageDecoder
from tests.documents import endless_pdf
async def main():
    async with PageDecoder(endless_pdf(), "application/pdf") as decoder:
        print("open", flush=True)
        await decoder.page(1)
asyncio.run(main())
"""


async def test_decoder_and_poppler_die_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)}
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", VICTIM, env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert victim.stdout is not None
    assert await victim.stdout.readline() == b"open\n"
    family: list[psutil.Process] = []

    async def drawing() -> bool:
        family[:] = psutil.Process(victim.pid).children(recursive=True)
        with suppress(psutil.NoSuchProcess):  # a tool that came before may end while it is looked at
            return "pdftoppm" in [process.name() for process in family]
        return False

    await eventually(drawing)
    victim.kill()
    await victim.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, timeout=5)
    assert alive == []


async def test_pages_come_straight_only_where_somebody_wants_them_so(scratch: Path) -> None:
    askew, blank = scanned_page(scan_text(1), skew=2.0, dpi=200), Image.new("L", (1700, 2200), 255)
    document = pdf_of_scans([askew, draw_page([scan_text(1)], dpi=200)[0], blank], 200)
    async with PageDecoder(document, PDF, DecodeLimits(dpi=200), straight=True) as decoder:
        turned, as_it_lay, empty = [page async for page in decoder]
        assert turned.straight is not None
        assert turned.straight.angle == pytest.approx(-2.0, abs=0.11)
        assert turned.straight.reduction == 2
        with Image.open(turned.straight.path) as picture, Image.open(turned.straight.part) as part:
            assert (picture.mode, picture.size) == ("L", (turned.width, turned.height))
            assert skew_of(picture) == 0
            assert part.width == turned.width // 2
        assert as_it_lay.straight is not None
        assert (as_it_lay.straight.path, as_it_lay.straight.angle) == (as_it_lay.path, 0)
        assert (empty.blank, empty.straight) == (True, None)
        for page in (turned, as_it_lay, empty):
            page.remove()
        assert names(turned.path.parent) == ["document"]
    async with PageDecoder(document, PDF, DecodeLimits(dpi=50)) as decoder:
        assert (await decoder.page(1)).straight is None

"""PDF → pages, drawn by poppler. Runs in the decoding child only."""

import io
import math
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pdf2image.pdf2image as pdf2image
from pdf2image.exceptions import PDFInfoNotInstalledError, PDFPageCountError, PDFPopplerTimeoutError
from PIL import Image

from ocr.embedded import Surroundings, embedded_text, parsed, without_text
from ocr.ink import Marks
from ocr.pictures import flattened, shrinkage
from ocr.poppler import Poppler, budget, said
from ocr.protocol import (
    MEBIBYTE,
    DecodeLimits,
    Embedded,
    Refusal,
    decoder_death,
    out_of_memory,
    too_many_pages,
    wall_timeout,
)

MIN_DPI = 20
TEXT_CPU_SECONDS = 3
TEXT_FILE = 24 * MEBIBYTE
LIST_FILE = MEBIBYTE
HEADER_LINES = 2


class PdfDocument:
    def __init__(self, path: Path, limits: DecodeLimits, some: bool) -> None:
        """`some`: only some of its pages are asked for."""
        self.some = some
        self.path = path
        self.limits = limits
        budget.begin(limits.opening_cpu_seconds)
        setattr(pdf2image, "Popen", Poppler)  # noqa: B010 - mypy knows the name as imported only
        check_ends(path.read_bytes())
        self.pages = int(self._info()["Pages"])
        if self.pages < 1:
            raise Refusal("no_pages", "The PDF has no pages.")

    def draw(self, number: int) -> tuple[Image.Image, int | None]:
        """Page `number` (from 1), as a reader shows it, and the resolution at which it was drawn."""
        budget.begin(self.limits.cpu_seconds)
        width, height = self._size(number)
        dpi = self._dpi(number, width, height)
        page = self._drawn(number, dpi)
        if page is None:
            raise self._unreadable(f"Page {number} of the PDF cannot be drawn.", page=number)
        # Where poppler cannot have the memory for a page it draws one pixel and says nothing.
        if page.width * page.height < width * height * (dpi / 72) ** 2 * 0.5:
            raise self._unreadable(f"Page {number} of the PDF was not drawn in full.", page=number)
        return flattened(page), dpi

    def _drawn(self, number: int, dpi: int) -> Image.Image | None:
        # Not by pdf2image, which counts the pages of the document again for each one, and copies it.
        where = ["-r", str(dpi), "-f", str(number), "-l", str(number), "-cropbox", str(self.path)]
        program = Poppler(["pdftoppm", *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            drawn, _ = program.communicate(timeout=self.limits.wall_seconds)
        except subprocess.TimeoutExpired:
            program.kill()
            program.communicate()
            raise wall_timeout(number, self.limits) from None
        self._check_end(number)
        try:
            page = Image.open(io.BytesIO(drawn), formats=("PPM",))
            page.load()
        except (OSError, ValueError):  # It stops amid its picture, or before.
            return None
        return page

    def text(self, number: int, page: Image.Image, dpi: int | None) -> Embedded | None:
        """The text that page `number` carries, compared with the page as it was drawn at `dpi`."""
        assert dpi is not None
        layout = self._tool("pdftotext", number, TEXT_FILE, ["-bbox-layout", "-cropbox"], ["-"])
        if layout is None:
            return without_text("Poppler could not take the text out of the page.")
        found = parsed(layout, dpi / 72, page.width, page.height)
        if not found.blocks:
            return without_text("The page carries no text.")
        return embedded_text(found, Marks(page), self._surroundings(number, page, dpi))

    def _surroundings(self, number: int, page: Image.Image, dpi: int) -> Surroundings:
        fonts = self._tool("pdffonts", number, LIST_FILE)
        pictures = self._tool("pdfimages", number, LIST_FILE, ["-list"])
        # What cannot be listed is taken for the worst: the page is read by OCR.
        if fonts is None or pictures is None:
            return Surroundings(1.0, ())
        area = page.width * page.height / dpi**2
        return Surroundings(sum(picture_areas(pictures)) / area, tuple(nameless_fonts(fonts)))

    def _tool(
        self, tool: str, number: int, most: int, before: Sequence[str] = (), after: Sequence[str] = ()
    ) -> str | None:
        command = [tool, *before, "-f", str(number), "-l", str(number), str(self.path), *after]
        return said(command, self.path.with_name("said"), TEXT_CPU_SECONDS, most, self.limits.wall_seconds)

    def _size(self, number: int) -> tuple[float, float]:
        """Width and height in points, before the page's own rotation."""
        for key, value in self._info(number).items():
            match = re.match(r"([\d.e+]+) x ([\d.e+]+) pts", str(value))
            if re.fullmatch(rf"Page +{number} size", key) and match:
                width, height = float(match[1]), float(match[2])
                if width > 0 and height > 0 and math.isfinite(width * height):
                    return width, height
        raise self._unreadable(f"Page {number} of the PDF has no size.", page=number)

    def _dpi(self, number: int, width: float, height: float) -> int:
        wanted = self.limits.dpi
        pixels_a_point = wanted / 72
        dpi = int(wanted * shrinkage(width * pixels_a_point, height * pixels_a_point, self.limits))
        if dpi < MIN_DPI:
            size = f"{width / 72:,.0f} x {height / 72:,.0f} inches"
            raise Refusal("image_too_large", f"Page {number} of the PDF measures {size}.", page=number)
        return dpi

    def _info(self, page: int | None = None) -> dict[str, Any]:
        where = {} if page is None else {"page": page}
        pages: dict[str, Any] = {} if page is None else {"first_page": page, "last_page": page}
        try:
            info: dict[str, Any] = pdf2image.pdfinfo_from_path(
                str(self.path), timeout=math.ceil(self.limits.wall_seconds), **pages
            )
        except PDFPopplerTimeoutError:
            raise wall_timeout(page, self.limits) from None
        except PDFInfoNotInstalledError:
            message = "pdfinfo is not on PATH: install poppler-utils to read PDF."
            raise Refusal("tool_missing", message, False, tool="pdfinfo") from None
        except PDFPageCountError:
            raise self._refused_opening(where) from None
        return info

    def _refused_opening(self, where: dict[str, Any]) -> Refusal:
        said = Poppler.stderr_text
        if "Incorrect password" in said:
            return Refusal("encrypted_document", "The PDF opens only with a password; remove it first.")
        claimed = re.search(r"Page count \((\d+)\) larger than number of objects", said)
        if claimed and not self.some and int(claimed[1]) > self.limits.max_pages:
            return too_many_pages(int(claimed[1]), self.limits.max_pages)
        if "after the last page (0)" in said and not claimed:
            return Refusal("no_pages", "The PDF has no pages.", stderr=said)
        self._check_end(where.get("page"))
        return self._unreadable("The PDF is damaged and cannot be opened.", **where)

    def _check_end(self, page: int | None) -> None:
        """Raise for a poppler that did not end by itself; its own complaints are for the caller to judge."""
        if Poppler.status < 0 or out_of_memory(Poppler.stderr_text):
            death = decoder_death(Poppler.tool, Poppler.status, Poppler.stderr_text, budget.seconds)
            death.details["page"] = page
            raise death

    def _unreadable(self, message: str, **where: Any) -> Refusal:
        return Refusal("unreadable_document", message, stderr=Poppler.stderr_text, **where)


def picture_areas(listed: str) -> Iterator[float]:
    """The area in square inches of each picture that ``pdfimages -list`` lists."""
    for line in listed.splitlines()[HEADER_LINES:]:
        # page num type width height color comp bpc enc interp object ID x-ppi y-ppi size ratio
        fields = line.split()
        try:
            width, height, across, down = (float(fields[index]) for index in (3, 4, -4, -3))
            if fields[2] != "smask":
                yield (width / across) * (height / down)
        except (ValueError, IndexError, ZeroDivisionError):
            continue


def nameless_fonts(listed: str) -> Iterator[str]:
    """The fonts of ``pdffonts`` whose codes mean glyphs, with no table of the characters that these are."""
    for line in listed.splitlines()[HEADER_LINES:]:
        match = re.search(r"^(.*?) +.*\bIdentity-[HV] +(?:yes|no) +(?:yes|no) +no\b", line)
        if match:
            yield match[1].strip() or "(without a name)"


def check_ends(data: bytes) -> None:
    """Raise `Refusal` for bytes that do not begin as a PDF, or that stop before its end.

    Poppler mends a PDF that breaks off, and shows grey where the rest of a picture would be: text would be
    missing without a word. A whole PDF has an end mark after its last object.
    """
    if b"%PDF-" not in data[:1024]:
        raise Refusal("unreadable_document", "The file is not a PDF.")
    if data.rfind(b"endobj") > data.rfind(b"%%EOF") or b"%%EOF" not in data:
        raise Refusal("truncated_document", "The PDF breaks off before its end.")

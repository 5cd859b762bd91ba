"""Pages → text by Tesseract: of a straightened page the script is found, its languages chosen, and then it is read."""

import math
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import ocr
from ocr import limits
from ocr.errors import LanguageMissing, RecogniserCrashed, RecogniserError, RecogniserTimeout, ToolMissing
from ocr.page import Reading
from ocr.process import Child, child, python_arguments
from ocr.protocol import MEBIBYTE, Page
from ocr.tesseract_output import Straightening, blocks_of, confidence_of, markdown_of, text_of

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MEMORY = 3072 * MEBIBYTE
OUTPUT = 64 * MEBIBYTE
LIST_TIMEOUT = 30.0
EVERY_LINE = ("-c", "textord_noise_rejrows=0")
"""Without it Tesseract silently drops lines with many dots and strokes as noise: of scans in Arabic and Hindi one in
thirty lost a line or two, and which ones changed with a turn of 0.1 degrees."""
NOT_LANGUAGES = ("osd", "equ")

SCRIPTS: Mapping[str, tuple[str, ...]] = {
    "Latin": ("deu", "fra", "spa", "ita", "por", "nld", "eng"),
    "Fraktur": ("deu_latf", "frk", "deu"),
    "Cyrillic": ("rus", "ukr", "bul"),
    "Greek": ("ell",),
    "Arabic": ("ara", "fas", "urd"),
    "Hebrew": ("heb",),
    "Devanagari": ("hin", "mar", "nep"),
    "Bengali": ("ben",),
    "Tamil": ("tam",),
    "Telugu": ("tel",),
    "Thai": ("tha",),
    "Han": ("chi_sim", "chi_tra"),
    "Japanese": ("jpn",),
    "Hiragana": ("jpn",),
    "Katakana": ("jpn",),
    "Korean": ("kor",),
    "Hangul": ("kor",),
}
"""Script as Tesseract's OSD names it → the languages, of those installed, that read it. The first leads: a word that it
reads well is not given to the others. So English comes last, which reads è as e and ö as o and is sure of it, while the
others read English: in this order, pages in German and French have a fifth of the wrong letters."""
EITHER_WAY = ("Han", "Japanese", "Hiragana", "Katakana", "Korean", "Hangul")
"""Scripts whose lines may run down the page."""
DEFAULT_SCRIPT = "Latin"
SURE_OF_ORIENTATION = 1.5
"""Below it OSD guesses: six letters in noise lay on their side with 0.2, one line of English stands upright with 1.8 to
2.5, pages of text have 10 to 40. Its confidence in the script tells nothing: those six were Bengali with 2.8, a page of
Chinese is Han with 0.4, one of French Latin with 0.75 or with 170."""

MOST_CANDIDATES = 4
SURE_OF_TEXT = 0.75
"""Lines of English that were read as Russian had a confidence of 0.40 to 0.66; read as what they are, 0.92 to 0.96."""


@dataclass(frozen=True)
class Orientation:
    """What OSD is sure of: the script, and the degrees clockwise by which to turn the page upright."""

    script: str
    rotation: int


@dataclass(frozen=True)
class Sheet:
    """The file that Tesseract is given for a page, and what was done to it."""

    path: Path
    for_orientation: Path
    """Smaller: a page's orientation shows in a part of it too, at half its resolution, in half the time."""
    dpi: int | None
    dpi_for_orientation: int | None
    angle: float = 0.0


class Tesseract:
    """Tesseract as it is installed, asked for certain languages or (None) for those of each page's script.

    `timeout` is the limit in seconds on the processor time of each of its processes. With `searchable`, readings have
    the page as a PDF.
    """

    name = "tesseract"
    page_side: int | None = None
    wants_straight = True

    def __init__(
        self,
        installed: Collection[str],
        languages: Sequence[str] | None,
        timeout: float,
        *,
        searchable: bool = False,
    ) -> None:
        missing = [name for name in languages or () if name not in installed]
        if missing or not usable(installed):
            have = usable(installed)
            lacking, there = ", ".join(missing) or "language", ", ".join(have) or "none"
            message = f"Tesseract has no {lacking} here, only {there}: install tesseract-ocr-LANGUAGE."
            raise LanguageMissing(message, missing=missing, installed=have)
        self.installed = frozenset(installed)
        self.languages = tuple(languages) if languages else None
        self.timeout = timeout
        self.searchable = searchable

    @classmethod
    async def find(
        cls, languages: Sequence[str] | None = None, timeout: float = 300.0, *, searchable: bool = False
    ) -> Self:
        """Raises `ToolMissing` or `LanguageMissing` where Tesseract cannot do what is asked."""
        return cls(await installed_languages(), languages, timeout, searchable=searchable)

    async def recognise(self, page: Page, attempt: int) -> Reading:
        """Read a page that `ocr.decoder` wrote. Raises `RecogniserError` in one of its kinds.

        From the second try on the page is read as it was drawn, and its layout found in simpler ways.
        """
        try:
            return await self._recognise(page, attempt)
        finally:
            for path in page.path.parent.glob(f"{page.path.stem}.tess.*"):
                path.unlink()

    async def _recognise(self, page: Page, attempt: int) -> Reading:
        sheet = sheet_of(page, attempt)
        for path in (sheet.path, sheet.for_orientation):
            check_png(path)
        orientation = await self._orientation(sheet, page) if "osd" in self.installed else None
        best: Reading | None = None
        for languages in self.candidates(orientation):
            reading = await self._read(sheet, page, orientation, languages, attempt)
            best = reading if best is None else max(best, reading, key=lambda reading: reading.confidence or 0.0)
            if reading.confidence is None or reading.confidence >= SURE_OF_TEXT:
                break
        assert best is not None
        return best

    def candidates(self, orientation: Orientation | None) -> Sequence[tuple[str, ...]]:
        """The languages to read the page with, and those to read it with again as long as what was read is doubtful."""
        if self.languages:
            return [self.languages]
        # OSD takes a line of English for Cyrillic now and then. Where it says nothing there is little on the page.
        scripts = (orientation.script, DEFAULT_SCRIPT) if orientation else (DEFAULT_SCRIPT, *SCRIPTS)
        found: list[tuple[str, ...]] = []
        for script in scripts:
            languages = languages_for(script, self.installed)
            if not any(set(languages) <= set(others) for others in found):
                found.append(languages)
        # A page of noise is doubtful in every script.
        return found[:MOST_CANDIDATES]

    async def _orientation(self, sheet: Sheet, page: Page) -> Orientation | None:
        """Script and orientation, or None for a page with too little on it to tell."""
        output = _beside(page, "osd")
        status, _ = await self._run(sheet.for_orientation, sheet.dpi_for_orientation, page, "--psm", "0", "-l", "osd")
        if status != 0 and not output.exists():
            return None
        return parsed_orientation(_text(output))

    async def _read(
        self, sheet: Sheet, page: Page, orientation: Orientation | None, languages: tuple[str, ...], attempt: int
    ) -> Reading:
        rotation = orientation.rotation if orientation else 0
        pdf = ("-c", "tessedit_create_pdf=1", "-c", "textonly_pdf=1") if self.searchable else ()
        status, stderr = await self._run(
            sheet.path, sheet.dpi, page, *layout(orientation, attempt), "-l", "+".join(languages),
            *EVERY_LINE, "-c", "tessedit_create_hocr=1", *pdf,
        )  # fmt: skip
        if status != 0:
            message = f"Tesseract failed with status {status} on page {page.number}."
            raise RecogniserError(message, page=page.number, status=status, stderr=stderr)
        blocks = blocks_of(_text(_beside(page, "hocr")), Straightening(sheet.angle, page.width, page.height))
        return Reading(
            text_of(blocks),
            markdown_of(blocks, page.number),
            blocks,
            confidence_of([word for block in blocks for word in block.words]),
            rotation,
            languages,
            pdf=await self._pdf(page, sheet.angle, rotation) if self.searchable else None,
        )

    async def _pdf(self, page: Page, angle: float, rotation: int) -> bytes:
        """The page's picture, straight and upright, with Tesseract's text layer over it."""
        layer, output = _beside(page, "pdf"), _beside(page, "whole.pdf")
        root = str(Path(ocr.__file__).parents[1])
        arguments = map(str, (os.getpid(), page.path, layer, output, angle, rotation))
        command = python_arguments("-m", "ocr.searchable_child", *arguments)
        async with child(command, str(page.path.parent), talk=False, PYTHONPATH=root) as running:
            status = await running.ended()
        _raise_for_death("The program that makes searchable pages", status, running)
        if status != 0:
            message = f"No searchable PDF could be made of page {page.number}."
            raise RecogniserError(message, page=page.number, status=status, stderr=running.stderr)
        return output.read_bytes()

    async def _run(self, picture: Path, dpi: int | None, page: Page, *options: str) -> tuple[int, str]:
        resolution = ("--dpi", str(dpi)) if dpi else ()
        base = str(page.path.with_suffix(".tess"))
        command = _limited(self.timeout, "tesseract", str(picture), base, *resolution, *options)
        async with child(command, str(page.path.parent), talk=False) as running:
            status = await running.ended()
        _raise_for_death("Tesseract", status, running)
        return status, running.stderr


def sheet_of(page: Page, attempt: int) -> Sheet:
    if page.straight is None or attempt > 1:
        return Sheet(page.path, page.path, page.dpi, page.dpi)
    straight = page.straight
    return Sheet(straight.path, straight.part, page.dpi, page.dpi and page.dpi // straight.reduction, straight.angle)


def check_png(path: Path) -> None:
    """Raises `ValueError`. Given anything but a picture, Tesseract takes it for a list of files to read."""
    with path.open("rb") as file:
        if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
            raise ValueError(f"{path} is not a PNG")


async def installed_languages() -> tuple[str, ...]:
    """The names that ``tesseract --list-langs`` gives. Raises `ToolMissing` where there is no Tesseract."""
    command = _limited(LIST_TIMEOUT, "tesseract", "--list-langs")
    async with child(command, "/", talk=True) as running:
        assert running.process.stdout is not None
        lines = (await running.process.stdout.read()).decode().splitlines()
        status = await running.ended()
    _raise_for_death("Tesseract", status, running)
    return tuple(line.strip() for line in lines[1:] if line.strip())


def usable(installed: Collection[str]) -> list[str]:
    """The installed models that read text, by name."""
    return sorted(name for name in installed if name not in NOT_LANGUAGES)


def languages_for(script: str, installed: Collection[str]) -> tuple[str, ...]:
    """The languages to read `script` with: its own, else those of the default script, else any."""
    for candidate in (script, DEFAULT_SCRIPT):
        group = tuple(name for name in SCRIPTS.get(candidate, ()) if name in installed)
        if group:
            return group
    return (usable(installed)[0],)


def layout(orientation: Orientation | None, attempt: int) -> tuple[str, ...]:
    """The options that say how Tesseract finds the parts of the page."""
    # Mode 1 finds the orientation once more, for itself, which takes a sixth of the reading, and then does what mode 3
    # does: of use for a page that has to be turned, and for a script whose lines mode 3 takes for vertical ones (one in
    # ten letters of a page in Chinese was wrong). It needs no margin to follow it when OSD was sure: with its usual one
    # it reads a short page upside down. Modes 4 and 6, one column and one block, find no orientation.
    turned = orientation is not None and orientation.rotation != 0
    if turned or (orientation is not None and attempt == 1 and orientation.script in EITHER_WAY):
        return ("--psm", "1", "-c", "min_orientation_margin=0")
    return ("--psm", {1: "3", 2: "4"}.get(attempt, "6"))


def parsed_orientation(report: str) -> Orientation | None:
    """Read the report of ``--psm 0``: lines of ``Key: value``, None where they are missing or unsure."""
    fields = dict(line.split(": ", 1) for line in report.splitlines() if ": " in line)
    if "Rotate" not in fields or float(fields.get("Orientation confidence", 0)) < SURE_OF_ORIENTATION:
        return None
    return Orientation(fields["Script"].strip(), int(fields["Rotate"]))


def _beside(page: Page, kind: str) -> Path:
    return page.path.with_suffix(f".tess.{kind}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _limited(timeout: float, *command: str) -> list[str]:
    numbers = (os.getpid(), MEMORY, math.ceil(timeout), OUTPUT)
    return [sys.executable, "-I", "-S", limits.__file__, *map(str, numbers), *command]


def _raise_for_death(program: str, status: int, running: Child) -> None:
    if status == limits.COMMAND_NOT_FOUND:
        raise ToolMissing("tesseract is not on PATH: install tesseract-ocr.", tool="tesseract")
    if status == -signal.SIGXCPU:
        raise RecogniserTimeout(f"{program} used up its processor time on one page.", stderr=running.stderr)
    if status < 0:
        name = signal.Signals(-status).name
        raise RecogniserCrashed(f"{program} was ended by {name}.", signal=name, stderr=running.stderr)

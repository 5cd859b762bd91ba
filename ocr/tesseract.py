"""Pages → text by Tesseract: the script is detected, its languages are chosen, and the page is read."""

import asyncio
import csv
import math
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ocr import limits
from ocr.errors import LanguageMissing, RecogniserCrashed, RecogniserError, RecogniserTimeout, ToolMissing
from ocr.process import Child, child
from ocr.protocol import MEBIBYTE, Page

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MEMORY = 3072 * MEBIBYTE
OUTPUT = 64 * MEBIBYTE
LIST_TIMEOUT = 30.0
NOT_LANGUAGES = ("osd", "equ")

SCRIPTS: Mapping[str, tuple[str, ...]] = {
    "Latin": ("eng", "deu", "fra", "spa", "ita", "por", "nld"),
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
"""Script as Tesseract's OSD names it → the languages, of those installed, that read it (the first leads)."""
DEFAULT_SCRIPT = "Latin"
SURE_OF_SCRIPT = 1.0
"""Below it OSD guesses: six letters in noise were Bengali with 0.74, a line of English is Latin with 3 to 10."""


@dataclass(frozen=True)
class Orientation:
    """What OSD is sure of: the script, and the degrees clockwise by which to turn the page upright."""

    script: str
    rotation: int


@dataclass(frozen=True)
class PageText:
    """The text of one page.

    `confidence` is Tesseract's own for the words, from 0 to 1, weighted by their length; None if there are
    no words. `rotation` is as in `Orientation`, 0 where OSD could not tell.
    """

    text: str
    confidence: float | None
    languages: tuple[str, ...]
    rotation: int


class Tesseract:
    """Tesseract as it is installed, asked for certain languages or (None) for those of each page's script.

    `timeout` is the wall-clock limit in seconds for one page.
    """

    name = "tesseract"

    def __init__(self, installed: Collection[str], languages: Sequence[str] | None, timeout: float) -> None:
        missing = [name for name in languages or () if name not in installed]
        if missing or not usable(installed):
            have = usable(installed)
            lacking, there = ", ".join(missing) or "language", ", ".join(have) or "none"
            message = f"Tesseract has no {lacking} here, only {there}: install tesseract-ocr-LANGUAGE."
            raise LanguageMissing(message, missing=missing, installed=have)
        self.installed = frozenset(installed)
        self.languages = tuple(languages) if languages else None
        self.timeout = timeout

    @classmethod
    async def find(cls, languages: Sequence[str] | None = None, timeout: float = 300.0) -> Self:
        """Raises `ToolMissing` or `LanguageMissing` where Tesseract cannot do what is asked."""
        return cls(await installed_languages(), languages, timeout)

    async def recognise(self, page: Page) -> PageText:
        """Read a page that `ocr.decoder` wrote. Raises `RecogniserError` in one of its kinds.

        Files beside the page's are written and removed.
        """
        # Given anything but a picture, Tesseract takes it for a list of files to read.
        with page.path.open("rb") as file:
            if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
                raise ValueError(f"{page.path} is not a PNG")
        try:
            async with asyncio.timeout(self.timeout):
                orientation = await self._orientation(page) if "osd" in self.installed else None
                return await self._read(page, orientation)
        except TimeoutError:
            message = f"Tesseract took longer than {self.timeout:g} s for page {page.number}."
            raise RecogniserTimeout(message, page=page.number, limit=self.timeout) from None

    async def _orientation(self, page: Page) -> Orientation | None:
        """Script and orientation, or None for a page with too little on it to tell."""
        base = page.path.with_suffix("")
        output = base.with_suffix(".osd")
        status, _ = await self._run(page, str(base), "--psm", "0", "-l", "osd")
        if status != 0 and not output.exists():
            return None
        return parsed_orientation(taken(output))

    async def _read(self, page: Page, orientation: Orientation | None) -> PageText:
        script = orientation.script if orientation else DEFAULT_SCRIPT
        languages = self.languages or languages_for(script, self.installed)
        # Mode 1 finds the orientation once more, for itself, and needs no margin to follow it when OSD was
        # sure: with its usual one it reads a short page upside down. Where OSD was not, mode 3 does without.
        mode = ("1", "-c", "min_orientation_margin=0") if orientation else ("3",)
        base = page.path.with_suffix("")
        status, stderr = await self._run(
            page, str(base), "--psm", *mode, "-l", "+".join(languages), "-c", "tessedit_create_txt=1",
            "-c", "tessedit_create_tsv=1", "-c", "page_separator=",
        )  # fmt: skip
        if status != 0:
            message = f"Tesseract failed with status {status} on page {page.number}."
            raise RecogniserError(message, page=page.number, status=status, stderr=stderr)
        confidence = mean_confidence(taken(base.with_suffix(".tsv")))
        rotation = orientation.rotation if orientation else 0
        return PageText(taken(base.with_suffix(".txt")).strip(), confidence, languages, rotation)

    async def _run(self, page: Page, base: str, *options: str) -> tuple[int, str]:
        dpi = ("--dpi", str(page.dpi)) if page.dpi else ()
        command = _limited(self.timeout, "tesseract", str(page.path), base, *dpi, *options)
        async with child(command, str(page.path.parent), talk=False) as running:
            status = await running.ended()
        _raise_for_death(status, running)
        return status, running.stderr


async def installed_languages() -> tuple[str, ...]:
    """The names that ``tesseract --list-langs`` gives. Raises `ToolMissing` where there is no Tesseract."""
    command = _limited(LIST_TIMEOUT, "tesseract", "--list-langs")
    async with child(command, "/", talk=True) as running:
        assert running.process.stdout is not None
        lines = (await running.process.stdout.read()).decode().splitlines()
        status = await running.ended()
    _raise_for_death(status, running)
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


def parsed_orientation(report: str) -> Orientation | None:
    """Read the report of ``--psm 0``: lines of ``Key: value``, None where they are missing or unsure."""
    fields = dict(line.split(": ", 1) for line in report.splitlines() if ": " in line)
    if "Rotate" not in fields or float(fields.get("Script confidence", 0)) < SURE_OF_SCRIPT:
        return None
    return Orientation(fields["Script"].strip(), int(fields["Rotate"]))


def mean_confidence(tsv: str) -> float | None:
    """The words' confidences in Tesseract's TSV (0 to 100), weighted by length, as a number from 0 to 1."""
    letters = total = 0.0
    for row in csv.DictReader(tsv.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        word = (row["text"] or "").strip()
        if row["level"] == "5" and word:
            letters += len(word)
            total += len(word) * float(row["conf"])
    return round(total / letters / 100, 4) if letters else None


def taken(path: Path) -> str:
    """The text of a file, which is removed."""
    text = path.read_text(encoding="utf-8", errors="replace")
    path.unlink()
    return text


def _limited(timeout: float, *command: str) -> list[str]:
    numbers = (os.getpid(), MEMORY, math.ceil(timeout), OUTPUT)
    return [sys.executable, "-I", "-S", limits.__file__, *map(str, numbers), *command]


def _raise_for_death(status: int, running: Child) -> None:
    if status == limits.COMMAND_NOT_FOUND:
        raise ToolMissing("tesseract is not on PATH: install tesseract-ocr.", tool="tesseract")
    if status == -signal.SIGXCPU:
        raise RecogniserTimeout("Tesseract used up its processor time on one page.", stderr=running.stderr)
    if status < 0:
        name = signal.Signals(-status).name
        raise RecogniserCrashed(f"Tesseract was ended by {name}.", signal=name, stderr=running.stderr)

"""Searchable PDFs: a picture of each page, and over it the text that was read in it, which nobody sees.

Tesseract writes the text as a PDF of one page. The picture is added to that file as an update at its end (ISO 32000-1,
7.5.6): a second definition of the page, in which the picture comes before the text. Of a page that lay askew it is the
straightened picture: readers of PDF files find no phrase that runs over slanting lines.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import ocr
from ocr import limits
from ocr.errors import DocumentTooLarge, OcrError, ToolMissing
from ocr.pdf_objects import drawn, one_page, picture, updated
from ocr.process import child, python_arguments
from ocr.protocol import MEBIBYTE
from ocr.scratch import scratch_directory
from ocr.searchable_pictures_child import PICTURES

MEMORY = 2048 * MEBIBYTE
OUTPUT = 2048 * MEBIBYTE
CPU_SECONDS = 300
AT_ONCE = 40
"""Files that pdfunite opens at a time: it may open 64 in all."""
_PAGE = re.compile(rb"\n(\d+) 0 obj\s*<<(\s*/Type\s*/Page\b.*?)>>\s*endobj", re.DOTALL)
_BOX = re.compile(rb"/MediaBox\s*\[\s*0\s+0\s+([\d.]+)\s+([\d.]+)\s*\]")
_CONTENTS = re.compile(rb"/Contents\s+(\d+) 0 R")
_RESOURCES = re.compile(rb"/Resources\s*<<")
_SIZE = re.compile(rb"/Size\s+(\d+)")
_ROOT = re.compile(rb"/Root\s+(\d+ 0 R)")
_START = re.compile(rb"startxref\s+(\d+)\s+%%EOF\s*$")


class NoTextLayer(ValueError):
    """The file is not what Tesseract writes."""


def with_picture(layer: bytes, jpeg: bytes, size: tuple[int, int], grey: bool, rotation: int) -> bytes:
    """Put a picture of `size` pixels, the one in which the text was read, under Tesseract's text-only page. The page is
    shown turned by `rotation` degrees clockwise. Raises `NoTextLayer`."""
    page, start = _found(_PAGE, layer), int(_found(_START, layer)[1])
    trailer = layer[start:]
    number = int(_found(_SIZE, trailer)[1])
    width, height = (float(side) for side in _found(_BOX, page[2]).groups())
    content = _found(_CONTENTS, page[2])
    body = page[2].replace(content[0], b"/Contents [%d 0 R %s 0 R]" % (number + 1, content[1]))
    resources = _found(_RESOURCES, body)[0]
    body = body.replace(resources, resources + b" /XObject << /Page %d 0 R >>" % number)
    objects = {
        int(page[1]): b"<< /Rotate %d%s>>" % (rotation, body),
        number: picture(jpeg, *size, b"DeviceGray" if grey else b"DeviceRGB"),
        number + 1: drawn(width, height),
    }
    return updated(layer, objects, number + 2, _found(_ROOT, trailer)[1], start)


def _found(pattern: re.Pattern[bytes], text: bytes) -> re.Match[bytes]:
    match = pattern.search(text)
    if match is None:
        raise NoTextLayer(f"Tesseract's PDF has nothing like {pattern.pattern.decode()}")
    return match


@dataclass(frozen=True)
class TextLayer:
    """A page as a PDF of its own, with its text: a `Reading.pdf`."""

    pdf: bytes = field(repr=False)


@dataclass(frozen=True)
class Picture:
    """A page without text: its JPEG, and its size: only how wide it is to its height counts."""

    jpeg: bytes = field(repr=False)
    width: int
    height: int


Part: TypeAlias = TextLayer | Picture


def empty_page() -> bytes:
    """A PDF of one white A4 page: for a page of which there is not even a picture."""
    return one_page(595, 842, b"/Resources << >>")


async def joined(parts: AsyncIterable[Part]) -> bytes:
    """One PDF of those pages, at least one, in that order. The parts lie on disk, and only the whole is in memory.

    Raises `ToolMissing`, `DocumentTooLarge` or another `OcrError`, and ValueError where there is no part."""
    with scratch_directory() as directory:
        files = await _written(parts, directory)
        if not files:
            raise ValueError("There is no page of which a PDF could be made.")
        level = 0
        while len(files) > 1:
            level += 1
            files = [
                await _united(files[first : first + AT_ONCE], directory / f"{level}-{first:06}.pdf")
                for first in range(0, len(files), AT_ONCE)
            ]
        return await asyncio.to_thread(files[0].read_bytes)


async def _written(parts: AsyncIterable[Part], directory: Path) -> list[Path]:
    """A PDF of one page for each part."""
    files: list[Path] = []
    pictures: list[dict[str, str | int]] = []
    async for part in parts:
        file = directory / f"0-{len(files) + 1:06}.pdf"
        files.append(file)
        match part:
            case TextLayer(pdf):
                await asyncio.to_thread(file.write_bytes, pdf)
            case Picture(jpeg, width, height):
                image = file.with_suffix(".jpg")
                await asyncio.to_thread(image.write_bytes, jpeg)
                pictures.append({"jpeg": image.name, "pdf": file.name, "width": width, "height": height})
    if pictures:
        (directory / PICTURES).write_text(json.dumps(pictures), encoding="utf-8")
        arguments = ("-m", "ocr.searchable_pictures_child", str(os.getpid()), str(directory))
        root = str(Path(ocr.__file__).parents[1])
        await _run(python_arguments(*arguments), directory, "the program that makes pages of pictures", PYTHONPATH=root)
    return files


async def _united(files: Sequence[Path], output: Path) -> Path:
    """The output, in which the files' pages are; the files are removed."""
    numbers = map(str, (os.getpid(), MEMORY, CPU_SECONDS, OUTPUT))
    launcher = [sys.executable, "-I", "-S", limits.__file__, *numbers]
    await _run([*launcher, "pdfunite", *map(str, files), str(output)], output.parent, "pdfunite")
    for file in files:
        file.unlink()
    return output


async def _run(command: Sequence[str], directory: Path, program: str, **environment: str) -> None:
    async with child(command, str(directory), talk=False, **environment) as running:
        status = await running.ended()
    if status == limits.COMMAND_NOT_FOUND:
        raise ToolMissing(f"{program} is not on PATH: install poppler-utils.", tool=program)
    if status != 0:
        kind = DocumentTooLarge if status < 0 else OcrError
        message = f"The searchable pages could not be joined: {program} ended with status {status}."
        raise kind(message, status=status, stderr=running.stderr)

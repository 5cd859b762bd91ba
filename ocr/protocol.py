"""What `ocr.decoder` and its child process say to each other: one JSON object a line.

The child is started with a `Job`. It answers once with ``{"pages": n}``. To each ``{"page": n}`` (n from 1, any
order) it answers with a `Page` without its path, without `Embedded`, which lies in a file beside the page's if
``"embedded"`` is true, and with the angle and the reduction of its `Straight`; to
``{"crop": n, "boxes": [[left, top, right, bottom], …]}`` with ``{"crops": k}``, the number of files: there is none for
a part that was one too many. Any answer may be a `Refusal` instead: after a refused opening the child ends, after a
refused page it waits for the next request. It ends when its stdin does.

This module and all that the child imports stay light: they are loaded anew for each document.
"""

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ocr.page import Block

MEBIBYTE = 1024 * 1024
PREVIEW_SIDE = 1_600
CROPS = 200
"""So many parts of one page are cropped at most."""
CROP_SIDE = 1_600
"""A part is reduced to so many pixels on its longer side."""
CROPPED_PIXELS = 12_000_000
"""Of all parts of a page, as they were reduced."""
OUT_OF_MEMORY = ("ut of memory", "bad_alloc", "MemoryError", "Bogus memory allocation")


TextSource: TypeAlias = Literal["auto", "ocr", "embedded"]
"""Where a page's text comes from: what the PDF carries if it is sound, a recogniser, what the PDF carries."""


@dataclass(frozen=True)
class DecodeLimits:
    """How much one document may ask of its decoder. Sizes in bytes, times in seconds."""

    dpi: int = 300
    """The resolution at which PDF pages are drawn."""
    max_pages: int = 500
    """So many pages may be asked for; a document may have more of them."""
    image_pixels: int = 90_000_000
    """An image with more pixels is refused."""
    page_pixels: int = 40_000_000
    """A page is reduced to at most so many pixels (A4 at 600 dpi has 35 million)."""
    page_side: int = 30_000
    """No page is wider or higher; Tesseract stops at 32,767 pixels."""
    memory: int = 1280 * MEBIBYTE
    """Address space of the decoder, and of each program that it starts."""
    file_size: int = 256 * MEBIBYTE
    cpu_seconds: float = 10.0
    """Processor time for each page, of the decoder and again of the programs that it starts for the page."""
    wall_seconds: float = 60.0
    """The same by the clock on the wall: longer, since other documents share the processors."""

    @property
    def opening_cpu_seconds(self) -> float:
        """Processor time to open the document, which is little beside its pages."""
        return self.cpu_seconds / 2


@dataclass(frozen=True)
class Job:
    """What the child is to decode: `document` lies in `directory`, where the pages go too."""

    directory: str
    document: str
    media_type: str
    parent: int
    limits: DecodeLimits
    pages: str | None
    text: TextSource
    straight: bool

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        fields = json.loads(text)
        return cls(**{**fields, "limits": DecodeLimits(**fields["limits"])})


@dataclass(frozen=True)
class Embedded:
    """The text that a PDF page carries, in reading order, `blocks` in pixels of the page as it was drawn.

    `sound`: nothing speaks against it; else `doubts` says in sentences what does.
    """

    text: str
    markdown: str
    blocks: tuple[Block, ...]
    sound: bool
    doubts: tuple[str, ...]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Embedded":
        """Raises `KeyError`, `TypeError` or `ValueError` for anything but what ``asdict`` makes of one."""
        left_out = {"blocks", "doubts"}
        blocks = tuple(Block(**{**block, "bbox": _box(block["bbox"]), "words": ()}) for block in fields["blocks"])
        plain = {name: value for name, value in fields.items() if name not in left_out}
        return cls(**plain, blocks=blocks, doubts=tuple(fields["doubts"]))


@dataclass(frozen=True)
class Straight:
    """A page in grey, its lines along its sides: the page as it was drawn, turned by `angle` degrees counter-clockwise.

    `path` is the page's own file where that angle is 0. `part` shows as much of it as tells how the page lies, reduced
    by the factor `reduction`; it is `path` again where that is 1.
    """

    path: Path
    part: Path
    angle: float
    reduction: int


@dataclass(frozen=True)
class Page:
    """One decoded page: a PNG of `width` by `height` pixels, grey or RGB, upright as its document says.

    `dpi` is None where the document does not say anything that can be true. `blank`: there is no ink on it.
    `embedded` is None where the page is of no PDF, and where only OCR was asked for. `straight` is None where nobody
    wants it, and where the page need not be read.
    """

    number: int
    path: Path
    width: int
    height: int
    dpi: int | None
    blank: bool = False
    embedded: Embedded | None = None
    straight: Straight | None = None

    @property
    def preview(self) -> Path:
        """A JPEG of the page for people, at most `PREVIEW_SIDE` pixels on its longer side."""
        return preview_path(self.path)

    def remove(self) -> None:
        """Unlink the page's files, those that are there."""
        more = (self.straight.path, self.straight.part) if self.straight else ()
        for path in (self.path, self.preview, *more):
            path.unlink(missing_ok=True)


class Refusal(Exception):
    """A document or page that the decoder will not or cannot decode; `code` as in `ocr.errors`."""

    def __init__(self, code: str, message: str, permanent: bool = True, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.permanent = permanent
        self.details = details

    def to_json(self) -> dict[str, Any]:
        fields = {"code": self.code, "message": self.message, "permanent": self.permanent}
        return {"refusal": {**fields, "details": self.details}}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Refusal":
        return cls(fields["code"], fields["message"], fields["permanent"], **fields["details"])


def page_path(directory: str | Path, number: int) -> Path:
    return Path(directory) / f"page-{number:06d}.png"


def preview_path(page: Path) -> Path:
    return page.with_suffix(".jpg")


def straight_path(page: Path) -> Path:
    return page.with_suffix(".straight.png")


def part_path(page: Path) -> Path:
    return page.with_suffix(".part.png")


def embedded_path(page: Path) -> Path:
    return page.with_suffix(".json")


def crop_path(page: Path, number: int) -> Path:
    """The `number`-th crop (from 1) of the page that lies at `page`."""
    return page.with_name(f"{page.stem}-crop-{number:03d}.png")


def too_many_pages(pages: int | None, limit: int, asked: bool = False) -> Refusal:
    """`pages` is how many the document has, None where nobody counted on; `asked`: some of them were named."""
    counted = f"{pages:,}" if pages else f"more than {limit:,}"
    if asked:
        message = f"More than {limit:,} pages were asked for at once, which is the most that are read."
    else:
        message = f"The document has {counted} pages; at most {limit:,} are read. Split it, or name the pages."
    return Refusal("too_many_pages", message, pages=pages, max_pages=limit)


def wall_timeout(page: int | None, limits: DecodeLimits) -> Refusal:
    """Too long by the clock on the wall, which may be the machine's fault."""
    what = "Opening the document" if page is None else f"Decoding page {page}"
    message = f"{what} took longer than {limits.wall_seconds:g} s."
    return Refusal("decode_timeout", message, False, clock="wall", limit=limits.wall_seconds, page=page)


def out_of_memory(stderr: str) -> bool:
    return any(words in stderr for words in OUT_OF_MEMORY)


def decoder_death(tool: str, status: int, stderr: str, cpu_limit: float) -> Refusal:
    """Why a decoding program ended with `status` (negative: a signal) after it wrote `stderr`."""
    if status == -signal.SIGXCPU:
        message = f"The document needs more than {cpu_limit:g} s of processor time to be opened or for one page."
        return Refusal("decode_timeout", message, clock="cpu", limit=cpu_limit, tool=tool, stderr=stderr)
    if out_of_memory(stderr):
        message = "Decoding the document needs more memory than a decoder may use."
        return Refusal("document_too_large", message, tool=tool, stderr=stderr)
    if status >= 0:
        message = f"The document's decoder {tool} failed with status {status}."
        return Refusal("decoder_crashed", message, status=status, tool=tool, stderr=stderr)
    name = signal.Signals(-status).name
    # Somebody else's SIGKILL (the kernel's, short of memory; an operator's) says nothing about the document.
    permanent = -status not in (signal.SIGKILL, signal.SIGTERM)
    message = f"The document's decoder {tool} was ended by {name}."
    return Refusal("decoder_crashed", message, permanent, signal=name, tool=tool, stderr=stderr)


def _box(numbers: Any) -> tuple[int, int, int, int]:
    left, top, right, bottom = (int(number) for number in numbers)
    return left, top, right, bottom

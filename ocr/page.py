"""What is known of a page: what a recogniser read, and the record that is kept of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the page as it was drawn, before any turn; right and bottom exclusive."""


class PageStatus(StrEnum):
    COMPLETED = "completed"
    BLANK = "blank"
    """There is no ink on it; no recogniser saw it."""
    FAILED = "failed"
    """No try succeeded; its text is the best that there was, or empty."""


class Source(StrEnum):
    OCR = "ocr"
    EMBEDDED = "embedded"
    """The text that a PDF carries."""


FIGURE = "figure"
"""The type of a block that is a picture: it is cropped to a file. Its text, if any, is a caption or a description."""


class Word(NamedTuple):
    """`confidence` from 0 to 1. A word that the line parts with a hyphen is two."""

    text: str
    bbox: Box
    confidence: float


@dataclass(frozen=True)
class Block:
    """A part of a page. `type`: text, title, list, table, figure, formula, caption, header, footer or other."""

    type: str
    text: str
    bbox: Box | None = None
    """None where the recogniser does not say."""
    confidence: float | None = None
    """From 0 to 1."""
    words: tuple[Word, ...] = field(default=(), repr=False)
    """In reading order; empty where the recogniser does not tell words apart."""

    def to_json(self) -> dict[str, Any]:
        """Of the fields' own names; ``words`` are ``[text, [l, t, r, b], confidence]``, to keep them short."""
        words = [[word.text, list(word.bbox), word.confidence] for word in self.words]
        return {**vars(self), "bbox": self.bbox and list(self.bbox), "words": words}


@dataclass(frozen=True)
class Reading:
    """What one try of a recogniser made of a page, its blocks in reading order.

    `markdown` refers to the n-th block of type `figure` (from 1) by ``figure_name(page, n)``.
    """

    text: str
    markdown: str
    blocks: tuple[Block, ...] = ()
    confidence: float | None = None
    """From 0 to 1, weighted by the words' length; None where the recogniser gives none that can be believed."""
    rotation: int = 0
    """Degrees clockwise by which the page has to be turned to be upright."""
    languages: tuple[str, ...] = ()
    mode: str | None = None
    """The resolution mode, of recognisers that have several."""
    tokens: int | None = None
    """Tokens generated."""
    warnings: tuple[str, ...] = ()
    pdf: bytes | None = field(default=None, repr=False)
    """The page as a PDF of one page with a text layer, where that was asked for."""


@dataclass(frozen=True)
class PageRecord:
    """A page that has come to its end. `width` and `height` in pixels, 0 where it could not be drawn; the rest as
    `Reading`. `duration` in seconds, of all tries. `error`: ``{"code", "message"}`` of the last, where it failed.
    """

    number: int
    status: PageStatus
    width: int = 0
    height: int = 0
    source: Source = Source.OCR
    engine: str | None = None
    text: str = ""
    markdown: str = ""
    blocks: tuple[Block, ...] = ()
    figures: tuple[str, ...] = ()
    """Names of the figures' files, in the order of their blocks."""
    confidence: float | None = None
    rotation: int = 0
    languages: tuple[str, ...] = ()
    mode: str | None = None
    tokens: int | None = None
    duration: float = 0.0
    tries: int = 0
    warnings: tuple[str, ...] = ()
    error: Mapping[str, str] | None = None

    def with_reading(self, reading: Reading) -> "PageRecord":
        return replace(
            self,
            text=reading.text,
            markdown=reading.markdown,
            blocks=reading.blocks,
            confidence=reading.confidence,
            rotation=reading.rotation,
            languages=reading.languages,
            mode=reading.mode,
            tokens=reading.tokens,
            warnings=self.warnings + reading.warnings,
        )

    def to_json(self) -> dict[str, Any]:
        """Of the record's own field names; ``blocks`` are ``[{"type", "text", "bbox": [l, t, r, b] | null,
        "confidence", "words"}]``, as `Block.to_json` tells."""
        blocks = [block.to_json() for block in self.blocks]
        lists = {name: list(getattr(self, name)) for name in ("figures", "languages", "warnings")}
        plain = {"status": self.status.value, "source": self.source.value, "error": self.error and dict(self.error)}
        return {**vars(self), **plain, **lists, "blocks": blocks}


def figure_name(page: int, number: int) -> str:
    """The file of a page's n-th figure (both from 1)."""
    return f"page-{page:04}-figure-{number:02}.png"


def image_name(page: int) -> str:
    """The file with the picture of a page (from 1), reduced for people to look at."""
    return f"page-{page:04}.jpg"


def pdf_name(page: int) -> str:
    """The file with a page's PDF (from 1)."""
    return f"page-{page:04}.pdf"

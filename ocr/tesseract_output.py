"""From Tesseract's hOCR to the blocks of a page.

hOCR is HTML whose classes name the parts of a page (``ocr_carea`` > ``ocr_par`` > ``ocr_line`` > ``ocrx_word``) and
whose titles give their places: ``bbox 36 92 580 122; x_wconf 93``. Tesseract gives them on the page as it got it, also
where it turned the page for itself. Source: the hOCR 1.2 specification, and Tesseract's hocrrenderer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from statistics import median

from ocr.markdown import escaped
from ocr.page import FIGURE, Block, Box, Word, figure_name

LARGER = 1.3
"""A title's letters are so much larger than those of most of the page; a line without tall letters seems smaller."""
TITLE_LINES = 3
FIGURE_SHARE = 0.005
"""Of the page. What is smaller and no letter is dirt, an ornament or a part of a stamp."""
_LINES = ("ocr_line", "ocr_header", "ocr_caption", "ocr_textfloat")


@dataclass
class Line:
    size: float
    """Height of its letters in pixels, with ascenders and descenders."""
    words: list[Word] = field(default_factory=list)

    @property
    def text(self) -> str:
        return joined_words([word.text for word in self.words])


@dataclass
class Paragraph:
    bbox: Box
    kind: str = "text"
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Straightening:
    """How the page that was read came from the page as it was drawn, of `width` by `height` pixels: turned around its
    centre by `angle` degrees counter-clockwise."""

    angle: float
    width: int
    height: int

    def undone(self, box: Box) -> Box:
        """The smallest box around the place on the page as it was drawn."""
        sine, cosine = math.sin(math.radians(self.angle)), math.cos(math.radians(self.angle))
        middle, centre = self.width / 2, self.height / 2
        corners = [(x - middle, y - centre) for x in (box[0], box[2]) for y in (box[1], box[3])]
        across = [cosine * x - sine * y + middle for x, y in corners]
        down = [sine * x + cosine * y + centre for x, y in corners]
        # Rounded first: where nothing was turned, nothing may grow.
        left, right = math.floor(round(min(across), 3)), math.ceil(round(max(across), 3))
        top, bottom = math.floor(round(min(down), 3)), math.ceil(round(max(down), 3))
        left, top = min(max(0, left), self.width - 1), min(max(0, top), self.height - 1)
        return left, top, max(left + 1, min(right, self.width)), max(top + 1, min(bottom, self.height))


class _Hocr(HTMLParser):
    """Collects paragraphs and pictures; takes whatever it is given."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[Paragraph] = []
        self._word: tuple[Box, float] | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        kind, properties = fields.get("class") or "", _properties(fields.get("title") or "")
        box = _box(properties.get("bbox", ""))
        if box is None:
            return
        if kind == "ocr_photo":
            self.paragraphs.append(Paragraph(box, FIGURE))
        elif kind == "ocr_par":
            self.paragraphs.append(Paragraph(box))
        elif kind in _LINES and self.paragraphs:
            if kind == "ocr_caption":
                self.paragraphs[-1].kind = "caption"
            self.paragraphs[-1].lines.append(Line(_number(properties.get("x_size", ""))))
        elif kind == "ocrx_word":
            self._word, self._text = (box, _number(properties.get("x_wconf", "")) / 100), ""

    def handle_data(self, data: str) -> None:
        if self._word is not None:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        # Only what is within a word (emphasis) ends before it.
        if tag != "span" or self._word is None:
            return
        box, confidence = self._word
        self._word = None
        text = "".join(self._text.split())
        if text and self.paragraphs and self.paragraphs[-1].lines:
            self.paragraphs[-1].lines[-1].words.append(Word(text, box, min(1.0, confidence)))


def blocks_of(hocr: str, straightening: Straightening) -> tuple[Block, ...]:
    """The paragraphs, titles, captions and pictures of a page in reading order, on the page as it was drawn."""
    parser = _Hocr()
    parser.feed(hocr)
    parser.close()
    smallest = FIGURE_SHARE * straightening.width * straightening.height
    paragraphs = [part for part in parser.paragraphs if _is_there(part, smallest)]
    usual = _usual_size(paragraphs)
    return tuple(_block(part, usual, straightening) for part in paragraphs)


def text_of(blocks: Sequence[Block]) -> str:
    return "\n\n".join(block.text for block in blocks if block.text)


def markdown_of(blocks: Sequence[Block], page: int) -> str:
    return "\n\n".join(_markdown(blocks, page))


def confidence_of(words: Sequence[Word]) -> float | None:
    """Weighted by the words' length."""
    letters = sum(len(word.text) for word in words)
    return round(sum(len(word.text) * word.confidence for word in words) / letters, 4) if letters else None


def joined_words(words: Sequence[str]) -> str:
    """The words with spaces between them, as far as their script has any: Chinese and Japanese have none."""
    text = ""
    for word in words:
        text += word if not text or (_is_unspaced(text[-1]) and _is_unspaced(word[0])) else f" {word}"
    return text


def _is_unspaced(letter: str) -> bool:
    # CJK symbols and kana; ideographs, extension A; compatibility ideographs; full-width forms; extension B on.
    code = ord(letter)
    return (
        0x3000 <= code <= 0x30FF
        or 0x3400 <= code <= 0x9FFF
        or 0xF900 <= code <= 0xFAFF
        or 0xFF00 <= code <= 0xFFEF
        or 0x20000 <= code <= 0x3FFFF
    )


def _is_there(part: Paragraph, smallest: float) -> bool:
    if part.kind == FIGURE:
        left, top, right, bottom = part.bbox
        return (right - left) * (bottom - top) >= smallest
    return any(line.words for line in part.lines)


def _usual_size(paragraphs: Sequence[Paragraph]) -> float:
    """The size of most words on the page."""
    return median([line.size for part in paragraphs for line in part.lines for _ in line.words] or [0.0])


def _block(part: Paragraph, usual: float, straightening: Straightening) -> Block:
    bbox = straightening.undone(part.bbox)
    lines = [line for line in part.lines if line.words]
    words = tuple(word._replace(bbox=straightening.undone(word.bbox)) for line in lines for word in line.words)
    kind = part.kind
    if kind == "text" and len(lines) <= TITLE_LINES and min(line.size for line in lines) >= LARGER * usual > 0:
        kind = "title"
    return Block(kind, "\n".join(line.text for line in lines), bbox, confidence_of(words), words)


def _markdown(blocks: Sequence[Block], page: int) -> Iterator[str]:
    figures = 0
    for block in blocks:
        if block.type == FIGURE:
            figures += 1
            yield f"![]({figure_name(page, figures)})"
        elif block.type == "title":
            yield "## " + escaped(block.text.replace("\n", " "))
        else:
            yield escaped(block.text)


def _properties(title: str) -> dict[str, str]:
    parts = (part.strip().partition(" ") for part in title.split(";"))
    return {name: value for name, _, value in parts}


def _box(value: str) -> Box | None:
    numbers = value.split()
    if len(numbers) != 4 or not all(number.lstrip("-").isdecimal() for number in numbers):
        return None
    left, top, right, bottom = (int(number) for number in numbers)
    return left, top, right, bottom


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0

"""The text that a PDF page carries, from what poppler says of it, and whether it is what the page shows.

A text layer may be anything: the work of an unknown OCR, characters without a name, letters that nobody sees. So it is
compared with the page as it was drawn, and whatever speaks against it becomes a doubt.
"""

import html
import math
import re
import string
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median

from ocr.ink import Marks
from ocr.markdown import escaped
from ocr.page import Block, Box
from ocr.protocol import Embedded

TOKEN = re.compile(r"<(block|line)\b[^>]*>|<word ([^>]*)>(.*?)</word>", re.DOTALL)
SIDES = re.compile(r'xMin="([^"]*)" yMin="([^"]*)" xMax="([^"]*)" yMax="([^"]*)"')
MOST_TEXT = 200_000
"""Characters of one page; what comes after them is left out. A full one has 20,000."""
MOST_BLOCKS = 5_000
"""Of one page, as MOST_TEXT."""
TITLE = 1.3
"""A block of lines that are so much higher than most is a title."""
UNKNOWN = 0.02
GARBLED = 0.3
UNSEEN = 0.05
OUTSIDE = 0.05
UNCOVERED = 0.3
PICTURES = 0.5
SYMBOLS = frozenset(string.punctuation) - frozenset(".,-_/")
ENOUGH_WORDS = 12
"""With fewer words nothing is said about how they look."""


@dataclass
class Word:
    text: str
    box: Box


@dataclass
class Line:
    words: list[Word] = field(default_factory=list)

    @property
    def text(self) -> str:
        # Poppler gives words that are written from right to left, and their letters, as they stand on the page.
        words = [word.text for word in self.words]
        if not right_to_left("".join(words)):
            return " ".join(words)
        return " ".join(word for run in reversed(list(_runs(words))) for word in run)

    @property
    def height(self) -> int:
        # Of a line that runs upwards the height is across it.
        box = around([word.box for word in self.words])
        return min(box[2] - box[0], box[3] - box[1]) if len(self.text) > 1 else box[3] - box[1]


@dataclass
class Layout:
    """The lines of a page by blocks, in reading order."""

    blocks: list[list[Line]] = field(default_factory=list)
    characters: int = 0
    outside: int = 0
    cut: bool = False

    @property
    def lines(self) -> Iterator[Line]:
        return (line for block in self.blocks for line in block)

    @property
    def words(self) -> Iterator[Word]:
        return (word for line in self.lines for word in line.words)


@dataclass(frozen=True)
class Surroundings:
    """What else is known of a page: the part that pictures cover, and fonts whose characters have no names."""

    pictures: float = 0.0
    nameless_fonts: tuple[str, ...] = ()


def parsed(said: str, scale: float, width: int, height: int) -> Layout:
    """What ``pdftotext -bbox-layout`` wrote of one page; `scale` is in pixels a point, the page in pixels."""
    layout = Layout()
    for token in TOKEN.finditer(said):
        if token[1] == "block" and len(layout.blocks) == MOST_BLOCKS:
            layout.cut = True
            break
        if token[1] == "block" or (token[1] == "line" and not layout.blocks):
            layout.blocks.append([])
        if token[1] == "line":
            layout.blocks[-1].append(Line())
        if token[1] or not layout.blocks or not layout.blocks[-1]:
            continue
        text = html.unescape(token[3]).strip()
        box = pixels(token[2], scale, width, height)
        if layout.characters + len(text) > MOST_TEXT:
            layout.cut = True
            break
        if not text:
            continue
        layout.characters += len(text)
        if box is None:
            layout.outside += len(text)
        else:
            layout.blocks[-1][-1].words.append(Word(text, box))
    layout.blocks = [kept for block in layout.blocks if (kept := [line for line in block if line.words])]
    return layout


def pixels(sides: str, scale: float, width: int, height: int) -> Box | None:
    """The box in pixels of the page, None for one whose middle is not on it."""
    match = SIDES.match(sides)
    try:
        left, top, right, bottom = (float(side) * scale for side in match.groups()) if match else (math.nan,) * 4
    except ValueError:
        return None
    across, down = (left + right) / 2, (top + bottom) / 2
    if not (math.isfinite(across + down) and 0 <= across < width and 0 <= down < height):
        return None
    left, top = min(max(0, math.floor(left)), width - 1), min(max(0, math.floor(top)), height - 1)
    return left, top, max(left + 1, min(width, math.ceil(right))), max(top + 1, min(height, math.ceil(bottom)))


def embedded_text(layout: Layout, marks: Marks, around_it: Surroundings) -> Embedded:
    """The text of a page, with what `marks`, the page as it was drawn, and its surroundings say against it."""
    common = median([line.height for line in layout.lines] or [0])
    blocks = [as_block(lines, common) for lines in layout.blocks]
    doubts = tuple(doubts_of(layout, marks, around_it))
    return Embedded(
        text="\n\n".join(block.text for block in blocks),
        markdown="\n\n".join(as_markdown(block) for block in blocks),
        blocks=tuple(blocks),
        sound=not doubts,
        doubts=doubts,
    )


def without_text(doubt: str) -> Embedded:
    return Embedded("", "", (), False, (doubt,))


def as_block(lines: list[Line], common_height: float) -> Block:
    text = "\n".join(line.text for line in lines)
    high = len(lines) <= 3 and min(line.height for line in lines) > TITLE * common_height
    bbox = around([word.box for line in lines for word in line.words])
    return Block("title" if high and len(text) > 2 else "text", text, bbox)


def as_markdown(block: Block) -> str:
    text = escaped(block.text)
    return f"## {' '.join(text.splitlines())}" if block.type == "title" else text


def doubts_of(layout: Layout, marks: Marks, around_it: Surroundings) -> Iterator[str]:
    words = list(layout.words)
    if not words:
        yield "The page carries no text that could be seen on it."
        return
    characters = sum(len(word.text) for word in words)
    unknown = sum(unnamed(character) for word in words for character in word.text)
    if unknown > UNKNOWN * characters:
        yield f"Of its {characters:,} characters {unknown:,} have no name."
    if around_it.nameless_fonts:
        yield f"The font {around_it.nameless_fonts[0]} does not tell which characters it draws."
    garbled = sum(looks_garbled(word.text) for word in words)
    if len(words) >= ENOUGH_WORDS and garbled > GARBLED * len(words):
        yield f"Of its {len(words):,} words {garbled:,} do not look like words."
    unseen = sum(len(word.text) for word in words if not marks.visible(word.box))
    if unseen > UNSEEN * characters:
        yield f"Of its {characters:,} characters {unseen:,} cannot be seen on the page."
    if layout.outside > OUTSIDE * layout.characters:
        yield f"Of its {layout.characters:,} characters {layout.outside:,} lie outside of the page."
    if around_it.pictures >= PICTURES:
        yield f"Pictures cover {min(1.0, around_it.pictures):.0%} of the page."
    uncovered = marks.uncovered([word.box for word in words])
    if uncovered > UNCOVERED:
        yield f"Of what is drawn on the page {uncovered:.0%} is not in its text."
    if layout.cut:
        yield f"The page has more than {MOST_TEXT:,} characters or {MOST_BLOCKS:,} blocks; the rest is left out."


def unnamed(character: str) -> bool:
    """No character, one of private use, or one that controls a device."""
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")


def looks_garbled(word: str) -> bool:
    """What comes of a font whose codes are read as letters: ``7KLV`` or ``WH[W`` in place of words."""
    symbols = sum(character in SYMBOLS for character in word)
    if len(word) >= 3 and 2 * symbols > len(word) and len(set(word)) > 2:
        return True
    core = word.strip(string.punctuation)
    if len(core) < 3 or not core.isascii():
        return False
    if re.search(r"[a-z][A-Z]{2,}[a-z]?|[A-Za-z][\[\]{}\\^`|~<>\"$%&*;=?!]+[A-Za-z]|[A-Z]\d+[A-Z]*[a-z]", core):
        return True
    letters = re.sub(r"[^A-Za-z]", "", core)
    return len(letters) == len(core) >= 4 and not re.search("[aeiouyAEIOUY]", letters)


def right_to_left(text: str) -> bool:
    """Whether more of its letters are of a script that is written from right to left than of others."""
    kinds = [unicodedata.bidirectional(character) for character in text]
    return kinds.count("R") + kinds.count("AL") > kinds.count("L")


def _runs(words: list[str]) -> Iterator[list[str]]:
    """The words of a line from right to left as they stand: each alone, those of other scripts together."""
    for leftwards, run in groupby(words, key=lambda word: not any(map(_is_left_to_right, word))):
        if leftwards:
            yield from ([word[::-1] if right_to_left(word) else word] for word in run)
        else:
            yield list(run)


def _is_left_to_right(character: str) -> bool:
    return unicodedata.bidirectional(character) == "L"


def around(boxes: list[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)

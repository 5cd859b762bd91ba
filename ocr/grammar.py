r"""What DeepSeek-OCR says of a page, read into blocks, markdown and text.

Its output is markdown in which each part may be told with its place::

    <|ref|>title<|/ref|><|det|>[[57, 43, 388, 71]]<|/det|>
    # The first report

The first tag holds the kind of the part or, when it was asked for the text itself, the text; the second the boxes'
corners, in 0 to 999 of the page's width and height, whatever the resolution mode: the model's own programs draw them so
(``x / 999 * width`` in DeepSeek-OCR's ``run_dpsk_ocr_pdf.py``), and the padding of a mode is not counted.

The output may be cut anywhere, and any number in it may be wrong: the text that is there is kept, and a warning says
what was not. The time is linear in its length.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from ocr.page import FIGURE, Block, Box, Reading, figure_name
from ocr.plain_text import plain_text

# The tokens that begin and end a text are written with a full-width bar and a low block.
END_OF_SENTENCE, _BEGIN_OF_SENTENCE, _PAD = (
    "<\uff5c" + words.replace(" ", "\u2581") + "\uff5c>" for words in ("end of sentence", "begin of sentence", " pad ")
)
# The last of the numbers in which places are told.
LAST = 999
# More are not believed: each figure is cropped to a file.
MAX_FIGURES = 99
MAX_BOXES = 5000

_TOKENS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", END_OF_SENTENCE)
_TOKEN = re.compile(
    rf"<\|(?P<closes>/?)(?P<tag>ref|det)\|>|<\|grounding\|>|{END_OF_SENTENCE}|{_BEGIN_OF_SENTENCE}|{_PAD}"
)
_PLACES = re.compile(r"[ \t\d\[\](),.+-]*")
_NUMBER = re.compile(r"([+-]?)(\d+)(?:\.\d*)?")
_DET_CLOSES = re.compile(r"\s{0,10}<\|/det\|>")
# A kind that is not listed, as no text of a page is written.
_KIND = re.compile(r"[a-z]{2,20}(?:_[a-z]{2,20}){1,3}")
_KINDS = {
    "title": "title",
    "sub_title": "title",
    "subtitle": "title",
    "text": "text",
    "paragraph": "text",
    "abstract": "text",
    "list": "list",
    "reference": "list",
    "table": "table",
    "image": FIGURE,
    "figure": FIGURE,
    "chart": FIGURE,
    "equation": "formula",
    "formula": "formula",
    "caption": "caption",
    "image_caption": "caption",
    "figure_caption": "caption",
    "figure_title": "caption",
    "table_caption": "caption",
    "header": "header",
    "footer": "footer",
    "footnote": "footer",
    "page_number": "footer",
    "table_footnote": "footer",
    "image_footnote": "footer",
}


class Refs(StrEnum):
    """What the model was asked to put into ``<|ref|>``."""

    KINDS = "kinds"
    """The kind of a part; what is no kind is taken for text."""
    TEXTS = "texts"


@dataclass
class _Part:
    kind: str
    text: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    label: str = ""
    """What may have been text, where none follows it."""

    @property
    def markdown(self) -> str:
        return "".join(self.text).strip() or self.label


def read_grounded(output: str, page: int, width: int, height: int, refs: Refs = Refs.KINDS) -> Reading:
    """Of the page with the number ``page``, drawn ``width`` by ``height`` pixels. Never raises."""
    parser = _Parser(output, width, height, refs)
    parser.parse()
    return _Assembly(page, refs, parser.damage).reading(parser.parts)


def read_plain(output: str) -> Reading:
    """The answer of a model that tells no places: markdown, perhaps wrapped into a block of code as a whole."""
    markdown = output.strip()
    first, _, rest = markdown.partition("\n")
    if first in ("```", "```markdown", "```md", "```text", "```html") and rest.count("```") == 1:
        markdown = rest.removesuffix("```").strip() if rest.endswith("```") else markdown
    text = plain_text(markdown)
    return Reading(text, markdown, (Block("text", text),) if text else ())


class _Parser:
    def __init__(self, output: str, width: int, height: int, refs: Refs) -> None:
        self.damage: Counter[str] = Counter()
        self.parts: list[_Part] = [_Part("text")]
        self._output = self._without_cut_tag(output)
        self._size = (max(1, width), max(1, height))
        self._refs = refs
        self._count = 0

    def _without_cut_tag(self, output: str) -> str:
        begin = max(output.rfind(tag, -len(END_OF_SENTENCE)) for tag in ("<|", END_OF_SENTENCE[:2]))
        tail = output[begin:] if begin >= 0 else ""
        if tail and any(token != tail and token.startswith(tail) for token in _TOKENS):
            self.damage["its end was cut off in a tag"] += 1
            return output[:begin]
        return output

    def parse(self) -> None:
        position = 0
        while (token := _TOKEN.search(self._output, position)) is not None:
            self._say(self._output[position : token.start()])
            position = self._tag(token)
        self._say(self._output[position:])

    def _say(self, text: str) -> None:
        self.parts[-1].text.append(text)

    def _tag(self, token: re.Match[str]) -> int:
        """Where to go on."""
        if token["tag"] is None:
            return token.end()
        if token["closes"]:
            self.damage["a tag was closed that was not open"] += 1
            return token.end()
        return self._ref(token.end()) if token["tag"] == "ref" else self._det(token.end())

    def _ref(self, begin: int) -> int:
        token = _TOKEN.search(self._output, begin)
        if token is not None and token["tag"] == "ref" and token["closes"]:
            self._begin(self._output[begin : token.start()])
            return token.end()
        self.damage["a tag was not closed"] += 1
        rest = self._output[begin:].strip() if token is None and len(self._output) - begin < 40 else ""
        if rest and self._refs is Refs.KINDS and any(kind.startswith(rest) for kind in _KINDS):
            return len(self._output)
        self.parts.append(_Part("text"))
        return begin

    def _begin(self, label: str) -> None:
        kind = label.strip()
        if self._refs is Refs.KINDS and kind in _KINDS:
            self.parts.append(_Part(_KINDS[kind]))
        elif self._refs is Refs.KINDS and _KIND.fullmatch(kind):
            self.parts.append(_Part("other", label=kind))
        else:
            self.parts.append(_Part("text", [label]))

    def _det(self, begin: int) -> int:
        match = _PLACES.match(self._output, begin)
        assert match is not None
        end = match.end()
        closes = _DET_CLOSES.match(self._output, end)
        if closes is None:
            end = begin + _end_of_list(match[0])
            closes = _DET_CLOSES.match(self._output, end)
        if closes is None:
            self.damage["a tag was not closed"] += 1
        self.parts[-1].boxes += self._boxes(self._output[begin:end])
        return end if closes is None else closes.end()

    def _boxes(self, places: str) -> Iterator[Box]:
        numbers = [_number(match) for match in _NUMBER.finditer(places)]
        if not numbers or len(numbers) % 4:
            self.damage["a place was not told by four numbers"] += 1
        for index in range(0, len(numbers) - 3, 4):
            self._count += 1
            if self._count > MAX_BOXES:
                self.damage[f"more than {MAX_BOXES} places were told"] = 1
                return
            yield self._box(*numbers[index : index + 4])

    def _box(self, x1: int, y1: int, x2: int, y2: int) -> Box:
        corners = (x1, y1, x2, y2)
        if any(not 0 <= number <= LAST for number in corners):
            self.damage["a place lay outside the page"] += 1
        if x1 > x2 or y1 > y2:
            self.damage["the corners of a place were exchanged"] += 1
        x1, y1, x2, y2 = (min(max(number, 0), LAST) for number in corners)
        left, right = _pixels(min(x1, x2), max(x1, x2), self._size[0])
        top, bottom = _pixels(min(y1, y2), max(y1, y2), self._size[1])
        return left, top, right, bottom


def _end_of_list(text: str) -> int:
    """The index after the bracket that closes the first list; the length of ``text`` where none does."""
    depth = 0
    for index, character in enumerate(text):
        if character == "[":
            depth += 1
        elif character == "]":
            depth -= 1
            if depth <= 0:
                return index + 1
    return len(text)


def _number(match: re.Match[str]) -> int:
    """Not the value of what has more than six digits, which is out of range anyway and would take long."""
    value = int(match[2]) if len(match[2]) <= 6 else 10**6
    return -value if match[1] == "-" else value


def _pixels(first: int, last: int, size: int) -> tuple[int, int]:
    """At least one pixel, within the page."""
    begin = min(first * size // LAST, size - 1)
    return begin, max(begin + 1, -(-last * size // LAST))


class _Assembly:
    """Parts to blocks and text."""

    def __init__(self, page: int, refs: Refs, damage: Counter[str]) -> None:
        self._page = page
        self._refs = refs
        self._damage = damage
        self._blocks: list[Block] = []
        self._markdown: list[str] = []
        self._text: list[str] = []
        self._figures = 0

    def reading(self, parts: list[_Part]) -> Reading:
        for part in parts:
            if part.kind == FIGURE:
                self._figure(part)
            elif part.markdown:
                self._add(part)
        # Of a page that is told in texts each is a line.
        gap = "\n" if self._refs is Refs.TEXTS else "\n\n"
        warnings = tuple(_warning(what, times) for what, times in self._damage.items())
        return Reading(gap.join(self._text), gap.join(self._markdown), tuple(self._blocks), warnings=warnings)

    def _add(self, part: _Part) -> None:
        text = plain_text(part.markdown)
        self._markdown.append(part.markdown)
        self._text.append(text)
        # What was looked for may be at several places; a paragraph in two columns is one.
        apart = self._refs is Refs.TEXTS and len(part.boxes) > 1
        boxes = part.boxes if apart else [_around(part.boxes)]
        # Once: of a thousand places the text would fill the memory.
        self._blocks += [Block(part.kind, "" if index else text, box) for index, box in enumerate(boxes)]

    def _figure(self, part: _Part) -> None:
        room = MAX_FIGURES - self._figures
        if not part.boxes:
            self._damage["a figure was told without its place"] += 1
        if len(part.boxes) > room:
            self._damage[f"more than {MAX_FIGURES} figures were told"] = 1
        for box in part.boxes[:room]:
            self._figures += 1
            self._blocks.append(Block(FIGURE, "", box))
            self._markdown.append(f"![]({figure_name(self._page, self._figures)})")
        if part.markdown:
            self._add(_Part("text", part.text))


def _around(boxes: list[Box]) -> Box | None:
    if not boxes:
        return None
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _warning(what: str, times: int) -> str:
    return f"The model's output was damaged: {what}{f', {times} times' if times > 1 else ''}."

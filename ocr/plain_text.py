"""From the markdown of a vision model, with its HTML tables, to text for people. Linear in its length; never fails."""

import html
import re
from collections.abc import Iterator

# The elements that vision models write. Anything else in angle brackets is text of the page.
_ELEMENTS = (
    "table|thead|tbody|tfoot|tr|td|th|caption|colgroup|col|center|br|hr|p|div|span|img|figure|figcaption"
    "|h[1-6]|ul|ol|li|b|i|u|s|em|strong|sub|sup|small|a"
)
# Bounded, here and below, so that what never closes costs no more than what does.
_TAG = re.compile(rf"<(/?)({_ELEMENTS})(?:\s[^<>]{{0,1000}})?/?>", re.IGNORECASE)
_CELL_ENDS, _LINE_ENDS = frozenset({"td", "th"}), frozenset({"tr", "p", "div", "li", "table", "center", "caption"})
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
_FENCE = re.compile(r"[ \t]{0,3}(?:```|~~~)[^`\n]{0,80}$")
_HEADING = re.compile(r"\A[ ]{0,3}#{1,6}[ \t]+")
_QUOTE = re.compile(r"\A[ ]{0,3}>[ ]?")
_RULE, _RULE_OR_NOTHING = re.compile(":?-+:?"), re.compile(":?-*:?")
_LINK = re.compile(r"!?\[([^\[\]\n]{0,2000})\]\([^()\n]{0,2000}\)")
_BOLD = re.compile(r"\*\*(?=[^\s*])([^*\n]{1,2000})(?<!\s)\*\*")
_ITALIC = re.compile(r"(?<![\w*\\])\*(?=[^\s*])([^*\n]{1,2000})(?<![\s*\\])\*(?![\w*])")
_CODE = re.compile(r"`([^`\n]{1,2000})`")
_ESCAPE = re.compile(r"\\([*#`~])")
_GAPS = re.compile(r"\n(?:[ \t]*\n){2,}")


def plain_text(markdown: str) -> str:
    """A table's cells are parted by tabs, its rows by line ends. Pictures leave their description, links their text."""
    text = "\n".join(_lines(_without_tags(markdown).split("\n")))
    text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return _GAPS.sub("\n\n", text).strip()


def well_formed(text: str) -> str:
    """The text with its lone surrogates, which JSON may name and nothing can store, replaced. Two that make up a
    character are that character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _without_tags(text: str) -> str:
    return _TAG.sub(_stands_for, text) if "<" in text else text


def _stands_for(tag: re.Match[str]) -> str:
    closes, name = bool(tag[1]), tag[2].lower()
    if name in ("br", "hr") or (closes and name in _LINE_ENDS):
        return "\n"
    return "\t" if closes and name in _CELL_ENDS else ""


def _lines(lines: list[str]) -> Iterator[str]:
    fenced = False
    for line in lines:
        if _FENCE.match(line):
            fenced = not fenced
        elif fenced:
            yield line
        elif not _is_table_rule(line):
            yield _line(line).rstrip()


def _line(line: str) -> str:
    line = _HEADING.sub("", _QUOTE.sub("", line))
    if _is_row(line):
        line = "\t".join(cell.strip() for cell in line.strip()[1:-1].split("|"))
    for pattern in (_LINK, _BOLD, _ITALIC, _CODE, _ESCAPE):
        line = pattern.sub(r"\1", line)
    return line


def _is_table_rule(line: str) -> bool:
    """What parts a table's head from its rows in markdown."""
    cells = [cell.strip(" \t") for cell in line.split("|")]
    first, *others = cells if cells[0] else cells[1:] or cells
    return bool(others and _RULE.fullmatch(first) and all(map(_RULE_OR_NOTHING.fullmatch, others)))


def _is_row(line: str) -> bool:
    stripped = line.strip()
    return len(stripped) > 2 and stripped[0] == stripped[-1] == "|"

"""Text as markdown that shows it as it is."""

import re

# Anywhere in a line: emphasis, code, links, HTML and entities. An underscore within a word means nothing.
_INLINE = re.compile(r"[\\`*\[\]<~|]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")
# Only where a line begins: headings, quotes, lists, rules and the lines under a heading.
_BLOCK = re.compile(r"^(\s*)(#{1,6}(?=\s|$)|>|[-+](?=\s|$)|[-=]+(?=\s*$))", re.MULTILINE)
_NUMBERED = re.compile(r"^(\s*\d{1,9})([.)])(?=\s|$)", re.MULTILINE)


def escaped(text: str) -> str:
    """The text with backslashes before what markdown would take for its own."""
    text = _INLINE.sub(lambda match: "\\" + match[0], text)
    text = _BLOCK.sub(r"\1\\\2", text)
    return _NUMBERED.sub(r"\1\\\2", text)

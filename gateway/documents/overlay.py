"""A page's picture with the boxes of its blocks drawn over it, as SVG. Pure: the picture is embedded as it is."""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

POLICY = "default-src 'none'; img-src data:; frame-ancestors 'none'; sandbox"
"""The Content-Security-Policy of the answer: there is nothing in it but shapes, text and the picture."""

_COLOURS = {
    "title": "#c2185b",
    "text": "#1565c0",
    "list": "#00838f",
    "table": "#2e7d32",
    "figure": "#e65100",
    "formula": "#6a1b9a",
    "caption": "#ad7400",
    "header": "#616161",
    "footer": "#616161",
}
_OTHER = "#000000"
# What XML 1.0 cannot hold (section 2.2), not even escaped.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def svg(record: Mapping[str, Any], picture: bytes) -> str:
    """``picture``: the page as a JPEG, of whatever size; ``record``: see ``ocr.page.PageRecord``, not of width 0."""
    width, height = int(record["width"]), int(record["height"])
    data = base64.b64encode(picture).decode()
    size = f'width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>',
            f"<title>Page {int(record['number'])}</title>",
            f'<image href="data:image/jpeg;base64,{data}" {size} preserveAspectRatio="none"/>',
            *_boxes(record["blocks"], max(width, height) / 900),
            "</svg>\n",
        ]
    )


def _boxes(blocks: list[Mapping[str, Any]], unit: float) -> Iterator[str]:
    """``unit``: the thickness of lines, in pixels of the page."""
    for number, block in enumerate(blocks, start=1):
        if block["bbox"] is None:
            continue
        left, top, right, bottom = (int(edge) for edge in block["bbox"])
        colour = _COLOURS.get(block["type"], _OTHER)
        confidence = "" if block["confidence"] is None else f" ({float(block['confidence']):.2f})"
        name = f"{number} {block['type']}{confidence}"
        box = f'x="{left}" y="{top}" width="{max(0, right - left)}" height="{max(0, bottom - top)}"'
        yield (
            f'<g fill="{colour}" stroke={quoteattr(colour)}>'
            f'<rect {box} fill-opacity="0.08" stroke-width="{unit:.2f}"/>'
            f'<text x="{left}" y="{top - unit:.2f}" font-family="sans-serif" font-size="{12 * unit:.2f}" stroke="none">'
            f"{_text(name)}</text><title>{_text(block['text'])}</title></g>"
        )


def _text(text: str) -> str:
    return escape(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text))

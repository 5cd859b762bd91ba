"""A page's picture as Tesseract reads it best, made while the page is in memory. Runs in the decoding child only."""

from pathlib import Path

from PIL import Image

from ocr.png import write_png
from ocr.protocol import part_path, straight_path
from ocr.skew import skew_of, straightened, telling_part

WORTH_REDUCING = 2_000
"""Pixels of the longer side: of an A4 page at 300 dpi they are 3,508, and letters in 8 point stay 14 high."""


def write_straight(page: Image.Image, path: Path) -> tuple[float, int]:
    """Write what `ocr.protocol.Straight` describes of a page (L or RGB) beside its file; return angle and reduction."""
    page = page.convert("L")
    angle = skew_of(page)
    page = straightened(page, angle)
    if angle:
        write_png(page, straight_path(path))
    reduction = 2 if max(page.size) >= WORTH_REDUCING else 1
    if reduction > 1:
        write_png(telling_part(page).reduce(reduction), part_path(path))
    return angle, reduction

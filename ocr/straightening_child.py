"""Prepares a page's picture for Tesseract: ``python -m ocr.straightening_child PARENT PAGE STRAIGHT SMALL``.

Writes STRAIGHT, the page in grey without skew, only where it had some, and SMALL, a part of it at half the resolution,
only where the page is large. Prints the angle in degrees counter-clockwise by which the page was turned, and by what
SMALL was reduced.
"""

import sys
from pathlib import Path

from PIL import Image

from ocr.limits import allow_cpu, die_with_parent, limit_process
from ocr.png import write_png
from ocr.protocol import MEBIBYTE
from ocr.skew import skew_of, straightened, telling_part

MEMORY = 1024 * MEBIBYTE
OUTPUT = 256 * MEBIBYTE
CPU_SECONDS = 20.0
WORTH_REDUCING = 2_000
"""Pixels of the longer side: of an A4 page at 300 dpi they are 3,508, and letters in 8 point stay 14 high."""


def main() -> None:
    parent, page_path, straight_path, small_path = sys.argv[1:]
    die_with_parent(int(parent))
    limit_process(MEMORY, OUTPUT)
    allow_cpu(CPU_SECONDS)
    # Of our own decoder, which has checked its size.
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(page_path, formats=("PNG",)) as file:
        page = file.convert("L")
    angle = skew_of(page)
    page = straightened(page, angle)
    if angle:
        write_png(page, Path(straight_path))
    reduction = 2 if max(page.size) >= WORTH_REDUCING else 1
    if reduction > 1:
        write_png(telling_part(page).reduce(reduction), Path(small_path))
    print(angle, reduction)


if __name__ == "__main__":
    main()

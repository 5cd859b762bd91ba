"""Makes one page of a searchable PDF: ``python -m ocr.searchable_child PARENT PAGE LAYER OUTPUT ANGLE ROTATION``.

PAGE is the picture as it was drawn, LAYER what Tesseract wrote, ANGLE how far it had turned the page for that, and the
rest is as `ocr.searchable.with_picture` says.
"""

import io
import sys
from pathlib import Path

from PIL import Image

from ocr.limits import allow_cpu, die_with_parent, limit_process
from ocr.protocol import MEBIBYTE
from ocr.searchable import with_picture
from ocr.skew import straightened

MEMORY = 1024 * MEBIBYTE
FILE_SIZE = 256 * MEBIBYTE
CPU_SECONDS = 20.0
QUALITY = 50
"""Of the JPEG. People read it as well as the page itself; a scan in grey at 300 dpi takes a tenth of its PNG."""


def main() -> None:
    parent, page_path, layer_path, output_path, angle, rotation = sys.argv[1:]
    die_with_parent(int(parent))
    limit_process(MEMORY, FILE_SIZE)
    allow_cpu(CPU_SECONDS)
    # Of our own decoder, which has checked its size.
    Image.MAX_IMAGE_PIXELS = None
    jpeg = io.BytesIO()
    with Image.open(page_path, formats=("PNG",)) as file:
        file.load()
        page = straightened(file, float(angle))
    page.save(jpeg, "JPEG", quality=QUALITY, optimize=True)
    layer = Path(layer_path).read_bytes()
    whole = with_picture(layer, jpeg.getvalue(), page.size, page.mode == "L", int(rotation))
    Path(output_path).write_bytes(whole)


if __name__ == "__main__":
    main()

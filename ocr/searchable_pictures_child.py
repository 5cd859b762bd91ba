"""Makes PDFs of one page of pictures: ``python -m ocr.searchable_pictures_child PARENT DIRECTORY``.

The directory holds ``pictures.json``, ``[{"jpeg": name, "pdf": name, "width": n, "height": n}, …]``. Each JPEG, whose
header nobody has read before, becomes the PDF that is named with it.
"""

import json
import struct
import sys
from pathlib import Path

from ocr.limits import allow_cpu, die_with_parent, limit_process
from ocr.pdf_objects import drawn, one_page, picture
from ocr.protocol import MEBIBYTE

PICTURES = "pictures.json"
MEMORY = 512 * MEBIBYTE
FILE_SIZE = 64 * MEBIBYTE
CPU_SECONDS = 60.0
LONGER_SIDE = 842
"""Of a page, in points, as of one in A4: how large its paper was is not known."""
COLOUR_SPACES = {1: b"DeviceGray", 3: b"DeviceRGB"}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers that no length follows (ITU-T T.81, B.1.1.3)."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a frame's header: ``SOF`` (T.81, table B.1)."""


def jpeg_header(jpeg: bytes) -> tuple[int, int, int]:
    """Width and height in pixels and the number of colour components. Raises ValueError for what is no JPEG."""
    position = 2 if jpeg[:2] == b"\xff\xd8" else len(jpeg)
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        if marker in _FRAMES and position + 10 <= len(jpeg):
            height, width, components = struct.unpack_from(">HHB", jpeg, position + 5)
            if width and height and components in COLOUR_SPACES:
                return width, height, components
            break
        filled = marker == 0xFF
        alone = marker in _ALONE
        length = struct.unpack_from(">H", jpeg, position + 2)[0]
        position += 1 if filled else 2 if alone else 2 + length
    raise ValueError("The picture of a page is no JPEG in grey or in colours.")


def picture_page(jpeg: bytes, width: int, height: int) -> bytes:
    """A PDF of one page, as wide to its height as `width` to `height`, that the JPEG fills. Raises ValueError."""
    pixels_across, pixels_down, components = jpeg_header(jpeg)
    scale = LONGER_SIDE / max(width, height)
    across, down = max(1.0, width * scale), max(1.0, height * scale)
    entries = b"/Contents 4 0 R /Resources << /XObject << /Page 5 0 R >> >>"
    image = picture(jpeg, pixels_across, pixels_down, COLOUR_SPACES[components])
    return one_page(across, down, entries, drawn(across, down), image)


def main() -> None:
    parent, directory = int(sys.argv[1]), Path(sys.argv[2])
    die_with_parent(parent)
    limit_process(MEMORY, FILE_SIZE)
    allow_cpu(CPU_SECONDS)
    for wanted in json.loads((directory / PICTURES).read_text(encoding="utf-8")):
        jpeg = (directory / wanted["jpeg"]).read_bytes()
        page = picture_page(jpeg, wanted["width"], wanted["height"])
        (directory / wanted["pdf"]).write_bytes(page)
        (directory / wanted["jpeg"]).unlink()


if __name__ == "__main__":
    main()

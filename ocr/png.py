"""PNG files that live for seconds: written whole, not packed. Pillow tries filters on each row even then."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

COLOUR_TYPES = {"L": 0, "RGB": 2}
INCH = 0.0254
STRIP = 128 * 1024
"""About so many bytes are written at a time: memory that is asked for in small pieces comes back, and new memory takes
the system longer to give than we take to fill it."""


def write_png(page: Image.Image, path: Path, dpi: int | None = None) -> None:
    """Write a picture (L or RGB) in a tenth of the time that Pillow takes at its quickest level, and twice the size."""
    header = struct.pack(">IIBBBBB", page.width, page.height, 8, COLOUR_TYPES[page.mode], 0, 0, 0)
    metre = round(dpi / INCH) if dpi else 0
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.writelines(_chunk(b"IHDR", header))
        if metre:
            file.writelines(_chunk(b"pHYs", struct.pack(">IIB", metre, metre, 1)))
        packer = zlib.compressobj(0)
        for rows in _strips(page):
            file.writelines(_chunk(b"IDAT", packer.compress(rows)))
        file.writelines(_chunk(b"IDAT", packer.flush()))
        file.writelines(_chunk(b"IEND", b""))


def _strips(page: Image.Image) -> Iterator[bytes]:
    """The rows, each behind the number of its filter: none."""
    row = page.width * len(page.getbands())
    height = max(1, STRIP // row)
    for top in range(0, page.height, height):
        strip = page.crop((0, top, page.width, min(top + height, page.height)))
        rows = Image.new("L", (row + 1, strip.height))
        rows.paste(Image.frombytes("L", (row, strip.height), strip.tobytes()), (1, 0))
        yield rows.tobytes()


def _chunk(kind: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    return struct.pack(">I", len(body)) + kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))

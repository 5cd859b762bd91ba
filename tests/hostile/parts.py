"""Parts of files, put together by hand so that they can be wrong in just one place."""

import struct
import zlib
from collections.abc import Sequence
from functools import cache

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG; a wrong `crc` may be given."""
    check = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def png_header(width: int, height: int, depth: int = 8, colour: int = 0, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def png(header: bytes, *chunks: bytes) -> bytes:
    return PNG_SIGNATURE + header + b"".join(chunks) + chunk(b"IEND", b"")


def png_with(*extra: bytes, width: int = 40, height: int = 30) -> bytes:
    """A grey picture with other chunks before its pixels."""
    rows = b"".join(b"\0" + bytes(range(width)) for _ in range(height))
    return png(png_header(width, height), *extra, chunk(b"IDAT", zlib.compress(rows)))


def inserted(data: bytes, *extra: bytes) -> bytes:
    """A PNG with chunks put in after its header."""
    return data[:33] + b"".join(extra) + data[33:]


@cache
def inflating(block: bytes, count: int, before: bytes = b"") -> bytes:
    """`before` and then `count` times the block, deflated, without that anybody has to deflate it all."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = squeeze.compress(before) + squeeze.flush(zlib.Z_FULL_FLUSH)
    part = squeeze.compress(block) + squeeze.flush(zlib.Z_FULL_FLUSH)
    check = zlib.adler32(before)
    for _ in range(count):
        check = zlib.adler32(block, check)
    return b"\x78\xda" + head + part * count + b"\x03\0" + check.to_bytes(4, "big")


def zeros(size: int) -> bytes:
    """At least so many zero bytes, in steps of 2 to the power of 20, deflated to a thousandth."""
    return inflating(bytes(1 << 20), -(-size // (1 << 20)))


Tag = tuple[int, int, int | Sequence[int]]
TIFF_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}
TIFF_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def tiff_of(tags: Sequence[Tag], body: bytes, *, next_ifd: int = 0, big_endian: bool = False) -> bytes:
    """A TIFF of one directory at 8, then long values, then `body`, whose place stands for ``-1`` in a tag."""
    order = ">" if big_endian else "<"
    size = 2 + 12 * len(tags) + 4
    extra = bytearray()
    lengths = sum(
        len(value) * TIFF_SIZES[kind] for _, kind, value in tags if not isinstance(value, int) and len(value) > 1
    )
    start = 8 + size + lengths
    out = bytearray(struct.pack(f"{order}2sHI", b"MM" if big_endian else b"II", 42, 8))
    out += struct.pack(f"{order}H", len(tags))
    for tag, kind, value in tags:
        values = [value] if isinstance(value, int) else list(value)
        packed = struct.pack(
            f"{order}{len(values)}{TIFF_CODES[kind]}", *(start if item == -1 else item for item in values)
        )
        out += struct.pack(f"{order}HHI", tag, kind, len(values))
        if len(packed) <= 4:
            out += packed.ljust(4, b"\0")
        else:
            out += struct.pack(f"{order}I", 8 + size + len(extra))
            extra += packed
    out += struct.pack(f"{order}I", next_ifd)
    return bytes(out + extra + body)


def grey_tags(width: int, height: int, size: int, bits: int = 8, compression: int = 1) -> list[Tag]:
    """The tags of a grey TIFF of one strip of `size` bytes."""
    tags: list[Tag] = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, compression),
        (262, 3, 1),
        (273, 4, -1),
    ]
    return [*tags, (277, 3, 1), (278, 4, height), (279, 4, size)]


def with_tag(tags: Sequence[Tag], *changed: Tag) -> list[Tag]:
    """The tags, some of them replaced or added."""
    named = {tag[0]: tag for tag in [*tags, *changed]}
    return [named[number] for number in sorted(named)]


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments put in at its beginning."""
    return data[:2] + b"".join(segments) + data[2:]


def frame_header(data: bytes) -> int:
    """Where the frame header's marker (SOF) stands in a JPEG."""
    place = 2
    while not 0xC0 <= data[place + 1] <= 0xCF or data[place + 1] in (0xC4, 0xC8, 0xCC):
        place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    return place


def patched(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def bmp(
    width: int, height: int, body: bytes, *, bits: int = 8, compression: int = 0, offset: int | None = None
) -> bytes:
    """A BMP with a palette of greys where it has up to 8 bits; `height` may be negative (top row first)."""
    palette = b"".join(bytes([level, level, level, 0]) for level in range(1 << bits)) if bits <= 8 else b""
    start = 54 + len(palette) if offset is None else offset
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + len(palette) + len(body), 0, 0, start) + info + palette + body


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced PNG: first column and row, steps (PNG specification, 8.2)."""


def interlaced_png(width: int, height: int, pixels: bytes) -> bytes:
    """An interlaced PNG of grey bytes."""
    rows = b""
    for left, top, across, down in ADAM7:
        for y in range(top, height, down):
            row = pixels[y * width + left : (y + 1) * width : across]
            rows += b"\0" + row if row else b""
    return png(png_header(width, height, interlaced=1), chunk(b"IDAT", zlib.compress(rows)))

"""Pictures of the corpus."""

import io
import struct
import zlib

from PIL import Image, ImageDraw

from tests.documents import (
    encoded,
)
from tests.hostile.parts import (
    bmp,
    chunk,
    frame_header,
    grey_tags,
    jpeg_with,
    patched,
    png,
    png_header,
    png_with,
    segment,
    tiff_of,
    with_tag,
    zeros,
)


def marked(mode: str = "L", width: int = 60, height: int = 40) -> Image.Image:
    """White, with a black field in the upper left corner."""
    image = Image.new("L", (width, height), 255)
    ImageDraw.Draw(image).rectangle((0, 0, width // 3, height // 3), fill=0)
    return image.convert(mode)


def upright(image: Image.Image) -> bool:
    """Whether it looks as `marked` does, give or take what a lossy format loses."""
    grey = image.convert("L")
    dark, light = grey.getpixel((4, 4)), [grey.getpixel(place) for place in ((55, 4), (4, 35), (55, 35))]
    return (grey.size, dark < 40, min(light) > 215) == ((60, 40), True, True)


def jpeg(mode: str = "L", **options: object) -> bytes:
    return encoded(marked(mode), "JPEG", quality=95, **options)


def turned(orientation: int) -> bytes:
    """A photo that is upright only if one does what its EXIF says."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    image = marked()
    if orientation in undo:
        image = image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=95, exif=exif)


def progressive_without_end(scans: int = 20_000) -> bytes:
    """A progressive JPEG of one white area whose last scan, of some hundred bytes, comes again and again."""
    data = encoded(Image.new("L", (8_000, 8_000), 255), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + b"\xff\xd9"


def frames(kind: str, **options: object) -> bytes:
    return encoded(marked("RGB"), kind, save_all=True, append_images=[marked("RGB").rotate(180)], **options)


def bombed(kind: bytes, before: bytes, size: int = 1 << 30) -> bytes:
    """A PNG with a chunk of text or of a profile that inflates to a gigabyte."""
    return png_with(chunk(kind, before + zeros(size)))


def palette_png(transparent: bool = False, missing: bool = False, beyond: bool = False) -> bytes:
    rows = b"".join(b"\0" + bytes([200 if beyond else x % 2 for x in range(40)]) for _ in range(30))
    parts = [] if missing else [chunk(b"PLTE", bytes([0, 0, 0, 255, 255, 255]))]
    parts += [chunk(b"tRNS", bytes([255, 0]))] if transparent else []
    return png(png_header(40, 30, 8, 3), *parts, chunk(b"IDAT", zlib.compress(rows)))


def crumbled_png() -> bytes:
    """Its pixels lie in some 60,000 chunks of one byte each."""
    noise = Image.effect_noise((250, 250), 50).tobytes()
    rows = zlib.compress(b"".join(b"\0" + noise[y * 250 : (y + 1) * 250] for y in range(250)))
    return png(png_header(250, 250), *(chunk(b"IDAT", rows[i : i + 1]) for i in range(len(rows))))


def g4(damaged: bool = False) -> bytes:
    data = bytearray(encoded(marked("1"), "TIFF", compression="group4"))
    if damaged:
        place = 8
        data[place : place + 12] = bytes(range(0x55, 0x55 + 12))
    return bytes(data)


def deep(values: bytes, bits: int, *extra: tuple[int, int, int], big_endian: bool = False) -> bytes:
    tags = with_tag(grey_tags(60, 40, len(values), bits), *extra)
    return tiff_of(tags, values, big_endian=big_endian)


def sixteen(big_endian: bool = False) -> bytes:
    order = ">" if big_endian else "<"
    return deep(struct.pack(f"{order}2400H", *(level * 257 for level in marked().tobytes())), 16, big_endian=big_endian)


def floating(odd: tuple[float, ...] = ()) -> bytes:
    levels = [level / 255 for level in marked().tobytes()]
    levels[len(levels) // 2 : len(levels) // 2 + len(odd)] = odd
    return deep(struct.pack("<2400f", *levels), 32, (339, 3, 3))


def tiled(width: int, height: int, tile: int) -> bytes:
    tags = with_tag(grey_tags(width, height, 16), (322, 4, tile), (323, 4, tile), (324, 4, -1), (325, 4, 16))
    return tiff_of([tag for tag in tags if tag[0] not in (273, 278, 279)], bytes(16))


def deflated_tiff(width: int, height: int) -> bytes:
    """A TIFF of zeros; one that is larger than 1 GB has less of them than it says."""
    body = zeros(min(width * height, 1 << 30))
    return tiff_of(grey_tags(width, height, len(body), compression=8), body)


def crowded_directory(entries: int = 60_000) -> bytes:
    tags = with_tag(grey_tags(60, 40, 2400))
    return tiff_of([*tags, *((60_000, 4, 1) for _ in range(entries))], marked().tobytes())


def rle_bmp(body: bytes) -> bytes:
    return bmp(60, 40, body, compression=1)


def rle_rows() -> bytes:
    dark, light = bytes([21, 0, 39, 255, 0, 0]), bytes([60, 255, 0, 0])
    return light * 26 + dark * 14 + b"\0\1"


def svg() -> bytes:
    return b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


def heic() -> bytes:
    return struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(400)


def psd() -> bytes:
    return b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 40, 60, 8, 3) + bytes(14 + 2 + 3 * 2400)


def renamed(kind: str, mode: str = "RGB") -> bytes:
    return encoded(Image.new(mode, (64, 64)), kind)


def webp(**options: object) -> bytes:
    return encoded(marked("RGBA" if options.pop("alpha", None) else "RGB"), "WEBP", **options)


def solid_webp(side: int = 16_383) -> bytes:
    """The largest WebP there can be, all of one colour."""
    whole = encoded(Image.new("RGB", (8, 8), "white"), "WEBP", lossless=True)
    place = whole.index(b"VP8L") + 9
    bits = struct.unpack("<I", whole[place : place + 4])[0]
    return patched(whole, place, struct.pack("<I", bits & ~0xFFFFFFF | (side - 1) | (side - 1) << 14))


def jpeg_header(offset: int, new: bytes, mode: str = "L") -> bytes:
    """A JPEG with other bytes in its frame header: 1 the marker, 4 precision, 5 height, 7 width."""
    data = jpeg(mode)
    return patched(data, frame_header(data) + offset, new)


def ycck() -> bytes:
    data = jpeg("CMYK")
    return patched(data, data.index(b"Adobe") + 11, b"\2")


def circular_exif() -> bytes:
    """EXIF whose directories lead to each other."""
    ifd = struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
    return jpeg_with(jpeg(), segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<I", 8) + ifd))


def damaged_in_the_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return patched(data, middle, bytes(range(90, 154)))


def mpo() -> bytes:
    return encoded(marked(), "MPO", quality=95, save_all=True, append_images=[marked().rotate(180)])


def in_tiff(compression: str, mode: str = "L", **options: object) -> bytes:
    return encoded(marked(mode), "TIFF", compression=compression, **options)


def bigtiff() -> bytes:
    buffer = io.BytesIO()
    marked().save(buffer, "TIFF", big_tiff=True)
    return buffer.getvalue()


def largest_png() -> bytes:
    """As many pixels as are let in, in colour and with alpha: nothing may need more memory."""
    width, height = 9_000, 9_900
    squeeze = zlib.compressobj(1)
    row = b"\0" + b"\x10\x80\xf0\x80" * width
    body = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    return png(png_header(width, height, 8, 6), chunk(b"IDAT", body))

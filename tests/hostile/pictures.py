"""Pictures of the corpus."""

import io
import struct
import zlib
from functools import partial

from PIL import Image, ImageDraw

from tests.documents import (
    encoded,
    page_jpeg,
    page_png,
    png_bomb,
    text_named_png,
    tiff_of_frames,
    tiff_with_bomb_in_second_frame,
    truncated_jpeg,
)
from tests.hostile.case import HURRIED, Case
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

JPEG, PNG, WEBP, BMP, TIFF = (f"image/{name}" for name in ("jpeg", "png", "webp", "bmp", "tiff"))
BAD, CUT, BIG = "unreadable_document", "truncated_document", "image_too_large"


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
    body = zeros(width * height)
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


LOOKS = {"looks": upright}
PICTURES: tuple[Case, ...] = (
    # What is in order, however odd.
    Case("grey JPEG", JPEG, jpeg, ("60x40",), **LOOKS),
    Case("CMYK JPEG, inverted as Adobe does", JPEG, partial(jpeg, "CMYK"), ("60x40",), **LOOKS),
    Case("YCCK JPEG", JPEG, ycck, ("60x40",)),
    *(Case(f"EXIF orientation {n}", JPEG, partial(turned, n), ("60x40",), **LOOKS) for n in range(1, 9)),
    Case("EXIF orientation 99", JPEG, partial(turned, 99), ("60x40",), **LOOKS),
    Case(
        "EXIF of garbage",
        JPEG,
        lambda: jpeg_with(jpeg(), segment(0xE1, b"Exif\0\0" + bytes(range(200)))),
        ("60x40",),
        **LOOKS,
    ),
    Case("EXIF in a circle", JPEG, circular_exif, ("60x40",), **LOOKS),
    Case(
        "profile of garbage",
        JPEG,
        lambda: jpeg_with(jpeg(), segment(0xE2, b"ICC_PROFILE\0\1\1" + b"x" * 999)),
        ("60x40",),
        **LOOKS,
    ),
    Case("5,000 comments", JPEG, lambda: jpeg_with(jpeg(), segment(0xFE, b"no comment") * 5_000), ("60x40",), **LOOKS),
    Case("JPEG and garbage behind it", JPEG, lambda: jpeg() + bytes(range(256)) * 400, ("60x40",), **LOOKS),
    Case("progressive JPEG", JPEG, partial(jpeg, progressive=True), ("60x40",), **LOOKS),
    Case("MPO", JPEG, mpo, ("60x40",), **LOOKS),
    Case("JPEG of one row", JPEG, lambda: encoded(Image.new("L", (65_500, 1), 255), "JPEG"), ("30000x1",)),
    Case("PNG, 16 bits", PNG, lambda: encoded(marked("I;16").point(lambda v: v * 257), "PNG"), ("60x40",), **LOOKS),
    Case("PNG, palette with a transparent entry", PNG, partial(palette_png, transparent=True), ("40x30",)),
    Case(
        "PNG, a palette without the colours used",
        PNG,
        partial(palette_png, beyond=True),
        ("40x30",),
    ),
    Case("PNG, animated", PNG, partial(frames, "PNG"), ("60x40",), **LOOKS),
    Case("PNG of 60,000 crumbs", PNG, crumbled_png, ("250x250",)),
    Case("PNG, text inflates to 1 GB (zTXt)", PNG, partial(bombed, b"zTXt", b"k\0\0"), ("!unreadable_document",)),
    Case(
        "PNG, text inflates to 1 GB (iTXt)",
        PNG,
        partial(bombed, b"iTXt", b"k\0\1\0\0\0"),
        ("!unreadable_document",),
    ),
    Case("PNG, profile inflates to 1 GB (iCCP)", PNG, partial(bombed, b"iCCP", b"k\0\0"), ("!unreadable_document",)),
    Case(
        "PNG, wrong sum of a chunk that nobody needs",
        PNG,
        lambda: png_with(chunk(b"tEXt", b"a\0b", 7)),
        ("40x30|!unreadable_document",),
    ),
    Case("the largest PNG that is let in", PNG, partial(png_bomb, 9_480, 9_480), ("6324x6324",)),
    Case("the largest PNG that is let in, with alpha", PNG, largest_png, ("drawn|image_too_large|document_too_large",)),
    Case("WebP, animated", WEBP, partial(frames, "WEBP", lossless=True), ("60x40",), **LOOKS),
    Case("WebP, lossless", WEBP, partial(webp, lossless=True), ("60x40",), **LOOKS),
    Case("WebP, with alpha", WEBP, partial(webp, alpha=True), ("60x40",), **LOOKS),
    Case("BMP, compressed", BMP, lambda: rle_bmp(rle_rows()), ("60x40",), **LOOKS),
    Case("BMP, top row first", BMP, lambda: bmp(60, -40, marked().tobytes()), ("60x40",), **LOOKS),
    Case("G4 fax", TIFF, g4, ("60x40",), **LOOKS),
    Case("TIFF, 16 bits", TIFF, sixteen, ("60x40",), **LOOKS),
    Case("TIFF, 16 bits, big-endian", TIFF, partial(sixteen, True), ("60x40",), **LOOKS),
    Case("TIFF, floating", TIFF, floating, ("60x40",), **LOOKS),
    Case(
        "TIFF, floating, with no numbers in it",
        TIFF,
        partial(floating, (float("nan"), float("inf"), -1e30)),
        ("60x40",),
    ),
    Case("TIFF, CMYK", TIFF, partial(in_tiff, "raw", "CMYK"), ("60x40",), **LOOKS),
    Case("TIFF, LZW", TIFF, partial(in_tiff, "tiff_lzw"), ("60x40",), **LOOKS),
    Case("TIFF, JPEG in it", TIFF, partial(in_tiff, "jpeg", "RGB"), ("60x40",), **LOOKS),
    Case("TIFF of the large kind", TIFF, bigtiff, ("60x40",), **LOOKS),
    Case(
        "TIFF, its directory is the next one",
        TIFF,
        lambda: tiff_of(grey_tags(60, 40, 2400), marked().tobytes(), next_ifd=8),
        ("60x40",),
        **LOOKS,
    ),
    Case("TIFF, 60,000 entries in a directory", TIFF, crowded_directory, ("60x40",), **LOOKS),
    Case("pages 1-3 of 1,000 frames", TIFF, tiff_of_frames, ("8x8",) * 3, pages="1-3"),
    Case("one pixel", PNG, lambda: encoded(Image.new("1", (1, 1)), "PNG"), ("1x1",)),
    # What breaks off or is damaged.
    Case("truncated JPEG", JPEG, truncated_jpeg, (CUT,)),
    Case("JPEG that ends in its header", JPEG, lambda: jpeg()[:100], (f"!{BAD}|!{CUT}",)),
    Case("JPEG, arithmetic coding claimed", JPEG, lambda: jpeg_header(1, b"\xc9"), ("60x40|unreadable_document",)),
    Case("JPEG, lossless coding claimed", JPEG, lambda: jpeg_header(1, b"\xc3"), (BAD,)),
    Case("JPEG, 12 bits", JPEG, lambda: jpeg_header(4, b"\x0c"), (f"!{BAD}",)),
    Case("JPEG of no height", JPEG, lambda: jpeg_header(5, b"\0\0"), (f"!{BAD}|!{BIG}",)),
    Case("JPEG of one component more than it has", JPEG, lambda: jpeg_header(9, b"\4"), (BAD,)),
    Case("truncated PNG", PNG, lambda: page_png()[:20_000], (CUT,)),
    Case(
        "PNG, wrong sum of its pixels",
        PNG,
        lambda: png(png_header(40, 30), chunk(b"IDAT", zlib.compress(bytes(41 * 30)), 7)),
        ("40x30",),
    ),
    Case("PNG without its palette", PNG, partial(palette_png, missing=True), (f"{BAD}|!{BAD}|40x30",)),
    Case("PNG of no size", PNG, lambda: png(png_header(0, 0), chunk(b"IDAT", zlib.compress(b""))), (f"!{BAD}",)),
    Case(
        "PNG of a depth that there is not",
        PNG,
        lambda: png(png_header(40, 30, 7), chunk(b"IDAT", zlib.compress(b""))),
        (f"!{BAD}",),
    ),
    Case(
        "PNG with too few pixels",
        PNG,
        lambda: png(png_header(400, 300), chunk(b"IDAT", zlib.compress(bytes(99)))),
        (CUT + "|" + BAD,),
    ),
    Case(
        "truncated WebP",
        WEBP,
        lambda: encoded(Image.effect_noise((60, 40), 50), "WEBP")[:900],
        (f"!{BAD}|{BAD}|{CUT}",),
    ),
    Case(
        "WebP damaged in the middle", WEBP, lambda: damaged_in_the_middle(webp(lossless=True)), (f"drawn|{BAD}|!{BAD}",)
    ),
    Case("truncated BMP", BMP, lambda: bmp(60, 40, bytes(99)), (CUT,)),
    Case(
        "BMP whose pixels begin behind its end",
        BMP,
        lambda: bmp(60, 40, bytes(2400), offset=9_999_999),
        (f"{CUT}|{BAD}",),
    ),
    Case("BMP, compressed, that never ends a row", BMP, lambda: rle_bmp(b"\xff\0" * 90_000), (f"60x40|{CUT}|{BAD}",)),
    Case("BMP, compressed, that only jumps", BMP, lambda: rle_bmp(b"\0\2\xff\xff" * 90_000), (f"60x40|{CUT}|{BAD}",)),
    Case("damaged G4 fax", TIFF, partial(g4, True), (f"60x40|{BAD}|{CUT}",)),
    Case(
        "TIFF, strips behind its end",
        TIFF,
        lambda: tiff_of(with_tag(grey_tags(60, 40, 2400), (273, 4, 9_999_999)), b""),
        (f"{CUT}|{BAD}",),
    ),
    Case(
        "TIFF, 65,535 samples a pixel",
        TIFF,
        lambda: tiff_of(with_tag(grey_tags(60, 40, 2400), (277, 3, 65_535)), bytes(2400)),
        (f"!{BAD}",),
    ),
    Case("TIFF of no size", TIFF, lambda: tiff_of(grey_tags(0, 0, 0), b""), (f"!{BAD}|{BAD}",)),
    Case(
        "TIFF, its tiles are larger than anything",
        TIFF,
        partial(tiled, 60, 40, 4_000_000_000),
        (f"{BAD}|{CUT}|!{BAD}|{BIG}",),
    ),
    Case("TIFF, its tiles have no size", TIFF, partial(tiled, 60, 40, 0), (f"{BAD}|!{BAD}",)),
    Case("TIFF of two million tiles", TIFF, partial(tiled, 9_000, 9_000, 16), (f"{BAD}|{CUT}",)),
    Case(
        "TIFF, a compression that there is not",
        TIFF,
        lambda: tiff_of(grey_tags(60, 40, 9, compression=777), bytes(9)),
        (f"!{BAD}|{BAD}",),
    ),
    # What is too large.
    Case("JPEG of 65,535 x 65,535", JPEG, lambda: jpeg_header(5, b"\xff\xff\xff\xff"), (f"!{BIG}",)),
    Case("progressive JPEG of thousands of scans", JPEG, progressive_without_end, ("decode_timeout",), limits=HURRIED),
    Case("PNG of 30,000 x 30,000", PNG, png_bomb, (f"!{BIG}",)),
    Case("PNG of 2 billion x 2 billion", PNG, lambda: png(png_header(2**31 - 1, 2**31 - 1)), (f"!{BIG}",)),
    Case("WebP of 16,383 x 16,383", WEBP, solid_webp, (f"!{BIG}|!{BAD}",)),
    Case("BMP of 100,000 x 100,000", BMP, lambda: bmp(100_000, 100_000, b""), (f"!{BIG}",)),
    Case("1,000-frame TIFF", TIFF, tiff_of_frames, ("!too_many_pages",)),
    Case("TIFF of 20,000 frames, pages 1-3", TIFF, partial(tiff_of_frames, 20_000), ("!too_many_pages",), pages="1-3"),
    Case("bomb in the second TIFF frame", TIFF, tiff_with_bomb_in_second_frame, ("8x8|!image_too_large", BIG)),
    Case("TIFF that inflates to 8 GB", TIFF, partial(deflated_tiff, 90_000, 90_000), (f"!{BIG}",)),
    Case("TIFF that inflates to 90 MB", TIFF, partial(deflated_tiff, 9_000, 9_900), ("drawn",)),
    # What is something else.
    Case("text named .png", PNG, text_named_png, (f"!{BAD}",)),
    Case("nothing at all", PNG, lambda: b"", (f"!{BAD}",)),
    Case("GIF named .png", PNG, partial(renamed, "GIF"), (f"!{BAD}",)),
    Case("GIF named .jpg", JPEG, partial(renamed, "GIF"), (f"!{BAD}",)),
    Case("EPS named .png", PNG, partial(renamed, "EPS"), (f"!{BAD}",)),
    Case("EPS named .tiff", TIFF, partial(renamed, "EPS"), (f"!{BAD}",)),
    Case("SVG named .png", PNG, svg, (f"!{BAD}",)),
    Case("PSD named .tiff", TIFF, psd, (f"!{BAD}",)),
    Case("ICO named .bmp", BMP, partial(renamed, "ICO"), (f"!{BAD}",)),
    Case("HEIC named .jpg", JPEG, heic, (f"!{BAD}",)),
    Case("AVIF named .jpg", JPEG, partial(renamed, "AVIF"), (f"!{BAD}",)),
    Case("JPEG 2000 named .jpg", JPEG, partial(renamed, "JPEG2000"), (f"!{BAD}",)),
    Case("JPEG named .png", PNG, page_jpeg, (f"!{BAD}",)),
    Case("PDF named .webp", WEBP, lambda: b"%PDF-1.4\n%%EOF", (f"!{BAD}",)),
)
"""Each name is of one case only."""
SLOW = frozenset({"progressive JPEG of thousands of scans"})

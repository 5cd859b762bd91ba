"""Documents for tests, good and hostile, each made in milliseconds and returned as bytes.

Nothing here needs a tool besides Pillow; PDF files are written by hand, so that what is wrong with them is
exactly what the function's name says.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import cache

from PIL import Image

from samples.make_sample import draw_page, scanned

PDF_PAGE_DPI = 150
PADDING = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")


def scan_text(number: int) -> str:
    """The line that page `number` (from 1) of `scanned_pdf` shows: words that OCR reads without doubt."""
    animals = ("badger", "falcon", "otter", "walrus", "lizard", "magpie", "donkey")
    return f"Page {number} of the report tells about the {animals[number % len(animals)]} by the river."


@cache
def scanned_page(text: str, skew: float = 1.2, dpi: int = PDF_PAGE_DPI) -> Image.Image:
    """One grey Letter page that shows `text` at its top (a blank line parts paragraphs), as if scanned."""
    page, _ = draw_page(text.split("\n\n"), dpi=dpi)
    return scanned(page, skew, seed=len(text), sigma=5.0)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture as the bytes of a file of `kind` (a Pillow format name)."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def page_png(text: str = "The quick brown fox jumps over the lazy dog.") -> bytes:
    return encoded(scanned_page(text), dpi=(PDF_PAGE_DPI, PDF_PAGE_DPI))


def page_jpeg(text: str = "The quick brown fox jumps over the lazy dog.") -> bytes:
    return encoded(scanned_page(text), "JPEG", quality=70, dpi=(PDF_PAGE_DPI, PDF_PAGE_DPI))


def truncated_jpeg() -> bytes:
    """A JPEG that breaks off amid its pixels; its header is whole, and `Image.verify` passes it."""
    whole = page_jpeg()
    return whole[: len(whole) // 2]


def text_named_png() -> bytes:
    """What a client sends who renames notes.txt to notes.png."""
    return b"These are my notes. They are not a picture.\n" * 20


def png_bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A true PNG of one bit a pixel: 900 million white pixels by default, in about 100 kB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + b"\xff" * ((width + 7) // 8)
    squeeze = zlib.compressobj(9)
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(frames: Sequence[tuple[int, int, bytes]]) -> bytes:
    """An uncompressed little-endian TIFF of bilevel frames, each (width, height, pixel bytes; 1 is white).

    A frame may claim more pixels than it has bytes: readers believe the size until they load it.
    """
    out = bytearray(b"II*\0\0\0\0\0")
    pointer = 4
    for width, height, pixels in frames:
        start = len(out)
        out += pixels + b"\0" * (len(pixels) % 2)
        struct.pack_into("<I", out, pointer, len(out))
        tags = [(256, 4, width), (257, 4, height), (258, 3, 1), (259, 3, 1), (262, 3, 1), (273, 4, start)]
        tags += [(277, 3, 1), (278, 4, height), (279, 4, len(pixels))]
        out += struct.pack("<H", len(tags))
        for tag, kind, value in tags:
            out += struct.pack("<HHII", tag, kind, 1, value)
        pointer = len(out)
        out += b"\0\0\0\0"
    return bytes(out)


def tiff_of_frames(count: int = 1_000) -> bytes:
    """A TIFF of `count` white frames of 8 by 8 pixels (about 130 bytes each)."""
    return tiff([(8, 8, b"\xff" * 8)] * count)


def tiff_with_bomb_in_second_frame() -> bytes:
    return tiff([(8, 8, b"\xff" * 8), (60_000, 60_000, b"\xff" * 8)])


def write_pdf(objects: Sequence[bytes], trailer: bytes = b"", phantom: int | None = None) -> bytes:
    """A PDF file of the given objects, numbered from 1 (the catalogue), with a right cross-reference table.

    `phantom` adds a free entry of that number, so that readers believe in as many objects.
    """
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    if phantom:
        out += b"%d 1\n0000000000 00000 f \n" % phantom
    out += b"trailer\n<< /Size %d /Root 1 0 R %b >>\n" % ((phantom or len(objects)) + 1, trailer)
    out += b"startxref\n%d\n%%%%EOF\n" % table
    return bytes(out)


def stream(body: bytes, extra: bytes = b"") -> bytes:
    return b"<< /Length %d %b >>\nstream\n" % (len(body), extra) + body + b"\nendstream"


def pdf_of_scans(pages: Sequence[Image.Image], dpi: int = PDF_PAGE_DPI, quality: int = 40) -> bytes:
    """A PDF of one JPEG picture a page, as a scanner writes it."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    kids = []
    for image in pages:
        width, height = image.width * 72 / dpi, image.height * 72 / dpi
        jpeg = stream(
            encoded(image, "JPEG", quality=quality),
            b"/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray "
            b"/BitsPerComponent 8 /Filter /DCTDecode" % image.size,
        )
        content = stream(b"q %.2f 0 0 %.2f 0 0 cm /I Do Q" % (width, height))
        first = len(objects) + 1
        objects += [jpeg, content, _page(width, height, first + 1, b"/XObject << /I %d 0 R >>" % first)]
        kids.append(first + 2)
    objects[1] = _page_tree(kids, len(kids))
    return write_pdf(objects)


def scanned_pdf(pages: int = 14) -> bytes:
    """A PDF of scanned pages; page n shows `scan_text(n)`."""
    return pdf_of_scans([scanned_page(scan_text(number)) for number in range(1, pages + 1)])


def blank_pdf(
    pages: int = 1, claimed: int | None = None, width: float = 612, height: float = 792, content: bytes = b""
) -> bytes:
    """A PDF whose pages (in points) have `content` drawn, with a /Count of `claimed` if that is given."""
    numbers = [4 + number for number in range(pages)]
    return write_pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            _page_tree(numbers, pages if claimed is None else claimed),
            stream(content),
            *(_page(width, height, 3, b"") for _ in numbers),
        ]
    )


def one_page_pdf(
    content: bytes,
    *,
    box: str = "0 0 612 792",
    page: bytes = b"",
    resources: bytes = b"",
    font: bytes = b"",
    objects: Sequence[bytes] = (),
    trailer: bytes = b"",
) -> bytes:
    """A PDF of one page with `content` drawn; font ``/F`` is Helvetica.

    `page`, `resources` and `font` are more entries of these dictionaries, `objects` those that they name, from 6 on.
    """
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        _page_tree([4], 1),
        stream(content),
        b"<< /Type /Page /Parent 2 0 R /MediaBox [%b] /Resources << /Font << /F 5 0 R >> %b >> /Contents 3 0 R %b >>"
        % (box.encode(), resources, page),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica %b >>" % font,
    ]
    return write_pdf([*parts, *objects], trailer)


def typed(text: str, x: float = 72, y: float = 700, size: float = 12, mode: int = 0) -> bytes:
    """Drawing operators for lines of Latin text; `mode` 3 is invisible."""
    lines = text.encode("latin-1").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)").split(b"\n")
    shown = b" ".join(b"(%b) Tj 0 %.1f Td" % (line, -size * 1.3) for line in lines)
    return b"BT /F %.1f Tf %d Tr %.1f %.1f Td %b ET " % (size, mode, x, y, shown)


def picture(image: Image.Image, quality: int = 60) -> bytes:
    """The picture as an image object of a PDF."""
    space = b"/DeviceGray" if image.mode == "L" else b"/DeviceRGB"
    return stream(
        encoded(image, "JPEG", quality=quality),
        b"/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace %b /BitsPerComponent 8 /Filter /DCTDecode"
        % (*image.size, space),
    )


def zero_page_pdf() -> bytes:
    return blank_pdf(pages=0)


def pdf_that_claims_pages(count: int = 200_000, objects: int | None = None) -> bytes:
    """A PDF of one page whose page tree claims `count`, with `objects` (by default: enough) in its table."""
    tree = _page_tree([3], count)
    parts = [b"<< /Type /Catalog /Pages 2 0 R >>", tree, _page(72, 72, 4, b""), stream(b"")]
    return write_pdf(parts, phantom=count + 4 if objects is None else objects)


def giant_page_pdf(inches: float = 200) -> bytes:
    """One page of 200 by 200 inches with a black bar across it."""
    side = inches * 72
    return blank_pdf(width=side, height=side, content=b"0 %d %d %d re f" % (side / 3, side, side / 3))


def endless_pdf(depth: int = 40) -> bytes:
    """A page whose forms each draw the next one twice: 2 to the power of `depth` drawings in 10 kB."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        _page_tree([4], 1),
        stream(b"/F5 Do"),
        _page(200, 200, 3, b"/XObject << /F5 5 0 R >>"),
    ]
    for number in range(5, 5 + depth):
        name = number + 1 if number < 4 + depth else None
        uses = b"/Resources << /XObject << /F%d %d 0 R >> >>" % (name, name) if name else b""
        body = b"/F%d Do /F%d Do" % (name, name) if name else b"0 0 9 9 re f"
        objects.append(stream(body, b"/Type /XObject /Subtype /Form /BBox [0 0 200 200] " + uses))
    return write_pdf(objects)


def truncated_pdf() -> bytes:
    """The scanned PDF, cut off in the picture of its last page, as a broken upload leaves it."""
    whole = scanned_pdf(2)
    return whole[: len(whole) * 3 // 4]


def encrypted_pdf(password: str = "turntable") -> bytes:
    """A page that opens only with `password` (standard security handler revision 2, RC4 with 40 bits).

    An empty password makes an owner-locked file, which every reader opens and no one may change.
    Source: ISO 32000-1, 7.6.3, algorithms 1 to 4.
    """
    identity = hashlib.md5(b"roundhouse").digest()
    locked_with = _padded("owner only")
    owner = rc4(hashlib.md5(locked_with).digest()[:5], _padded(password))
    permissions = -64
    seed = _padded(password) + owner + struct.pack("<i", permissions) + identity
    key = hashlib.md5(seed).digest()[:5]
    content = rc4(_object_key(key, 3), b"0 0 72 72 re f")
    encrypt = b"<< /Filter /Standard /V 1 /R 2 /O <%b> /U <%b> /P %d >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        _page_tree([4], 1),
        stream(content),
        _page(144, 144, 3, b""),
        encrypt % (owner.hex().encode(), rc4(key, PADDING).hex().encode(), permissions),
    ]
    digest = identity.hex().encode()
    return write_pdf(objects, trailer=b"/Encrypt 5 0 R /ID [<%b> <%b>]" % (digest, digest))


def rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out = bytearray()
    i = j = 0
    for value in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(value ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def character_error_rate(read: str, truth: str) -> float:
    """Edits per character of the truth (Levenshtein), with every run of white space taken as one space."""
    left, right = " ".join(read.split()), " ".join(truth.split())
    row = list(range(len(right) + 1))
    for i, mine in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, theirs in enumerate(right, start=1):
            best = min(row[j] + 1, row[j - 1] + 1, diagonal + (mine != theirs))
            diagonal, row[j] = row[j], best
    return row[-1] / len(right)


def hostile_documents() -> Mapping[str, tuple[bytes, str, str]]:
    """Input that must end in an error: name → (bytes, media type, the error's code)."""
    return {
        "text named .png": (text_named_png(), "image/png", "unreadable_document"),
        "truncated JPEG": (truncated_jpeg(), "image/jpeg", "truncated_document"),
        "truncated PDF": (truncated_pdf(), "application/pdf", "truncated_document"),
        "encrypted PDF": (encrypted_pdf(), "application/pdf", "encrypted_document"),
        "PDF with no pages": (zero_page_pdf(), "application/pdf", "no_pages"),
        "PDF that claims 200,000 pages": (pdf_that_claims_pages(), "application/pdf", "too_many_pages"),
        "30,000 x 30,000 PNG": (png_bomb(), "image/png", "image_too_large"),
        "1,000-frame TIFF": (tiff_of_frames(1_000), "image/tiff", "too_many_pages"),
        "bomb in the second TIFF frame": (tiff_with_bomb_in_second_frame(), "image/tiff", "image_too_large"),
    }


def _page(width: float, height: float, content: int, resources: bytes) -> bytes:
    box = b"/MediaBox [0 0 %.2f %.2f]" % (width, height)
    uses = b"/Resources << %b >> /Contents %d 0 R" % (resources, content)
    return b"<< /Type /Page /Parent 2 0 R %b %b >>" % (box, uses)


def _page_tree(kids: Sequence[int], count: int) -> bytes:
    return b"<< /Type /Pages /Kids [%b] /Count %d >>" % (b" ".join(b"%d 0 R" % kid for kid in kids), count)


def _padded(password: str) -> bytes:
    return (password.encode("latin-1") + PADDING)[:32]


def _object_key(key: bytes, number: int) -> bytes:
    return hashlib.md5(key + struct.pack("<I", number)[:3] + b"\0\0").digest()[: len(key) + 5]

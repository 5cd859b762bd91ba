"""What PDF files are made of, as bytes (ISO 32000-1, 7.3 and 7.5). Loads nothing: children import it."""

from collections.abc import Mapping

_HEADER = b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n"


def stream(body: bytes, entries: bytes = b"") -> bytes:
    """A stream object; `entries` of its dictionary end in a blank."""
    return b"<< %s/Length %d >>\nstream\n%s\nendstream" % (entries, len(body), body)


def picture(jpeg: bytes, width: int, height: int, colour_space: bytes) -> bytes:
    """A picture of so many pixels."""
    kind = b"/Type /XObject /Subtype /Image /BitsPerComponent 8 /Filter /DCTDecode "
    return stream(jpeg, kind + b"/Width %d /Height %d /ColorSpace /%s " % (width, height, colour_space))


def drawn(width: float, height: float) -> bytes:
    """A page's content: its resource ``Page``, a picture, over so many points."""
    return stream(b"q %.2f 0 0 %.2f 0 0 cm /Page Do Q" % (width, height))


def one_page(width: float, height: float, entries: bytes, *others: bytes) -> bytes:
    """A whole file with one page of so many points. `entries` are those of the page besides its size; `others` are the
    objects that they refer to, numbered from 4."""
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %.2f %.2f] %s >>" % (width, height, entries),
        *others,
    )
    out, size = bytearray(_HEADER), len(objects) + 1
    table = bytearray(b"xref\n0 %d\n0000000000 65535 f \n" % size)
    for number, body in enumerate(objects, start=1):
        table += _added(out, number, body)
    return _ended(out, table, b"/Size %d /Root 1 0 R" % size)


def updated(file: bytes, objects: Mapping[int, bytes], size: int, root: bytes, previous: int) -> bytes:
    """The file with other or more objects, in an update at its end. `previous`: where its last table of them begins."""
    out, table = bytearray(file), bytearray(b"xref\n")
    for number, body in sorted(objects.items()):
        table += b"%d 1\n" % number + _added(out, number, body)
    return _ended(out, table, b"/Size %d /Root %s /Prev %d" % (size, root, previous))


def _added(out: bytearray, number: int, body: bytes) -> bytes:
    """Appends an object; its entry in the table."""
    entry = b"%010d 00000 n \n" % len(out)
    out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    return entry


def _ended(out: bytearray, table: bytearray, trailer: bytes) -> bytes:
    return bytes(out + table) + b"trailer\n<< %s >>\nstartxref\n%d\n%%%%EOF\n" % (trailer, len(out))

"""What a document is, told from its bytes: names and declared types are only ever claims."""

import re

HEAD = 1024
"""How many bytes ``sniff`` looks at."""

# A PDF's header may stand anywhere in the first 1024 bytes (ISO 32000-1, Annex H, implementation note 13).
_PDF_HEADER = re.compile(rb"%PDF-\d")
# Formats that may carry a PDF header inside, and must not pass for one.
_FOREIGN = (b"GIF8", b"8BPS", b"%!PS", b"\xc5\xd0\xd3\xc6")
_TIFF = (
    b"II\x2a\x00",
    b"MM\x00\x2a",
    b"II\x2b\x00\x08\x00\x00\x00",  # BigTIFF: 8-byte offsets
    b"MM\x00\x2b\x00\x08\x00\x00",
)
# "BM" alone is how many a text begins, so the size of the header that follows has to be a known one too.
_BMP_HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})


def sniff(head: bytes) -> str | None:
    """The media type of a document that begins with ``head``, or None if it is none that OCR takes."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"RIFF") and head[8:15] == b"WEBPVP8" and head[15:16] in (b" ", b"L", b"X"):
        return "image/webp"
    if head.startswith(_TIFF):
        return "image/tiff"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return "image/bmp"
    if not head.startswith(_FOREIGN) and _PDF_HEADER.search(head[:HEAD]):
        return "application/pdf"
    return None

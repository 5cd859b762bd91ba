from io import BytesIO

import pytest
from PIL import Image

from broker.media import HEAD, sniff


def picture(kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (40, 30), "white").save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        (picture("JPEG"), "image/jpeg"),
        (picture("JPEG", progressive=True), "image/jpeg"),
        (picture("PNG"), "image/png"),
        (picture("WEBP"), "image/webp"),
        (picture("WEBP", lossless=True), "image/webp"),
        (picture("WEBP", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\0\0\0\0\0"), "image/webp"),
        (picture("BMP"), "image/bmp"),
        (picture("TIFF"), "image/tiff"),
        (picture("TIFF", big_tiff=True), "image/tiff"),
        (b"MM\x00\x2a\x00\x00\x00\x08\x00\x00", "image/tiff"),
        (b"MM\x00\x2b\x00\x08\x00\x00" + bytes(8), "image/tiff"),
        (picture("PDF"), "application/pdf"),
        (b"%PDF-2.0\n", "application/pdf"),
        (b"\xef\xbb\xbf%PDF-1.4\n", "application/pdf"),
        (b"\x00" * (HEAD - 8) + b"%PDF-1.7", "application/pdf"),
    ],
)
def test_a_document_is_told_by_its_first_bytes(document: bytes, media_type: str) -> None:
    assert sniff(document) == media_type
    assert sniff(document[:HEAD]) == media_type


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"BM",
        b"BM is how this text begins, and it goes on for a while.",
        b"%PDF",
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"II\x2a",
        b"just some text",
        b"\x00" * HEAD + b"%PDF-1.7",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?><svg/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%PDF-1.4",
        b"\xc5\xd0\xd3\xc6 binary EPS %PDF-1.4",
        b"8BPS\x00\x01%PDF-1.4",
        b"GIF89a%PDF-1.4",
        picture("GIF"),
        picture("ICO"),
        picture("PPM"),
        picture("JPEG2000"),
    ],
)
def test_anything_else_is_no_document(document: bytes) -> None:
    assert sniff(document) is None

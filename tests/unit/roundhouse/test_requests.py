"""What is asked of the gateway, before any network sees it."""

import os
from pathlib import Path

import httpx

from roundhouse.requests import ocr_submit


def test_a_document_whose_name_is_not_in_utf_8_is_sent(tmp_path: Path) -> None:
    document = tmp_path / os.fsdecode(b"B\xfcro.pdf")
    document.write_bytes(b"%PDF-1.7\n")
    request = ocr_submit(document, {})
    assert request.files == {"file": ("B?ro.pdf", b"%PDF-1.7\n")}
    with httpx.Client() as client:
        assert b'filename="B?ro.pdf"' in request.built(client, "http://one", "t", None).read()

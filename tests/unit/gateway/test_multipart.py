"""Forms, wherever their bytes are cut."""

from collections.abc import AsyncIterator

import pytest

from gateway.multipart import Part, Piece, form_events
from gateway.problems import Problem

TYPE = "multipart/form-data; boundary=XX"
FORM = (
    b'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b"--XX\r\nContent-Type: text/plain\r\n"
    b'Content-Disposition: form-data; name="file"; filename="\xc3\xbc.jsonl"\r\n\r\n'
    b"one\r\ntwo\r\n--X\r\n--XX--\r\n"
)


async def chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def parts(data: bytes, size: int = 1000, content_type: str = TYPE) -> list[tuple[Part, bytes]]:
    found: list[tuple[Part, bytes]] = []
    async for event in form_events(content_type, chunks(data, size)):
        match event:
            case Part():
                found.append((event, b""))
            case Piece():
                found[-1] = found[-1][0], found[-1][1] + event.data
    return found


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_the_parts_of_a_form_are_told_in_order(size: int) -> None:
    assert await parts(FORM, size) == [
        (Part("purpose", None), b"batch"),
        (Part("file", "ü.jsonl"), b"one\r\ntwo\r\n--X"),
    ]


@pytest.mark.parametrize(
    "data", [b"", FORM[:30], FORM[:-6], b"no form at all", b"--XX\r\nContent-Type: a/b\r\n\r\nx\r\n--XX--"]
)
async def test_a_form_that_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(Problem) as caught:
        await parts(data)
    assert caught.value.code == "invalid_multipart"


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=XX"]
)
async def test_what_is_no_form_is_refused(content_type: str) -> None:
    with pytest.raises(Problem) as caught:
        await parts(FORM, content_type=content_type)
    assert caught.value.code == "unsupported_media_type"

"""A batch's file as lines, and what each of them has to be."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.v1.batches.lines import Line, LineError, custom_id_of, lines, request_of

CHAT = "/v1/chat/completions"
BODY = {"model": "simulator", "messages": [{"role": "user", "content": "hello"}]}


async def chunks(*data: bytes) -> AsyncIterator[bytes]:
    for chunk in data:
        yield chunk


async def read(*data: bytes, start: int = 0, longest: int = 1000, most: int = 1000) -> list[Line]:
    return [line async for line in lines(chunks(*data), start, longest=longest, most=most)]


async def test_lines_are_found_wherever_chunks_are_cut() -> None:
    found = await read(b"on", b"e\ntw", b"o\nthree")
    assert [line.data for line in found] == [b"one", b"two", b"three"]
    assert [line.number for line in found] == [1, 2, 3]
    assert [(line.start, line.end) for line in found] == [(0, 4), (4, 8), (8, 13)]


async def test_blank_lines_are_left_out_and_counted() -> None:
    found = await read(b"\n one \r\n\n  \ntwo\n\n")
    assert [(line.number, line.data.strip()) for line in found] == [(2, b"one"), (5, b"two")]
    assert [(line.start, line.end) for line in found] == [(1, 8), (12, 16)]


async def test_lines_are_bounded_blank_ones_included() -> None:
    assert len(await read(b"\n\none\n", b"\ntwo\n", most=5)) == 2
    for blank in (b"\n\n\n\n", b"\n \n\n \n"):
        with pytest.raises(LineError) as caught:
            await read(b"one\n", blank, b"\n", most=5)
        assert (caught.value.code, caught.value.line) == ("too_many_lines", None)


async def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert [line.data for line in await read(b"\xef\xbb\xbf{}\n")] == [b"{}"]


@given(st.lists(st.binary(max_size=12).filter(lambda data: b"\n" not in data), max_size=8), st.integers(1, 9))
async def test_reading_goes_on_at_the_beginning_or_the_end_of_any_line(content: list[bytes], size: int) -> None:
    data = b"\n".join(content)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    whole = await read(*pieces)
    assert [line.data for line in whole] == [
        line.removeprefix(b"\xef\xbb\xbf") for line in data.split(b"\n") if line.strip()
    ]
    for index, line in enumerate(whole):
        for begin, others in ((line.start, whole[index:]), (line.end, whole[index + 1 :])):
            rest = await read(data[begin:], start=begin)
            assert [(other.data, other.end) for other in rest] == [(other.data, other.end) for other in others]


@pytest.mark.parametrize(
    "data", [(b"short\n" + b"x" * 20,), (b"short\n", b"x" * 8, b"x" * 8, b"\n"), (b"s\n", b"x" * 11)]
)
async def test_a_line_that_is_too_long_is_told_before_it_is_held_whole(data: tuple[bytes, ...]) -> None:
    with pytest.raises(LineError) as caught:
        await read(*data, longest=10)
    assert (caught.value.code, caught.value.line) == ("line_too_long", 2)


def line(**changes: Any) -> bytes:
    return json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": BODY} | changes).encode()


def test_a_good_line_is_work_with_its_id() -> None:
    request = request_of(line(), CHAT)
    assert (request.custom_id, request.work.task, request.work.model) == ("a", "chat", "simulator")
    assert custom_id_of(line()) == "a"


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b'{"custom_id": NaN}', "invalid_json_line", None),
        (b"[]", "invalid_line", None),
        (line(custom_id=""), "invalid_line", "custom_id"),
        (line(custom_id=7), "invalid_line", "custom_id"),
        (line(method="GET"), "invalid_line", "method"),
        (line(extra=1), "invalid_line", "extra"),
        (line(url="/v1/embeddings"), "mismatched_url", "url"),
        (line(body={"model": "simulator"}), "invalid_request", "body.messages"),
        (line(body=BODY | {"stream": True}), "stream_not_allowed", "body.stream"),
        (line(body=BODY | {"temperature": 9}), "invalid_request", "body.temperature"),
    ],
)
def test_what_is_wrong_with_a_line_is_told(data: bytes, code: str, param: str | None) -> None:
    with pytest.raises(LineError) as caught:
        request_of(data, CHAT)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.message


def test_stream_false_is_no_stream() -> None:
    assert request_of(line(body=BODY | {"stream": False}), CHAT).custom_id == "a"

"""Server-sent events as they come out of a body that arrives in any pieces."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import EngineError
from worker.engines import server_events
from worker.engines.server_events import ServerEvents

BODY = (
    "\N{ZERO WIDTH NO-BREAK SPACE}data: first\n\n"
    ": a comment\nevent: named\nid: 7\ndata: sécond\r\n\r\n"
    "data: of two\rdata:  lines\r\r"
    "data\n\ndata:\n\ndata: without an end"
).encode()
EVENTS = ["first", "sécond", "of two\n lines", "", ""]


def fed(*pieces: bytes) -> list[str]:
    events = ServerEvents()
    return [data for piece in pieces for data in events.feed(piece)]


def test_the_data_of_each_event_is_told_and_nothing_else() -> None:
    assert fed(BODY) == EVENTS


@given(st.lists(st.integers(0, len(BODY)), max_size=12))
def test_it_does_not_matter_how_the_body_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(BODY)]
    assert fed(*(BODY[one:other] for one, other in pairwise(places))) == EVENTS


def test_an_event_is_told_with_its_last_byte() -> None:
    events = ServerEvents()
    assert events.feed(b"data: x\r\n") == []
    assert events.feed(b"\r") == ["x"]
    assert events.feed(b"\ndata: y\n\n") == ["y"]


@pytest.mark.parametrize("piece", [b"x" * 10, b"data: x\r\n"], ids=["a line", "lines"])
def test_an_event_without_an_end_is_not_gathered_for_ever(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(server_events, "LONGEST", 100)
    events = ServerEvents()
    assert events.feed(b"data: one\n\n" * 20 + b"data: ") == ["one"] * 20
    while events._held <= 100:
        assert events.feed(piece) == []
    with pytest.raises(EngineError, match="100 bytes"):
        events.feed(piece)


def test_a_long_line_takes_no_longer_for_each_piece_of_it() -> None:
    events, began = ServerEvents(), time.process_time()
    events.feed(b"data: ")
    for _ in range(4000):
        events.feed(b"x" * 4096)
    assert len(events.feed(b"\n\n")[0]) == 4000 * 4096
    assert time.process_time() - began < 2.0

"""What clients may say on ``/ws/jobs``, and what they are told."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from broker.chunk_feed import Place
from broker.job import Status
from broker.page_feed import Standing
from gateway.event_log import Event, Known, events
from gateway.problems import Problem
from gateway.websocket.jobs import check_origin
from gateway.websocket.messages import (
    KINDS,
    Auth,
    Ping,
    Subscribe,
    Unsubscribe,
    event_message,
    known_from,
    read_message,
    with_event,
)

JOB = "65a1b2c3d4e5f60718293a4b"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
# What is nearly a message.
NEARLY = st.fixed_dictionaries(
    {"type": st.sampled_from(["auth", "subscribe", "unsubscribe", "ping"]) | JSON},
    optional={"job": st.just(JOB) | JSON, "events": st.lists(st.sampled_from(KINDS)) | JSON, "after": JSON},
)


def test_a_subscription_is_for_everything_unless_it_says_otherwise() -> None:
    message = read_message(json.dumps({"type": "subscribe", "job": JOB}))
    assert isinstance(message, Subscribe)
    assert tuple(message.events) == KINDS
    assert message.after is None


@given(st.none() | st.text() | JSON.map(json.dumps) | NEARLY.map(json.dumps))
def test_whatever_is_said_is_a_message_or_is_refused(text: str | None) -> None:
    assert outcome(text) in ("Auth", "Subscribe", "Unsubscribe", "Ping", "invalid_message")


def outcome(text: str | None) -> str:
    try:
        message: Auth | Subscribe | Unsubscribe | Ping = read_message(text)
    except Problem as problem:
        return problem.code
    return type(message).__name__


def test_a_refusal_names_what_is_wrong() -> None:
    for message, says in (
        ({"type": "subscribe", "job": 7}, "job: Input should be a valid string."),
        ({"type": "stop"}, "A message's type is auth, subscribe, unsubscribe or ping."),
        ({"type": "ping", "job": JOB}, "job: Extra inputs are not permitted."),
    ):
        with pytest.raises(Problem) as caught:
            read_message(json.dumps(message))
        assert caught.value.message == says


@given(st.text() | st.none())
def test_whatever_is_said_to_be_known_is_read(after: str | None) -> None:
    assert not known_from(after).over


def test_what_is_not_told_is_not_known() -> None:
    standing = Standing(Status.COMPLETED, 1, {"done": 1, "total": 1, "unit": "pages"}, None, {1: "completed"})
    known = Known(place=Place("a" * 32, 3))
    told = [event for event in events(known, standing) if event.name in ("state", "end")]
    for event in told:
        known = with_event(known, event)
    assert (known.state, known.over, known.place) == (("completed", 1), True, Place("a" * 32, 3))
    assert (known.ended, known.progress) == ((), (0, None))
    assert [event.name for event in events(known_from(str(known)), standing)] == ["page", "progress", "end"]


def test_a_message_is_an_event_of_the_event_stream() -> None:
    standing = Standing(Status.QUEUED, 0, None, None, {})
    [event] = events(Known(), standing)
    assert isinstance(event, Event)
    message: dict[str, Any] = json.loads(event_message(JOB, event.known, event))
    assert message == {"type": "state", "job": JOB, "id": str(event.known), "status": "queued", "attempts": 0}


def test_pages_of_other_sites_are_turned_away() -> None:
    def headers(origin: str) -> Headers:
        return Headers({"origin": origin, "host": "Roundhouse.example:8080"})

    check_origin(Headers({"host": "roundhouse.example"}), [])
    check_origin(headers("https://roundhouse.example:8080"), [])
    check_origin(headers("https://app.example"), ["https://app.example"])
    for origin in (
        "https://roundhouse.example",
        "https://evil.example",
        "null",
        "",
        "http://[",
        "https://app.example.evil",
    ):
        with pytest.raises(Problem) as caught:
            check_origin(headers(origin), ["https://app.example"])
        assert caught.value.code == "origin_not_allowed"

"""The numbers of a response's events: the same for the same job, and never those of another attempt."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from starlette.requests import Request

from broker.job import Job, Status
from gateway.problems import Problem
from gateway.v1.responses.requests import ResponseRequest
from gateway.v1.responses.streams import SPAN, Narrator, asked_number
from gateway.v1.responses.work import response_work

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
RESULT: dict[str, Any] = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Good day"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}
PIECES = [json.dumps([{"index": 0, "delta": {"content": text}, "finish_reason": None}]) for text in ("Good", " day")]
TOKEN = "a" * 32


def job_of(status: Status = Status.PROCESSING, *, begun: int = 1, background: bool = False, **more: Any) -> Job:
    asked = response_work(
        ResponseRequest.model_validate({"model": "m", "input": "Hello", "background": background}), []
    ).asked
    document = {
        "_id": ObjectId("0123456789abcdef01234567"),
        "task": "chat",
        "model": "m",
        "subject": "anna",
        "priority": "normal",
        "status": status.value,
        "attempts": begun,
        "max_retries": 3,
        "timeout": 60.0,
        "payload": {},
        "created_at": datetime(2026, 11, 21, tzinfo=UTC),
        "asked": asked,
        "begun": begun,
        "token": TOKEN,
        "stream": True,
    }
    return Job.from_document(document | more)


ENDED = job_of(Status.COMPLETED, chunks=len(PIECES), finished_at=datetime(2026, 11, 21, tzinfo=UTC))


def events_of(told: bytes) -> list[dict[str, Any]]:
    """Each checked against OpenAI's types, and its lines with each other."""
    found = []
    for text in told.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in text.split("\n"))
        event = json.loads(lines["data"])
        EVENTS.validate_json(lines["data"], strict=True)
        assert lines["event"] == event["type"]
        assert lines.get("id", str(event["sequence_number"])) == str(event["sequence_number"])
        found.append(event)
    return found


def numbers(told: bytes) -> list[int]:
    return [event["sequence_number"] for event in events_of(told)]


def whole(ended: Job = ENDED, after: int = -1, groups: Sequence[Sequence[str]] = ([PIECES[0]], [PIECES[1]])) -> bytes:
    """All that a client is told who comes when ``ended`` is at work."""
    narrator = Narrator(ended, after)
    told = narrator.begin(replace(ended, status=Status.PROCESSING))
    told += b"".join(narrator.pieces(ended.begun, group) for group in groups)
    return told + narrator.end(ended, RESULT, whole=True)


def test_a_response_is_told_from_its_beginning_to_its_end() -> None:
    names = [event["type"].removeprefix("response.") for event in events_of(whole())]
    assert names == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert numbers(whole()) == [*range(10)]
    assert events_of(whole())[-1]["response"]["output"][0]["content"][0]["text"] == "Good day"


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("begun", [1, 3])
def test_it_goes_on_after_any_of_its_events(background: bool, begun: int) -> None:
    ended = replace(job_of(begun=begun, background=background), status=Status.COMPLETED, chunks=len(PIECES))
    everything = whole(ended)
    for number in numbers(everything):
        # However its pieces are gathered on the way, and whether they are stored or come.
        for groups in ([PIECES], [PIECES[:1], PIECES[1:]]):
            rest = whole(ended, number, groups)
            assert everything.endswith(rest)
            assert numbers(rest) == [other for other in numbers(everything) if other > number]


def test_one_in_the_background_waits_before_it_is_generated() -> None:
    waiting = job_of(Status.QUEUED, begun=0, background=True, token=None)
    narrator = Narrator(waiting)
    told = narrator.begin(waiting)
    assert [event["type"] for event in events_of(told)] == ["response.created", "response.queued"]
    assert events_of(told)[0]["response"]["status"] == "queued"
    told += narrator.pieces(1, PIECES) + narrator.end(ENDED, RESULT, whole=True)
    assert events_of(told)[2]["type"] == "response.in_progress"
    assert numbers(told) == [*range(11)]


def test_another_attempt_has_other_numbers() -> None:
    told = whole(replace(ENDED, begun=3))
    assert numbers(told)[:4] == [0, 1, 2 * SPAN + 2, 2 * SPAN + 3]


def test_who_was_told_of_an_attempt_that_was_lost_is_not_told_of_the_next() -> None:
    told = numbers(whole())
    for number in told[2:]:
        with pytest.raises(Problem, match="generated anew") as raised:
            whole(replace(ENDED, begun=2), number)
        assert raised.value.code == "stream_restarted"
    # Nothing of an answer was in these.
    for number in told[:2]:
        assert numbers(whole(replace(ENDED, begun=2), number))[-1] > SPAN


def test_a_number_that_no_event_has_had_is_refused() -> None:
    with pytest.raises(Problem) as raised:
        whole(after=SPAN + 2)
    assert raised.value.code == "invalid_event_id"


def pieces_gone(after: int = -1) -> bytes:
    narrator = Narrator(ENDED, after)
    return narrator.begin(ENDED) + narrator.end(ENDED, RESULT, whole=False)


def test_what_has_lost_its_pieces_is_told_at_once_and_goes_on_too() -> None:
    told = pieces_gone()
    assert [event["delta"] for event in events_of(told) if "delta" in event] == ["Good day"]
    assert events_of(told)[-1]["response"] == events_of(whole())[-1]["response"]
    for number in numbers(told):
        assert numbers(pieces_gone(number)) == [other for other in numbers(told) if other > number]


def test_who_was_told_some_of_the_pieces_that_are_gone_is_told_so() -> None:
    for number in numbers(whole())[2:]:
        with pytest.raises(Problem) as raised:
            pieces_gone(number)
        assert raised.value.code == "stream_expired"
    narrator = Narrator(ENDED)
    narrator.pieces(1, PIECES[:1])
    with pytest.raises(Problem, match="gone"):
        narrator.end(ENDED, RESULT, whole=False)


def test_one_that_was_not_to_be_streamed_is_told_at_once() -> None:
    narrator = Narrator(ENDED)
    told = narrator.begin(ENDED) + narrator.end(replace(ENDED, chunks=None), RESULT, whole=True)
    assert numbers(told) == [*range(9)]


def test_one_that_is_cut_at_its_limit_is_incomplete() -> None:
    cut = {**RESULT, "choices": [{**RESULT["choices"][0], "finish_reason": "length"}]}
    narrator = Narrator(ENDED)
    last = events_of(narrator.pieces(1, PIECES) + narrator.end(ENDED, cut, whole=True))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][-1]["status"] == "incomplete"


def test_a_failure_is_the_last_event() -> None:
    error = {"code": "engine_rejected_input", "message": "It is too long."}
    failed = job_of(Status.FAILED, error=error)
    narrator = Narrator(failed)
    last = events_of(narrator.begin(failed) + narrator.failure(failed))[-1]
    assert (last["type"], last["sequence_number"]) == ("response.failed", 2)
    assert last["response"]["error"] == {
        "code": "invalid_prompt",
        "message": "It is too long. (engine_rejected_input)",
    }


def test_that_it_was_cancelled_is_the_last_event() -> None:
    cancelled = job_of(Status.CANCELLED)
    narrator = Narrator(cancelled)
    narrator.begin(cancelled)
    [last] = events_of(narrator.failure(cancelled))
    assert (last["type"], last["code"], last["sequence_number"]) == ("error", "cancelled", 2)


def test_a_problem_of_the_connection_takes_no_number() -> None:
    narrator = Narrator(ENDED)
    told = numbers(narrator.begin(ENDED) + narrator.pieces(1, PIECES))
    problem = narrator.problem(Problem("gateway_stopping", "This gateway stops."))
    assert b"id: " not in problem
    [event] = events_of(problem)
    assert (event["type"], event["code"], event["sequence_number"]) == ("error", "gateway_stopping", told[-1])


@pytest.mark.parametrize("given", ["", "-1", "1.5", "x", "1" * 10, "0" * 5000, "٣"])
def test_an_id_that_no_stream_gives_is_refused(given: str) -> None:
    headers = [(b"last-event-id", given.encode())]
    with pytest.raises(Problem) as caught:
        asked_number(Request({"type": "http", "headers": headers, "query_string": b""}))
    assert caught.value.code == "invalid_event_id"


def test_an_id_goes_before_the_query() -> None:
    scope = {"type": "http", "headers": [(b"last-event-id", b"7")], "query_string": b"starting_after=3"}
    assert asked_number(Request(scope)) == 7
    assert asked_number(Request({**scope, "headers": []})) == 3

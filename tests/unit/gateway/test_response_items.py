"""What the pieces of a chat's answer are as items of a response, and how their events tell them."""

from collections.abc import Sequence
from typing import Any

from openai.types.responses import ResponseOutputItem, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.v1.responses.items import Event, Output

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEMS: TypeAdapter[Any] = TypeAdapter(list[ResponseOutputItem])


def delta(**given: Any) -> dict[str, Any]:
    return {"index": 0, "delta": given}


def call(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    begun = {} if name is None else {"id": f"call-{index}", "type": "function"}
    function = {"arguments": arguments} | ({} if name is None else {"name": name})
    return delta(tool_calls=[{"index": index, **begun, "function": function}])


def told(*pieces: dict[str, Any], complete: bool = True) -> tuple[list[Event], list[dict[str, Any]]]:
    """All events, each checked against OpenAI's types, and the items."""
    output = Output("k")
    events = [event for piece in pieces for event in output.add(piece)] + [*output.end(complete=complete)]
    for number, event in enumerate(events):
        EVENTS.validate_python({**event, "sequence_number": number}, strict=True)
    ITEMS.validate_python(output.items, strict=True)
    return events, output.items


def names(events: Sequence[Event]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def added_up(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The items as a client has them who goes by nothing but the events."""
    items: dict[int, dict[str, Any]] = {}
    for event in events:
        index = event["output_index"]
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert index == len(items)
                items[index] = {"text": [], "ended": False}
            case "output_text.delta" | "reasoning_text.delta" | "refusal.delta" | "function_call_arguments.delta":
                assert not items[index]["ended"]
                items[index]["text"].append(event["delta"])
            case "output_item.done":
                items[index] |= {"ended": True, "item": event["item"]}
    assert all(item["ended"] for item in items.values())
    return [{"text": "".join(items[index]["text"]), **items[index]["item"]} for index in sorted(items)]


def test_a_text_is_one_message() -> None:
    events, items = told(delta(role="assistant", content="Good"), delta(content=" day"))
    assert names(events) == [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    part = {"type": "output_text", "text": "Good day", "annotations": [], "logprobs": []}
    assert items == [{"id": "msg_k", "type": "message", "status": "completed", "role": "assistant", "content": [part]}]
    assert events[-1]["item"] == items[0]
    assert events[-3]["text"] == "Good day"


def test_an_answer_without_a_word_is_an_empty_message() -> None:
    events, items = told()
    assert names(events) == [
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert items[0]["content"][0]["text"] == ""


def test_reasoning_ends_where_the_text_begins() -> None:
    events, items = told(delta(reasoning="Hm"), delta(reasoning="."), delta(content="Yes"))
    assert [item["type"] for item in items] == ["reasoning", "message"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert names(events)[:7] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert [item["text"] for item in added_up(events)] == ["Hm.", "Yes"]


def test_reasoning_by_its_other_name_is_told_once() -> None:
    _, items = told(delta(reasoning="Hm", reasoning_content="Hm"), delta(reasoning_content="m"))
    assert items[0]["content"][0]["text"] == "Hmm"


def test_a_refusal_is_a_part_of_the_message() -> None:
    events, items = told(delta(content="I"), delta(refusal="will not"))
    assert [part["type"] for part in items[0]["content"]] == ["output_text", "refusal"]
    assert names(events).count("output_item.added") == 1


def test_calls_that_come_mixed_are_told_apart() -> None:
    events, items = told(
        delta(content="Look:"),
        call(0, "", "weather"),
        call(0, '{"at":'),
        call(1, '{"of"', "time"),
        call(0, '"Ulm"}'),
        call(1, ':"day"}'),
    )
    assert [(item["type"], item.get("name"), item.get("arguments")) for item in items] == [
        ("message", None, None),
        ("function_call", "weather", '{"at":"Ulm"}'),
        ("function_call", "time", '{"of":"day"}'),
    ]
    assert [item["call_id"] for item in items[1:]] == ["call-0", "call-1"]
    for item in added_up(events)[1:]:
        assert item["text"] == item["arguments"]
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["item_id"]) for event in done] == [("weather", "fc_k_0"), ("time", "fc_k_1")]


def test_a_call_without_an_id_gets_one() -> None:
    _, items = told(delta(tool_calls=[{"index": 0, "function": {"name": "now", "arguments": "{}"}}]))
    assert items[0]["call_id"] == "call_k_0"


def test_a_text_after_a_call_is_a_message_of_its_own() -> None:
    events, items = told(delta(content="a"), call(0, "{}", "now"), delta(content="b"))
    assert [item["id"] for item in items] == ["msg_k", "fc_k_0", "msg_k_1"]
    assert [item["text"] for item in added_up(events)] == ["a", "{}", "b"]


def test_only_the_last_item_of_what_was_broken_off_is_incomplete() -> None:
    _, items = told(delta(reasoning="Hm"), delta(content="Y"), complete=False)
    assert [item["status"] for item in items] == ["completed", "incomplete"]


def logprob(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -0.5, "bytes": [*token.encode()], "top_logprobs": []}


def test_no_log_probability_is_lost() -> None:
    tokens = [logprob(token) for token in ("a", "\ufffd", "\ufffd", ".", "</s>")]
    events, items = told(
        {**delta(content="a"), "logprobs": {"content": tokens[:1]}},
        {**delta(), "logprobs": {"content": tokens[1:2]}},
        {**delta(content="ä."), "logprobs": {"content": tokens[2:4]}},
        {**delta(), "logprobs": {"content": tokens[4:]}},
    )
    assert items[0]["content"][0]["logprobs"] == tokens
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert [[one["token"] for one in few] for few in deltas] == [["a"], ["\ufffd", "\ufffd", "."], ["</s>"]]
    assert events[-3]["logprobs"] == [one for few in deltas for one in few]


PIECES = [
    delta(role="assistant", reasoning="Let me"),
    delta(reasoning=" see"),
    delta(content="One"),
    delta(content=" moment"),
    call(0, '{"a"', "first"),
    call(0, ":1}"),
    call(1, "{}", "second"),
]


def test_the_same_pieces_give_the_same_events() -> None:
    assert told(*PIECES) == told(*PIECES)


def test_pieces_that_come_together_leave_the_same_items() -> None:
    message = {
        "role": "assistant",
        "reasoning": "Let me see",
        "content": "One moment",
        "tool_calls": [
            {"index": 0, "id": "call-0", "type": "function", "function": {"name": "first", "arguments": '{"a":1}'}},
            {"index": 1, "id": "call-1", "type": "function", "function": {"name": "second", "arguments": "{}"}},
        ],
    }
    assert told(*PIECES)[1] == told(delta(**message))[1]

"""Bodies of the Responses API as chats."""

import json
from typing import Any

import pytest
from bson import ObjectId
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from gateway.body import validated
from gateway.problems import Problem
from gateway.v1.responses.input import answer_message, items_of, messages_of
from gateway.v1.responses.requests import ResponseRequest
from gateway.v1.responses.work import chat_body, response_work

PICTURE = "data:image/png;base64,iVBORw0KGgo="
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"type": "function", "name": "weather", "description": "Of a city", "parameters": PARAMETERS}
KEY = str(ObjectId())


def request(**given: Any) -> ResponseRequest:
    return validated(ResponseRequest, {"model": "m", "input": "Hello", **given})


def messages(*items: Any) -> list[dict[str, Any]]:
    return messages_of(request(input=[*items]).input)


def test_a_text_is_what_the_user_says() -> None:
    assert chat_body(request(), []) == {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def test_instructions_come_first_and_the_conversation_before_what_is_new() -> None:
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    told = chat_body(request(instructions="Be brief."), before)["messages"]
    assert told == [
        {"role": "system", "content": "Be brief."},
        *before,
        {"role": "user", "content": "Hello"},
    ]


def test_what_a_chat_has_other_names_for_is_renamed() -> None:
    schema = {"type": "json_schema", "name": "city", "schema": PARAMETERS, "strict": True}
    body = chat_body(
        request(
            max_output_tokens=7,
            temperature=0.5,
            top_p=0.9,
            reasoning={"effort": "low", "summary": "auto"},
            text={"format": schema, "verbosity": "medium"},
            include=["message.output_text.logprobs"],
            top_logprobs=3,
            tools=[FUNCTION],
            tool_choice={"type": "function", "name": "weather"},
            parallel_tool_calls=False,
        ),
        [],
    )
    del body["model"], body["messages"]
    assert body == {
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": PARAMETERS, "strict": True},
        },
        "logprobs": True,
        "top_logprobs": 3,
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": "Of a city", "parameters": PARAMETERS},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
    }


def test_what_is_so_anyway_is_not_passed_on() -> None:
    body = chat_body(
        request(tools=[], tool_choice="auto", parallel_tool_calls=True, text={"format": {"type": "text"}}, stream=None),
        [],
    )
    assert body.keys() == {"model", "messages"}


def test_an_image_goes_with_its_text() -> None:
    parts = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": PICTURE, "detail": "low"},
    ]
    assert messages({"role": "user", "content": parts}) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
            ],
        }
    ]


TURNS = [
    {"role": "developer", "content": "Be kind."},
    {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
    },
    {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": '{"city":"Ulm"}'},
    {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}", "status": "completed"},
    {"type": "function_call_output", "call_id": "c1", "output": "Rain"},
    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "Sun"}]},
    {"role": "assistant", "content": "Rain."},
]


def function_call(number: int, arguments: str) -> dict[str, Any]:
    return {"id": f"c{number}", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def test_calls_belong_to_the_text_before_them() -> None:
    assert messages(*TURNS) == [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [function_call(1, '{"city":"Ulm"}'), function_call(2, "{}")],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "Sun"},
        {"role": "assistant", "content": "Rain."},
    ]


def test_calls_without_a_text_are_a_message_and_those_of_another_turn_another_one() -> None:
    first, second = TURNS[4], TURNS[5]
    assert [message.get("tool_calls") for message in messages(first, TURNS[6], second)] == [
        [function_call(1, '{"city":"Ulm"}')],
        None,
        [function_call(2, "{}")],
    ]


def test_items_come_back_as_they_were_given_but_for_their_ids_and_reasoning() -> None:
    items = items_of(messages(*TURNS), KEY)
    TypeAdapter(list[ResponseItem]).validate_python(items, strict=True)
    assert len({item["id"] for item in items}) == len(items)
    kept = [{key: value for key, value in item.items() if key not in ("id", "status")} for item in items]
    assert messages(*kept) == messages(*TURNS)


def test_an_answer_is_the_next_conversation_without_what_was_thought() -> None:
    message = {"role": "assistant", "content": None, "reasoning": "Hm", "tool_calls": [function_call(1, "{}")]}
    result = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    assert answer_message(result) == {"role": "assistant", "content": None, "tool_calls": [function_call(1, "{}")]}


def test_what_the_response_tells_of_its_request_is_kept_with_any_keys() -> None:
    odd = {"type": "object", "properties": {"$a.b": {"$ref": "#/$defs/x"}}}
    work = response_work(
        request(tools=[{**FUNCTION, "parameters": odd}], metadata={"$x.y": "1"}, instructions="Be."), []
    )
    echo = json.loads(work.asked["echo"])
    assert echo["tools"][0]["parameters"] == odd
    assert echo["metadata"] == {"$x.y": "1"}
    assert work.asked["instructed"]


@pytest.mark.parametrize(
    ("given", "where", "why"),
    [
        ({"seed": 1}, "seed", "Extra inputs"),
        ({"tools": [{"type": "web_search"}]}, "tools.0", "of type function"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "mcp"}}, "tool_choice", "of type function"),
        ({"tool_choice": "required"}, "", "goes only with tools"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0", "An item is"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0", "A part is"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "user"),
        (
            {"input": [{"role": "system", "content": [{"type": "input_image", "image_url": PICTURE}]}]},
            "input.0",
            "role user",
        ),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "medium"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format", "json_schema"),
        ({"include": ["code_interpreter_call.outputs"]}, "include.0", "logprobs"),
        ({"top_logprobs": 2}, "", "goes only with"),
        ({"background": True, "store": False}, "", "stored"),
        ({"stream_options": {"include_obfuscation": False}}, "", "stream: true"),
        ({"previous_response_id": "resp_x"}, "previous_response_id", "pattern"),
        ({"metadata": {"k" * 65: "v"}}, "metadata", "64 characters"),
        ({"conversation": "conv_1"}, "conversation", "Extra inputs"),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(given: dict[str, Any], where: str, why: str) -> None:
    with pytest.raises(Problem) as raised:
        response_work(request(**given), [])
    assert raised.value.code == "invalid_request"
    faults: Any = raised.value.details["errors"]
    [fault] = faults
    assert fault["loc"] == where
    assert why in fault["msg"]

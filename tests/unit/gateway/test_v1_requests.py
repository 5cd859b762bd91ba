"""What clients of OpenAI's API may send, and what is refused by name."""

from typing import Any

import pytest

from gateway.problems import Problem
from gateway.v1.work import Work, work_of

PNG = "data:image/png;base64,iVBORw0KGgo="
MESSAGES = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def chat(**more: Any) -> Work:
    return work_of("/v1/chat/completions", {"model": "m", "messages": MESSAGES} | more)


def completion(**more: Any) -> Work:
    return work_of("/v1/completions", {"model": "m", "prompt": "Once"} | more)


def embedding(given: Any, **more: Any) -> Work:
    return work_of("/v1/embeddings", {"model": "m", "input": given} | more)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.0, "top_p": 0.5, "n": 2, "seed": 7, "stop": ["a", "b"], "max_tokens": 5},
        {"logprobs": True, "top_logprobs": 5},
        {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"response_format": {"type": "json_object"}},
        {"response_format": schema_format(nested(3))},
        {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 1, "ignore_eos": True},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]},
        {"messages": [{"role": "developer", "content": "be brief"}, *MESSAGES]},
        {"messages": [*MESSAGES, {"role": "tool", "tool_call_id": "1", "content": "sunny"}]},
    ],
)
def test_what_engines_understand_goes_to_them_as_it_came(given: dict[str, Any]) -> None:
    work = chat(**given)
    assert {key: work.payload[key] for key in given} == given


def test_what_is_about_the_way_back_does_not_go_to_the_engine() -> None:
    work = chat(stream=True, stream_options={"include_usage": True}, user="ada", store=True, metadata={"a": "b"})
    assert work.payload == {"messages": MESSAGES}
    assert (work.stream, work.asked) == (True, {"model": "m", "usage": True})


def test_a_message_that_openais_sdk_has_read_can_be_sent_back() -> None:
    function = {"name": "weather", "arguments": "{}"}
    call = {"id": "1", "type": "function", "function": function}
    read = {"index": 0, **call, "function": {**function, "parsed_arguments": {}}}
    work = chat(messages=[*MESSAGES, {"role": "assistant", "content": None, "parsed": None, "tool_calls": [read]}])
    assert work.payload["messages"][-1] == {"role": "assistant", "tool_calls": [call]}


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ({"response_format": schema_format({"a\0b": 1})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({"maximum": 2**63})}, "response_format.json_schema.schema"),
        ({"chat_template_kwargs": {"a": [{"\0": 1}]}}, "chat_template_kwargs"),
        ({"logit_bias": {"1\0": 1}}, "logit_bias"),
        ({"logit_bias": {"hello": 1}}, "logit_bias"),
        ({"metadata": {"a\0": "b"}}, "metadata"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 1000}, "n"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"prompt_logprobs": 5}, "prompt_logprobs"),
        ({"logits_processors": ["os.system"]}, "logits_processors"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"structured_outputs": {"regex": "(a+)+"}}, "structured_outputs"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"response_format": schema_format(nested(40))}, "response_format"),
        ({"response_format": schema_format({"description": "x" * 70_000})}, "response_format"),
        ({"response_format": {"type": "regex"}}, "response_format"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}]}, "messages"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_anything_else_is_refused_by_name(given: dict[str, Any], at: str) -> None:
    with pytest.raises(Problem) as refused:
        chat(**given)
    assert refused.value.code == "invalid_request"
    [fault, *_] = refused.value.details["errors"]  # type: ignore[misc]
    assert fault["loc"].startswith(at)  # type: ignore[index,union-attr,call-overload]


MANY = 5_000


@pytest.mark.parametrize(
    "given",
    [
        {"stop_token_ids": [-1] * MANY},
        {"messages": [{"role": "user", "content": [0] * MANY}]},
        {"messages": [{"role": "assistant", "content": [0] * MANY}]},
        {"messages": [MESSAGES[0] | {f"k{n}": 1 for n in range(MANY)}]},
        {"logit_bias": {str(n): "x" for n in range(MANY)}},
        {"metadata": {str(n): 1 for n in range(MANY)}},
        {f"k{n}": 1 for n in range(MANY)},
    ],
)
def test_of_a_flood_of_faults_few_are_told(given: dict[str, Any]) -> None:
    """Each would take some microseconds of the gateway's only thread, and a kilobyte."""
    with pytest.raises(Problem) as refused:
        chat(**given)
    assert len(refused.value.details["errors"]) <= 2  # type: ignore[arg-type]


def test_of_a_prompts_tokens_the_first_fault_is_told() -> None:
    with pytest.raises(Problem) as refused:
        completion(prompt=[-1] * MANY)
    assert len(refused.value.details["errors"]) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {"top_logprobs": 3},
        {"tool_choice": "required"},
        {"stream_options": {"include_usage": True}},
    ],
)
def test_what_goes_only_together_is_refused_alone(given: dict[str, Any]) -> None:
    with pytest.raises(Problem, match="goes only with"):
        chat(**given)


def test_a_completion_is_of_one_text_or_its_tokens() -> None:
    assert completion(echo=True, logprobs=5).payload == {"prompt": "Once", "echo": True, "logprobs": 5}
    assert completion(prompt=[1, 2, 3]).payload == {"prompt": [1, 2, 3]}
    assert completion(prompt=["one", "two"]).payload == {"prompt": ["one", "two"]}
    for prompts in ([], -1, ["one"] * 65, [[]]):
        with pytest.raises(Problem):
            completion(prompt=prompts)


def test_inputs_of_embeddings_become_a_list() -> None:
    assert embedding("one").payload == {"input": ["one"]}
    assert embedding(["one", "two"]).payload == {"input": ["one", "two"]}
    assert embedding([1, 2]).payload == {"input": [[1, 2]]}
    assert embedding([[1], [2]], dimensions=4).payload == {"input": [[1], [2]], "dimensions": 4}
    assert embedding("one", encoding_format="base64").asked["encoding"] == "base64"
    for inputs in ([], [[]], ["x"] * 2049, [1.5]):
        with pytest.raises(Problem):
            embedding(inputs)

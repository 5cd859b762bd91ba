"""What careless and hostile servers send."""

import json
from typing import Any

import pytest

from broker.errors import EngineError
from worker.engines.incoming import checked, json_of, usage_of

HALF = "\ud83d"
TEXT = {"type": "text", "text": "a"}
THREE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def chunk(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": "a"}, **choice}]}


def entry(**more: Any) -> dict[str, Any]:
    return {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [], **more}


@pytest.mark.parametrize(
    "bad",
    [
        {"choices": 5},
        {"choices": {"a": 1}},
        {"choices": [None]},
        chunk(index="0"),
        chunk(index=-1),
        chunk(index=2**70),
        chunk(index=True),
        chunk(delta=[1]),
        chunk(delta={"content": ["a"]}),
        chunk(delta={"content": [{"type": "text", "text": 5}]}),
        chunk(delta={"content": [{"type": "thinking", "thinking": "a"}]}),
        chunk(delta={"reasoning": 5}),
        chunk(text=["a"]),
        chunk(finish_reason=5),
        chunk(delta={"tool_calls": {"a": 1}}),
        chunk(delta={"tool_calls": [5]}),
        chunk(delta={"tool_calls": [{"index": "a"}]}),
        chunk(delta={"tool_calls": [{"index": 2**70}]}),
        chunk(delta={"tool_calls": [{"function": "f"}]}),
        chunk(delta={"tool_calls": [{"function": {"arguments": {"a": 1}}}]}),
        chunk(delta={"tool_calls": [{"function": {"name": 5}}]}),
        chunk(delta={"tool_calls": [{"id": 5}]}),
    ],
)
def test_what_is_no_piece_of_an_answer_is_named(bad: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="malformed") as caught:
        checked(bad)
    assert caught.value.code == "bad_answer"


@pytest.mark.parametrize(
    "good",
    [
        chunk(finish_reason="stop", stop_reason=2),
        chunk(text="a", stop_reason="###"),
        chunk(delta={"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": {"name": "f"}}]}),
        chunk(logprobs={"content": [entry(top_logprobs=[{"token": "b", "logprob": -9999.0, "bytes": None}])]}),
        chunk(logprobs={"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [{"a": -1}], "text_offset": [0]}),
    ],
)
def test_what_is_one_comes_through_as_it_is(good: dict[str, Any]) -> None:
    [was], [came] = good["choices"], checked(good)["choices"]
    assert {key: came[key] for key in was} == was


def test_whole_numbers_may_be_written_as_floats() -> None:
    [choice] = checked(chunk(index=1.0, delta={"tool_calls": [{"index": 2.0}]}))["choices"]
    assert (choice["index"], choice["delta"]["tool_calls"][0]["index"]) == (1, 2)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ([], {"content": ""}),
        ([TEXT, {"type": "reference", "reference_ids": [1]}, TEXT], {"content": "aa"}),
        ([{"type": "thinking", "thinking": [TEXT, TEXT]}], {"content": "", "reasoning_content": "aa"}),
    ],
)
def test_content_in_parts_is_their_text_and_what_was_thought(content: Any, texts: dict[str, str]) -> None:
    [choice] = checked(chunk(delta={"role": "assistant", "content": content}))["choices"]
    assert choice["delta"] == {"role": "assistant", **texts}


SIGNATURE = {"google": {"thought_signature": "abc"}}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (SIGNATURE, SIGNATURE),
        (None, None),
        ("abc", None),
        ({"google": "a" * 40_000}, None),
        ({"google": HALF}, None),
        ({"a\0": 1}, None),
    ],
)
def test_what_a_server_wants_back_with_a_call_is_kept_whole_or_not_at_all(given: Any, kept: Any) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "f"}, "extra_content": given}
    [choice] = checked(chunk(delta={"tool_calls": [call]}))["choices"]
    assert choice["delta"]["tool_calls"][0].get("extra_content") == kept


@pytest.mark.parametrize("missing", [{}, {"choices": None}, {"choices": []}])
def test_a_chunk_without_choices_has_none(missing: dict[str, Any]) -> None:
    assert checked(missing)["choices"] == []


@pytest.mark.parametrize(
    "bad",
    [
        5,
        {"content": 5},
        {"content": [5]},
        {"content": [entry(token=5)]},
        {"content": [entry(logprob="low")]},
        {"content": [entry(bytes=[256])]},
        {"content": [entry(bytes="a")]},
        {"content": [entry(bytes=3_000_000_000)]},
        {"content": [entry(bytes=2**70)]},
        {"content": [entry(top_logprobs=[5])]},
        {"tokens": [5]},
        {"top_logprobs": [[5]]},
        {"text_offset": [-1]},
    ],
)
def test_malformed_log_probabilities_are_left_out_and_the_answer_counts(bad: Any) -> None:
    [choice] = checked(chunk(logprobs=bad))["choices"]
    assert (choice["logprobs"], choice["delta"]) == (None, {"content": "a"})


def test_half_a_character_is_stored_nowhere_but_in_texts_that_come_in_pieces() -> None:
    call = {"id": HALF, "function": {"name": HALF, "arguments": "{}"}}
    given = chunk(
        finish_reason=HALF, stop_reason=HALF, logprobs={"content": [entry(token=HALF)]}, delta={"tool_calls": [call]}
    )
    json.dumps(checked(given), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        (None, None),
        ("abc", None),
        ({}, None),
        ({"prompt_tokens": -1, "completion_tokens": 2**70, "total_tokens": "3"}, None),
        ({"prompt_tokens": 1, "completion_tokens": True}, None),
        ({"prompt_tokens": 5, "total_tokens": 3}, None),
        (THREE | {HALF: 1, "a\0": 1, "big": 2**70, "told": "x"}, THREE),
        (dict.fromkeys(THREE, 3.0) | {"total_tokens": 6.0}, dict.fromkeys(THREE, 3) | {"total_tokens": 6}),
        ({"prompt_tokens": 3, "total_tokens": 3}, {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}),
        ({"completion_tokens": 2, "total_tokens": 3}, THREE),
        ({"prompt_tokens": 1, "completion_tokens": 2}, THREE),
        (THREE | {"cost": 0.25, "prompt_cache_hit_tokens": 1}, THREE | {"cost": 0.25, "prompt_cache_hit_tokens": 1}),
        (THREE | {"prompt_tokens_details": 5}, THREE | {"prompt_tokens_details": None}),
        (
            THREE | {"completion_tokens_details": {"reasoning_tokens": 3, "a\0": 1, "b": None}},
            THREE | {"completion_tokens_details": {"reasoning_tokens": 3}},
        ),
    ],
)
def test_of_usage_the_numbers_count(given: Any, counts: Any) -> None:
    assert usage_of(given) == counts


@pytest.mark.parametrize("text", ["Infinit", '{"a": -1e400}', "[1e400]", "[" * 100_000, "{", b"\xff", "9" * 5000])
def test_what_is_no_json_is_no_json(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        json_of(text)


def test_what_is_beyond_all_numbers_costs_no_answer() -> None:
    """Python's servers write what no JSON has; vLLM itself says -9999.0 of a token that cannot be."""
    assert json_of("[-Infinity, Infinity, NaN, -0.5]") == [-9999.0, None, None, -0.5]

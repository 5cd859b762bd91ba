"""What the chunks of OpenAI's APIs add up to."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import EngineError
from worker.engines.answers import KINDS, Answer

Chunk = dict[str, Any]


def chat(delta: dict[str, Any] | None = None, *, index: int = 0, **more: Any) -> Chunk:
    return {"choices": [{"index": index, "delta": delta or {}, "finish_reason": None, **more}]}


def text(piece: str = "", *, index: int = 0, **more: Any) -> Chunk:
    return {"choices": [{"index": index, "text": piece, "finish_reason": None, **more}]}


END = chat(finish_reason="stop")
USAGE: Chunk = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}


def gathered(task: str, chunks: Sequence[Chunk]) -> tuple[list[list[dict[str, Any]]], dict[str, Any]]:
    """The news of each chunk that had some, and the whole."""
    answer = Answer(KINDS[task]())
    news = [some for chunk in chunks if (some := answer.add(chunk))]
    return news, answer.result()


def whole(task: str, *chunks: Chunk) -> dict[str, Any]:
    return gathered(task, chunks)[1]


def cut(value: str, places: Sequence[int]) -> list[str]:
    """``value`` in pieces, none of them empty."""
    at = sorted({place % len(value) for place in places} - {0}) if value else []
    return [value[begin:end] for begin, end in zip([0, *at], [*at, len(value)], strict=True)] if value else []


def test_texts_add_up_and_the_end_is_no_news() -> None:
    news, result = gathered("chat", [chat({"role": "assistant"}), chat({"content": "a"}), chat({"content": "b"}), END])
    assert news == [
        [{"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "b"}, "finish_reason": None}],
    ]
    [choice] = result["choices"]
    assert choice == {"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"}
    assert "usage" not in result


def test_the_last_piece_may_come_with_the_end() -> None:
    news, result = gathered("chat", [chat({"content": "a"}, finish_reason="length"), USAGE])
    assert news[0][0]["finish_reason"] is None
    assert result["choices"][0]["finish_reason"] == "length"
    assert result["usage"] == USAGE["usage"]


def test_an_answer_without_a_word_is_an_empty_one() -> None:
    assert whole("chat", END)["choices"][0]["message"] == {"role": "assistant", "content": ""}
    assert whole("completion", text(finish_reason="stop"))["choices"][0]["text"] == ""


def test_reasoning_and_refusals_are_kept_under_their_names() -> None:
    chunks = [chat({"reasoning": "h"}), chat({"reasoning": "m"}), chat({"reasoning_content": "x"})]
    message = whole("chat", *chunks, chat({"refusal": "no"}), chat({"content": "y"}), END)["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": "y",
        "reasoning": "hm",
        "reasoning_content": "x",
        "refusal": "no",
    }


def call(index: int, arguments: str, **first: Any) -> dict[str, Any]:
    name = {"name": first.pop("name")} if "name" in first else {}
    return {"index": index, **first, "function": {**name, "arguments": arguments}}


def test_calls_of_tools_add_up_each_by_its_number() -> None:
    chunks = [
        chat({"tool_calls": [call(0, "", id="a", type="function", name="add")]}),
        chat({"tool_calls": [call(0, '{"x"'), call(1, "{", id="b", type="function", name="sub")]}),
        chat({"tool_calls": [call(1, "}")]}),
        chat({"tool_calls": [call(0, ":1}")]}),
        chat(finish_reason="tool_calls"),
    ]
    [choice] = whole("chat", *chunks)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
        ],
    }


def test_log_probabilities_are_lists_that_are_joined() -> None:
    def entry(token: str) -> dict[str, Any]:
        return {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []}

    chunks = [chat({"content": t}, logprobs={"content": [entry(t)], "refusal": None}) for t in "ab"]
    [choice] = whole("chat", *chunks, END)["choices"]
    assert choice["logprobs"] == {"content": [entry("a"), entry("b")]}
    legacy = [
        text(t, logprobs={"tokens": [t], "token_logprobs": [-1.0], "text_offset": [n]}) for n, t in enumerate("ab")
    ]
    [choice] = whole("completion", *legacy, text(finish_reason="stop"))["choices"]
    assert choice["logprobs"] == {"tokens": ["a", "b"], "token_logprobs": [-1.0, -1.0], "text_offset": [0, 1]}


def test_log_probabilities_of_a_token_without_text_are_news() -> None:
    news, result = gathered("chat", [chat({"content": ""}, logprobs={"content": [{"token": ""}]}), END])
    assert news[0][0]["delta"] == {"role": "assistant"}
    assert result["choices"][0]["logprobs"] == {"content": [{"token": ""}]}


def test_choices_are_told_apart_and_come_in_order() -> None:
    chunks = [
        chat({"content": "1"}, index=1),
        chat({"content": "0"}),
        chat(finish_reason="stop"),
        chat({"content": "1"}, index=1, finish_reason="length"),
    ]
    news, result = gathered("chat", chunks)
    assert [choice["index"] for choice in result["choices"]] == [0, 1]
    assert [choice["message"]["content"] for choice in result["choices"]] == ["0", "11"]
    assert [some[0]["delta"].get("role") for some in news] == ["assistant", "assistant", None]


def test_a_stop_string_that_was_met_is_kept_aside() -> None:
    [choice] = whole("chat", chat({"content": "a"}), chat(finish_reason="stop", stop_reason="###"))["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "###")


@pytest.mark.parametrize("task", ["chat", "completion"])
def test_an_answer_without_an_end_was_cut_off(task: str) -> None:
    piece = chat({"content": "a"}) if task == "chat" else text("a")
    both = [chat({"content": "b"}, index=1), chat({"content": "a"}, finish_reason="stop")]
    for chunks in ([], [piece], [USAGE], both if task == "chat" else [piece]):
        with pytest.raises(EngineError) as caught:
            whole(task, *chunks)
        assert caught.value.code == "answer_cut_off"


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_was_broken_off_is_no_answer(reason: str) -> None:
    with pytest.raises(EngineError, match=reason) as caught:
        whole("chat", chat({"content": "a"}), chat(finish_reason=reason))
    assert caught.value.code == "answer_cut_off"


def test_half_a_character_is_nobodys_trouble() -> None:
    """Some upstreams cut surrogate pairs, which JSON can carry and UTF-8 cannot."""
    result = whole("chat", chat({"content": "a\ud83d"}), chat({"content": "\ude00b"}), chat({"content": "\ud83d"}), END)
    json.dumps(result, ensure_ascii=False).encode()
    assert result["choices"][0]["message"]["content"].startswith("a")


places = st.lists(st.integers(0, 1000), max_size=8)
words = st.text(max_size=40)


@given(words, words, places, places)
def test_however_a_message_is_cut_the_whole_is_the_same(content: str, reasoning: str, first: Any, second: Any) -> None:
    pieces = [*(("reasoning", p) for p in cut(reasoning, first)), *(("content", p) for p in cut(content, second))]
    news, result = gathered("chat", [*(chat({key: piece}) for key, piece in pieces), END])
    at_once = whole("chat", chat({"reasoning": reasoning}), chat({"content": content}), END)
    assert result == at_once
    assert "".join(_told(news, "content")) == content
    assert "".join(_told(news, "reasoning")) == reasoning


@given(st.lists(words, min_size=1, max_size=4), st.data())
def test_however_several_choices_are_mixed_each_is_whole(texts: list[str], data: st.DataObject) -> None:
    pieces = [(index, piece) for index, whole_ in enumerate(texts) for piece in cut(whole_, data.draw(places))]
    order = data.draw(st.permutations(range(len(pieces))))
    mine = {index: iter([piece for i, piece in pieces if i == index]) for index in range(len(texts))}
    mixed = [text(next(mine[pieces[n][0]]), index=pieces[n][0]) for n in order]
    ends = [text(index=index, finish_reason="stop") for index in range(len(texts))]
    news, result = gathered("completion", [*mixed, *ends])
    assert [choice["text"] for choice in result["choices"]] == texts
    told = ["".join(c["text"] for some in news for c in some if c["index"] == index) for index in range(len(texts))]
    assert told == texts


@given(st.lists(words, min_size=1, max_size=3), st.data())
def test_however_the_arguments_of_calls_are_cut_they_are_whole(arguments: list[str], data: st.DataObject) -> None:
    begins = [call(n, "", id=f"c{n}", type="function", name=f"f{n}") for n in range(len(arguments))]
    pieces = [call(n, piece) for n, all_ in enumerate(arguments) for piece in cut(all_, data.draw(places))]
    chunks = [*(chat({"tool_calls": [one]}) for one in [*begins, *pieces]), chat(finish_reason="tool_calls")]
    calls = whole("chat", *chunks)["choices"][0]["message"]["tool_calls"]
    assert [(one["id"], one["function"]["name"], one["function"]["arguments"]) for one in calls] == [
        (f"c{n}", f"f{n}", all_) for n, all_ in enumerate(arguments)
    ]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), places)
def test_however_log_probabilities_come_there_is_one_for_each_token(tokens: list[str], at: Any) -> None:
    def chunk(some: str) -> Chunk:
        return chat({"content": some}, logprobs={"content": [{"token": token} for token in some]})

    chunks = [chunk(some) for some in cut("".join(tokens), at)]
    logprobs = whole("chat", *chunks, END)["choices"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs["content"]] == tokens


def _told(news: Sequence[Sequence[dict[str, Any]]], key: str) -> Iterator[str]:
    return (choice["delta"].get(key, "") for some in news for choice in some)

"""Calls of tools as different servers tell them, made what OpenAI's own are."""

from collections.abc import Mapping
from typing import Any

import pytest

from worker.engines.answers import Answer, Chat
from worker.engines.dialects import Tidier, model_name

Call = Mapping[str, Any]


def piece(name: str | None = None, arguments: str = "", **told: Any) -> Call:
    return {**told, "function": {"arguments": arguments, **({} if name is None else {"name": name})}}


def tidied(*chunks: list[Call]) -> tuple[list[Call], list[Call]]:
    """The pieces as streams have them, and the calls as the result has them."""
    tidier, answer = Tidier(), Answer(Chat())
    pieces: list[Call] = []
    for number, calls in enumerate(chunks, 1):
        reason = "stop" if number == len(chunks) else None
        chunk = {"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": reason}]}
        for choice in answer.add(tidier.tidy(chunk)):
            pieces += choice["delta"]["tool_calls"]
    [choice] = answer.result()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    return pieces, choice["message"]["tool_calls"]


F, G = ("f", '{"a":1}'), ("g", '{"b":2}')


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(
            [[piece("f", '{"a"', index=0, id="x")], [piece(None, ":1}", index=0)], [piece(*G, index=1, id="y")]],
            id="OpenAI",
        ),
        pytest.param([[piece("f", '{"a"', id="x")], [piece(None, ":1}")], [piece(*G, id="y")]], id="no index"),
        pytest.param([[piece(*F, id=""), piece(*G, id="")]], id="neither index nor id"),
        pytest.param([[piece(*F)], [piece(*G)]], id="neither index nor id, one by one"),
        pytest.param([[piece(*F, index=0, id="x")], [piece(*G, index=0, id="y")]], id="always index 0"),
        pytest.param([[piece(*F, index=1, id="x")], [piece(*G, index=2, id="y")]], id="counted from 1"),
        pytest.param(
            [[piece("f", '{"a"', index=0, id="x")], [piece(None, ":1}", index=0, id="z")], [piece(*G, index=1)]],
            id="another id with each piece",
        ),
        pytest.param(
            [[piece("f", '{"a"', index=0, id="x")], [piece("f", ":1}", index=0, id="x")], [piece(*G, index=1)]],
            id="all said again",
        ),
    ],
)
def test_two_calls_are_told_as_two(chunks: list[list[Call]]) -> None:
    pieces, calls = tidied(*chunks)
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == [F, G]
    first, second = (call["id"] for call in calls)
    assert first != second
    assert (first, second) == tuple(piece["id"] for piece in pieces if "id" in piece)
    assert [piece["function"]["name"] for piece in pieces if "name" in piece["function"]] == ["f", "g"]
    assert {piece["index"] for piece in pieces} == {0, 1}


def test_what_is_wanted_back_with_a_call_is_told_with_it() -> None:
    wanted = {"google": {"thought_signature": "abc"}}
    pieces, calls = tidied([piece(*F, id="x", extra_content=wanted)], [piece(*G, id="y")])
    assert [told.get("extra_content") for told in (*pieces, *calls)] == [wanted, None, wanted, None]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-3-flash"),
        ("https://proxy.example.com/generativelanguage.googleapis.com/v1", "models/gemini-3-flash"),
        ("http://10.0.0.1:8000/v1", "models/gemini-3-flash"),
    ],
)
def test_only_google_takes_its_models_by_a_shorter_name(url: str, name: str) -> None:
    assert model_name("models/gemini-3-flash", url) == name
    assert model_name(name, url) == name

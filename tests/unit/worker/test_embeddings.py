"""An upstream's vectors, as results keep them."""

import base64
import json
import struct
from typing import Any

import pytest

from broker.errors import EngineError
from worker.engines.embeddings import portions, together, vectors


def body(*entries: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"data": list(entries), **more}).encode()


def test_vectors_are_in_the_order_of_their_inputs_as_float32() -> None:
    found = vectors(body({"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [0.5, -1.0]}), 2)
    unpacked = [base64.b64decode(vector) for vector in found["embeddings"]]
    assert unpacked == [struct.pack("<2f", 0.5, -1.0), struct.pack("<f", 2.0)]
    assert found.keys() == {"embeddings"}


def test_numbers_that_are_left_out_are_those_of_their_places() -> None:
    """Gemini leaves out the 0."""
    found = vectors(body({"embedding": [1.0]}, {"index": 1, "embedding": [2.0]}), 2)
    assert found == vectors(body({"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}), 2)


def test_of_the_usage_is_kept_what_openai_tells_of_vectors() -> None:
    told = {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0, "prompt_tokens_details": None}
    found = vectors(body({"index": 0, "embedding": [1.0]}, usage=told), 1)
    assert found["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize(
    "usage", [None, "much", {"prompt_tokens": 3}, {"prompt_tokens": 3, "total_tokens": None}], ids=str
)
def test_a_usage_that_is_none_is_left_out(usage: object) -> None:
    assert vectors(body({"index": 0, "embedding": [1.0]}, usage=usage), 1).keys() == {"embeddings"}


@pytest.mark.parametrize(
    "answer",
    [
        b"{",
        b"[]",
        body(),
        body({"index": 1, "embedding": [1.0]}),
        body({"index": 0, "embedding": ["a"]}),
        body({"embedding": []}),
    ],
    ids=["no JSON", "a list", "no vector", "another input's", "no numbers", "empty"],
)
def test_what_holds_no_vectors_is_no_answer(answer: bytes) -> None:
    with pytest.raises(EngineError) as failure:
        vectors(answer, 1)
    assert failure.value.code == "bad_answer"


LONG = "a" * 150_000


@pytest.mark.parametrize(
    ("inputs", "sizes"),
    [
        (["a"] * 2048, [2048]),
        ([LONG, "a", LONG, LONG], [2, 1, 1]),
        ([LONG * 2, LONG * 2], [1, 1]),
        ([[1] * 40_000, [1] * 10_000, [1]], [2, 1]),
    ],
    ids=["short", "long", "longer than a portion", "tokens"],
)
def test_many_inputs_are_asked_for_in_portions(inputs: list[Any], sizes: list[int]) -> None:
    found = [list(portion) for portion in portions(inputs)]
    assert [len(portion) for portion in found] == sizes
    assert [each for portion in found for each in portion] == inputs


def test_the_answers_to_portions_are_one() -> None:
    first = {"embeddings": ["a", "b"], "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    second = {"embeddings": ["c"], "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    assert together([first, second]) == {
        "embeddings": ["a", "b", "c"],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert together([first, {"embeddings": ["c"]}]) == {"embeddings": ["a", "b", "c"]}

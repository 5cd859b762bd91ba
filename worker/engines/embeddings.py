"""Vectors as results keep them: little-endian float32 in base64, a quarter of what they are as text."""

import base64
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from broker.errors import EngineError
from worker.engines.incoming import usage_of

# Characters that are asked for at once, some 50,000 tokens: a second or so on a GPU.
_AT_ONCE = 200_000
# Of a token.
_CHARACTERS = 4
_COUNTS = ("prompt_tokens", "total_tokens")


def packed(vector: Sequence[float]) -> str:
    """Raises struct.error, OverflowError, TypeError, ValueError for what is no vector of float32."""
    if not vector or not all(map(math.isfinite, vector)):
        raise ValueError("A vector is empty, or not finite.")
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def portions(inputs: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """``inputs``, texts or lists of tokens, as they are asked for one after another: a server says nothing of what it
    does before it has done all of it, and is taken for one that hangs after too long a silence."""
    first = size = 0
    for number, each in enumerate(inputs):
        length = len(each) * (1 if isinstance(each, str) else _CHARACTERS)
        if number > first and size + length > _AT_ONCE:
            yield inputs[first:number]
            first, size = number, 0
        size += length
    yield inputs[first:]


def together(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The answers to portions, as the one to all."""
    usages = [each["usage"] for each in found if "usage" in each]
    usage = {key: sum(counts[key] for counts in usages) for key in _COUNTS}
    embeddings = [vector for each in found for vector in each["embeddings"]]
    return {"embeddings": embeddings, **({"usage": usage} if len(usages) == len(found) else {})}


def vectors(body: bytes, count: int) -> dict[str, Any]:
    """The result ``{"embeddings": [base64], "usage": {...}}`` of an upstream's answer to ``count`` inputs.

    Raises EngineError ``bad_answer`` for what is no such answer.
    """
    try:
        # One function call for each of a million numbers would take longer than all the rest.
        answer = json.loads(body, parse_constant=_no_number)
        found = {_place(entry, place): packed(entry["embedding"]) for place, entry in enumerate(answer["data"])}
        ordered = [found[index] for index in range(count)]
    except (ValueError, TypeError, KeyError, struct.error, OverflowError, RecursionError) as error:
        raise EngineError(f"The upstream's answer holds no {count} embeddings.", code="bad_answer") from error
    usage = usage_of(answer.get("usage")) or {}
    # vLLM counts here as for chats; there is nothing that was generated.
    counts = {key: usage[key] for key in _COUNTS if key in usage}
    return {"embeddings": ordered, **({"usage": counts} if len(counts) == 2 else {})}


def _no_number(name: str) -> NoReturn:
    """NaN and infinities, which no JSON has and Python would let in."""
    raise ValueError(f"{name} is no number.")


def _place(entry: dict[str, Any], place: int) -> int:
    """Gemini leaves out the 0, and others every number."""
    index: int | None = entry.get("index")
    return place if index is None else index

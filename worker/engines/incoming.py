"""What servers send, checked where it comes in: the code behind takes the shape of what passes for granted.

The text of an answer, its choices and calls must be what OpenAI's API has, or the answer counts for nothing. What is
beside it (usage, log probabilities) is left out where it is malformed: many servers are careless there.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeAlias

from broker.errors import EngineError
from ocr.plain_text import well_formed

Object: TypeAlias = dict[str, Any]

TEXTS = ("content", "reasoning", "reasoning_content", "refusal")
"""Of a chat's message, which come in pieces. vLLM says reasoning, others reasoning_content."""
# Choices of an answer, and calls of a choice, are numbered below this.
_MOST = 1024
_MOST_TOKENS = 2**53


def json_of(data: str | bytes) -> Any:
    """Raises ValueError for what is no JSON; so are NaN, what no float can hold, and any depth that is too great."""
    try:
        return json.loads(data, parse_constant=no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("It is nested too deep.") from None


def no_number(name: str) -> NoReturn:
    """Of ``json.loads``: raises ValueError for NaN and infinities, which Python would let in."""
    raise ValueError(f"{name} is no number.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large.")
    return number


def checked(chunk: Object) -> Object:
    """The chunk of an answer. Raises EngineError ``bad_answer``."""
    choices = chunk.get("choices") or []
    _require(_all_objects(choices), "choices", choices)
    return {**chunk, "choices": [_choice(choice) for choice in choices], "usage": usage_of(chunk.get("usage"))}


def usage_of(given: object) -> Object | None:
    """The counts of tokens that it holds; None where there are none."""
    if not isinstance(given, dict):
        return None
    counts: Object = {}
    for key, value in given.items():
        if key in ("prompt_tokens", "completion_tokens", "total_tokens") and _is_count(value):
            counts[key] = value
        if key in ("prompt_tokens_details", "completion_tokens_details"):
            details = value.items() if isinstance(value, dict) else ()
            counts[key] = {name: n for name, n in details if name.isidentifier() and _is_count(n)} or None
    return counts or None


def _is_count(value: object) -> bool:
    return _is_whole(value) and 0 <= value < _MOST_TOKENS  # type: ignore[operator]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _choice(choice: Object) -> Object:
    _number(choice)
    reason, delta = choice.get("finish_reason"), choice.get("delta")
    _require(reason is None or isinstance(reason, str), "finish_reason", reason)
    _require(delta is None or isinstance(delta, dict), "delta", delta)
    _texts(choice, ("text",))
    told = {"finish_reason": reason and well_formed(reason[:100]), "logprobs": _logprobs(choice.get("logprobs"))}
    if delta:
        _texts(delta, TEXTS)
        if calls := delta.get("tool_calls"):
            _require(_all_objects(calls), "tool_calls", calls)
            told["delta"] = {**delta, "tool_calls": [_call(call) for call in calls]}
    stop = choice.get("stop_reason")
    told["stop_reason"] = well_formed(stop) if isinstance(stop, str) else stop if _is_count(stop) else None
    return {**choice, **told}


def _call(call: Object) -> Object:
    """A piece of a tool's call."""
    _number(call)
    function = call.get("function") or {}
    _require(isinstance(function, dict), "function", function)
    _texts(call, ("id", "type"))
    _texts(function, ("name", "arguments"))
    # Of these one piece has the whole.
    for holder, key in ((call, "id"), (function, "name")):
        if holder.get(key):
            holder[key] = well_formed(holder[key])
    return call


def _number(numbered: Mapping[str, Any]) -> None:
    index = numbered.get("index")
    _require(index is None or (_is_whole(index) and 0 <= index < _MOST), "index", index)


def _texts(holder: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        value = holder.get(key)
        _require(value is None or isinstance(value, str), key, value)


def _logprobs(given: object) -> Object | None:
    """Of a chat, entries of its ``content`` and ``refusal``; of a completion, lists with a place for each token."""
    if not isinstance(given, dict):
        return None
    lists = {key: entries for key, entries in given.items() if key in _LISTS and isinstance(entries, list)}
    try:
        return {key: [_LISTS[key](entry) for entry in entries] for key, entries in lists.items()} or None
    except (TypeError, KeyError, ValueError):
        return None


def _entry(given: Any) -> Object:
    """Raises TypeError, KeyError or ValueError for what is none."""
    entry = _brief(given)
    if "top_logprobs" in given:
        entry["top_logprobs"] = [_brief(other) for other in given["top_logprobs"] or ()]
    return entry


def _brief(given: Any) -> Object:
    entry: Object = {"token": _text(given["token"]), "logprob": _probability(given["logprob"])}
    if "bytes" in given:
        entry["bytes"] = None if given["bytes"] is None else [*bytes(given["bytes"])]
    return entry


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise TypeError("no text")
    return well_formed(given)


def _probability(given: Any) -> float | None:
    if given is not None and not isinstance(given, int | float):
        raise TypeError("no number")
    return given


def _alternatives(given: Any) -> Object | None:
    return None if given is None else {_text(token): _probability(each) for token, each in dict(given).items()}


def _offset(given: Any) -> int:
    if not _is_count(given):
        raise TypeError("no offset")
    return int(given)


_LISTS: Mapping[str, Callable[[Any], Any]] = {
    "content": _entry,
    "refusal": _entry,
    "tokens": _text,
    "token_logprobs": _probability,
    "top_logprobs": _alternatives,
    "text_offset": _offset,
}


def _all_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _require(holds: bool, key: str, value: object) -> None:
    if not holds:
        raise EngineError(f"The upstream's answer is malformed: its {key} is {repr(value)[:100]}.", code="bad_answer")

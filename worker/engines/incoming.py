"""What servers send, checked where it comes in: the code behind takes the shape of what passes for granted.

The text of an answer, its choices and calls must be what OpenAI's API has, or the answer counts for nothing. What is
beside it (usage, log probabilities) is left out where it is malformed: many servers are careless there.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from broker.errors import EngineError
from broker.storable import unstorable
from ocr.plain_text import well_formed

Object: TypeAlias = dict[str, Any]

TEXTS = ("content", "reasoning", "reasoning_content", "refusal")
"""Of a chat's message, which come in pieces. vLLM says reasoning, others reasoning_content."""
# Choices of an answer, and calls of a choice, are numbered below this.
_MOST = 1024
_MOST_TOKENS = 2**53
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
# Characters of what a server wants back with a call: Gemini's signature of what it thought is some thousands.
_MOST_EXTRA = 32 * 1024
# The logarithm of no probability at all, as vLLM writes it.
_IMPOSSIBLE = -9999.0


def json_of(data: str | bytes) -> Any:
    """Raises ValueError for what is no JSON; so are what no float can hold, and any depth that is too great."""
    try:
        return json.loads(data, parse_constant=_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("It is nested too deep.") from None


def _constant(name: str) -> float | None:
    """NaN and infinities, which no JSON has and servers in Python write: the probabilities of tokens are such."""
    return _IMPOSSIBLE if name == "-Infinity" else None


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
    """What it tells in numbers, with the three counts of tokens; None where they are not known.

    Some servers leave out the third of them (Gemini, where it is 0), or tell more than tokens (OpenRouter's ``cost``).
    """
    if not isinstance(given, dict):
        return None
    told: Object = {}
    for key, value in given.items():
        if key.endswith("_details"):
            details = value.items() if isinstance(value, dict) else ()
            told[key] = {name: n for name, count in details if (n := _number_of(name, count)) is not None} or None
        elif (number := _number_of(key, value)) is not None:
            told[key] = number
    read, written, total = (_count(told.pop(key, None)) for key in _COUNTS)
    if total is None and read is not None and written is not None:
        total = read + written
    elif total is not None:
        written = total - read if written is None and read is not None else written
        read = total - written if read is None and written is not None else read
    counts = dict(zip(_COUNTS, (read, written, total), strict=True))
    return {**counts, **told} if all(_count(count) is not None for count in counts.values()) else None


def _number_of(key: str, value: object) -> int | float | None:
    """``value``, where both can be kept."""
    count = _count(value)
    number = value if count is None and isinstance(value, float) else count
    return number if key.isidentifier() else None


def _count(value: object) -> int | None:
    whole = _whole(value)
    return whole if whole is not None and 0 <= whole < _MOST_TOKENS else None


def _whole(value: object) -> int | None:
    """Some write whole numbers as 3.0."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _choice(choice: Object) -> Object:
    _number(choice)
    reason, delta = choice.get("finish_reason"), choice.get("delta")
    _require(reason is None or isinstance(reason, str), "finish_reason", reason)
    _require(delta is None or isinstance(delta, dict), "delta", delta)
    _texts(choice, ("text",))
    told = {"finish_reason": reason and well_formed(reason[:100]), "logprobs": _logprobs(choice.get("logprobs"))}
    if delta:
        delta = _in_texts(delta)
        _texts(delta, TEXTS)
        if calls := delta.get("tool_calls"):
            _require(_all_objects(calls), "tool_calls", calls)
            delta = {**delta, "tool_calls": [_call(call) for call in calls]}
        told["delta"] = delta
    stop = choice.get("stop_reason")
    told["stop_reason"] = well_formed(stop) if isinstance(stop, str) else _count(stop)
    return {**choice, **told}


def _in_texts(delta: Object) -> Object:
    """Mistral's reasoning models tell their content in parts, and some of these are what they think."""
    parts = delta.get("content")
    if not isinstance(parts, list):
        return delta
    texts = {"content": _joined(parts)}
    if thought := "".join(_joined(part.get("thinking")) for part in parts if part.get("type") == "thinking"):
        texts["reasoning_content"] = thought
    return {**delta, **texts}


def _joined(parts: Any) -> str:
    """Their text; those of other kinds, such as references, have none."""
    _require(_all_objects(parts), "content", parts)
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    _require(all(isinstance(text, str) for text in texts), "content", parts)
    return "".join(texts)


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
    extra = call.pop("extra_content", None)
    return {**call, "extra_content": extra} if _is_kept(extra) else call


def _is_kept(extra: object) -> bool:
    """It goes back to the server as it came, or not at all."""
    if not isinstance(extra, dict) or unstorable(extra):
        return False
    text = json.dumps(extra, ensure_ascii=False)
    return len(text) <= _MOST_EXTRA and well_formed(text) == text


def _number(numbered: Object) -> None:
    if (index := numbered.get("index")) is not None:
        whole = _whole(index)
        _require(whole is not None and 0 <= whole < _MOST, "index", index)
        numbered["index"] = whole


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
    except (TypeError, KeyError, ValueError, OverflowError):
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
        entry["bytes"] = None if given["bytes"] is None else _bytes(given["bytes"])
    return entry


def _bytes(given: Any) -> list[int]:
    if not isinstance(given, list):
        raise TypeError("no bytes")
    return [*bytes(given)]


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
    if (count := _count(given)) is None:
        raise TypeError("no offset")
    return count


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

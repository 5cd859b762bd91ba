"""What servers that speak OpenAI's API do otherwise, as pure code: seen by what they say, whoever they are.

- An Azure of an older api-version, and others, refuse ``stream_options`` by name. Without it they tell no usage.
- OpenAI's reasoning models take ``max_completion_tokens`` and refuse ``max_tokens``; most other servers know only that.
- Gemini's calls of tools come without an ``index`` or all with the same, some without an ``id``, and their end as
  ``stop``. Its errors come in a list, and its models are listed as ``models/…``.
- Anthropic and Ollama ignore what they do not know.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

Body = dict[str, Any]

# Keys that a server may not know, what it is to be given in their place, and what it says of them.
_STREAM_OPTIONS, _MAX_TOKENS = "stream_options", "max_tokens"
_INSTEAD: Mapping[str, str | None] = {_STREAM_OPTIONS: None, _MAX_TOKENS: "max_completion_tokens"}
_REFUSING = frozenset({400, 422})
_GEMINI = "generativelanguage.googleapis.com"


def refused_key(status: object, message: str, body: Mapping[str, Any]) -> str | None:
    """The key of ``body`` that the server does not take, though there is another way to say it."""
    if status not in _REFUSING:
        return None
    if _STREAM_OPTIONS in body and _STREAM_OPTIONS in message:
        return _STREAM_OPTIONS
    # A vLLM names both, too, where the number is too large for it.
    named = "max_completion_tokens" in message and "not supported" in message
    return _MAX_TOKENS if _MAX_TOKENS in body and named else None


def without(key: str, body: Mapping[str, Any]) -> Body:
    """``body`` for a server that does not take ``key``."""
    rest = {name: value for name, value in body.items() if name != key}
    instead = _INSTEAD[key]
    return rest if instead is None or key not in body else {instead: body[key], **rest}


def model_name(listed: str, url: str) -> str:
    """What requests call a model that the server at ``url`` lists: Gemini takes its own without ``models/``, as its
    documents write them. For others that is part of the name."""
    return listed.removeprefix("models/") if urlsplit(url).hostname == _GEMINI else listed


class Tidier:
    """Makes one answer's chunks what OpenAI's own are."""

    def __init__(self) -> None:
        self._calls: defaultdict[int, _Calls] = defaultdict(_Calls)

    def tidy(self, chunk: Mapping[str, Any]) -> Mapping[str, Any]:
        """``chunk``, or a copy with what was missing."""
        choices = chunk.get("choices") or ()
        if not self._calls and not any((choice.get("delta") or {}).get("tool_calls") for choice in choices):
            return chunk
        return {**chunk, "choices": [self._tidy(choice) for choice in choices]}

    def _tidy(self, choice: Mapping[str, Any]) -> Mapping[str, Any]:
        index, delta = choice.get("index") or 0, choice.get("delta") or {}
        if calls := delta.get("tool_calls"):
            tidied = [self._calls[index].tidy(call) for call in calls]
            choice = {**choice, "delta": {**delta, "tool_calls": tidied}}
        if choice.get("finish_reason") == "stop" and index in self._calls:
            choice = {**choice, "finish_reason": "tool_calls"}
        return choice


@dataclass
class _Begun:
    """A call of which there was a piece. ``index`` and ``id``: as the server says."""

    index: int | None
    id: str | None
    named: bool


class _Calls:
    """Those of one choice, numbered in their order."""

    def __init__(self) -> None:
        self._begun: list[_Begun] = []

    def tidy(self, piece: Mapping[str, Any]) -> Mapping[str, Any]:
        """``piece`` with the number of its call. The first of each has its id, and one its name: there are clients that
        put together whatever comes."""
        index, id_ = piece.get("index"), piece.get("id") or None
        function = piece.get("function") or {}
        name = function.get("name") or None
        number = self._number(index, id_, begins=name is not None)
        if number is None:
            self._begun.append(_Begun(index, id_, named=name is not None))
            return {**piece, "index": len(self._begun) - 1, "id": id_ or f"call_{uuid4().hex}"}
        begun = self._begun[number]
        dropped = {"name"} if begun.named else set()
        begun.named |= name is not None
        told = {key: value for key, value in function.items() if key not in dropped}
        return {**{key: value for key, value in piece.items() if key != "id"}, "index": number, "function": told}

    def _number(self, index: int | None, id_: str | None, *, begins: bool) -> int | None:
        """Of the call that a piece goes on with; None: it is another one's first."""
        if index is None and id_ is not None:
            return self._last(lambda call: call.id == id_)
        number = self._last(lambda call: index is None or call.index == index)
        if number is None:
            return None
        call = self._begun[number]
        # Not by the id alone: there are servers that draw another one for each piece.
        another = begins and call.named and (id_ is None if index is None else id_ not in (None, call.id))
        return None if another else number

    def _last(self, fits: Callable[[_Begun], bool]) -> int | None:
        return next((number for number in reversed(range(len(self._begun))) if fits(self._begun[number])), None)

"""What servers that speak OpenAI's API do otherwise, as pure code: seen by what they say, whoever they are.

- An Azure of an older api-version, and others, refuse ``stream_options`` by name. Without it they tell no usage.
- OpenAI's reasoning models take ``max_completion_tokens`` and refuse ``max_tokens``; most other servers know only that.
- Gemini's calls of tools come without an ``index``, and their end as ``stop``. Its errors come in a list.
- Anthropic and Ollama ignore what they do not know.
"""

from collections.abc import Mapping
from typing import Any

Body = dict[str, Any]

# Keys that a server may not know, what it is to be given in their place, and what it says of them.
_STREAM_OPTIONS, _MAX_TOKENS = "stream_options", "max_tokens"
_INSTEAD: Mapping[str, str | None] = {_STREAM_OPTIONS: None, _MAX_TOKENS: "max_completion_tokens"}
_REFUSING = frozenset({400, 422})


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


class Tidier:
    """Makes one answer's chunks what OpenAI's own are."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, str], int] = {}
        self._last: dict[int, int] = {}

    def tidy(self, chunk: Mapping[str, Any]) -> Mapping[str, Any]:
        """``chunk``, or a copy with what was missing."""
        choices = chunk.get("choices") or ()
        if not self._last and not any((choice.get("delta") or {}).get("tool_calls") for choice in choices):
            return chunk
        return {**chunk, "choices": [self._tidy(choice) for choice in choices]}

    def _tidy(self, choice: Mapping[str, Any]) -> Mapping[str, Any]:
        index, delta = choice.get("index") or 0, choice.get("delta") or {}
        if calls := delta.get("tool_calls"):
            choice = {**choice, "delta": {**delta, "tool_calls": [self._numbered(index, call) for call in calls]}}
        if choice.get("finish_reason") == "stop" and index in self._last:
            choice = {**choice, "finish_reason": "tool_calls"}
        return choice

    def _numbered(self, choice: int, call: Mapping[str, Any]) -> Mapping[str, Any]:
        number = call.get("index")
        if number is None:
            # One that says nothing goes on with the last one; a new id begins another.
            last, name = self._last.get(choice, -1), call.get("id")
            number = self._numbers.setdefault((choice, name), last + 1) if name else max(last, 0)
        self._last[choice] = max(number, self._last.get(choice, 0))
        return {**call, "index": number}

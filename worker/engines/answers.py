"""What the chunks of OpenAI's APIs add up to, as pure code: the choices of an answer, and what of each chunk is news.

The ends of choices are no news: that an answer has ended only the job's end says.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from broker.errors import EngineError
from ocr.plain_text import well_formed
from worker.engines.incoming import TEXTS

Choice = dict[str, Any]

# What vLLM gives as the reason of an answer that it has broken off.
_BROKEN_OFF = frozenset({"abort", "error"})
# What belongs to a choice besides its text; vLLM tells the stop string that it has met.
_ASIDE = ("logprobs", "stop_reason")


class Kind(Protocol):
    """How choices come in pieces, by the API."""

    def piece(self, choice: Mapping[str, Any], *, first: bool) -> Choice:
        """What of a chunk's choice is news; empty: nothing. ``first``: there was none before."""

    def add(self, whole: Choice, piece: Mapping[str, Any]) -> None:
        """Adds a piece to the choice that it belongs to."""

    def end(self, whole: Choice) -> Choice:
        """The choice as the result has it."""


class Answer:
    """Gathers the chunks of one answer."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._choices: dict[int, Choice] = {}
        self._reasons: dict[int, str] = {}
        self._usage: Mapping[str, Any] | None = None

    def add(self, chunk: Mapping[str, Any]) -> list[Choice]:
        """The choices of ``chunk`` that tell something new, without their ends."""
        self._usage = chunk.get("usage") or self._usage
        news = []
        for choice in chunk.get("choices") or ():
            index = choice.get("index") or 0
            if reason := choice.get("finish_reason"):
                self._reasons[index] = reason
            whole = self._choices.setdefault(index, {"index": index})
            piece = self._kind.piece(choice, first=len(whole) == 1)
            if (stop := choice.get("stop_reason")) is not None:
                whole["stop_reason"] = stop
            if piece:
                self._kind.add(whole, piece)
                news.append({"index": index, **piece, "finish_reason": None})
        return news

    def result(self) -> dict[str, Any]:
        """The whole answer. Raises EngineError ``answer_cut_off``."""
        if not self._choices or self._choices.keys() - self._reasons:
            raise EngineError("The upstream ended its answer without a finish_reason.", code="answer_cut_off")
        for reason in self._reasons.values():
            if reason in _BROKEN_OFF:
                raise EngineError(f"The upstream broke its answer off ({reason}).", code="answer_cut_off")
        choices = [
            self._kind.end(self._choices[index]) | {"finish_reason": self._reasons[index]}
            for index in sorted(self._choices)
        ]
        return {"choices": choices, **({"usage": dict(self._usage)} if self._usage else {})}


class Chat:
    """Messages: texts, and calls of tools."""

    def piece(self, choice: Mapping[str, Any], *, first: bool) -> Choice:
        given, logprobs = choice.get("delta") or {}, choice.get("logprobs")
        delta = {key: given[key] for key in (*TEXTS, "tool_calls") if given.get(key)}
        if not delta and not logprobs:
            return {}
        # Whose message it is comes with its first piece, and not alone.
        role = {"role": "assistant"} if first else {}
        return {"delta": role | delta, **({"logprobs": logprobs} if logprobs else {})}

    def add(self, whole: Choice, piece: Mapping[str, Any]) -> None:
        message = whole.setdefault("message", {})
        for key, value in piece["delta"].items():
            if key == "tool_calls":
                _add_calls(message.setdefault("tool_calls", {}), value)
            elif key != "role":
                message.setdefault(key, []).append(value)
        if logprobs := piece.get("logprobs"):
            _add_lists(whole.setdefault("logprobs", {}), logprobs)

    def end(self, whole: Choice) -> Choice:
        given = whole.get("message", {})
        calls = [given["tool_calls"][index] for index in sorted(given.get("tool_calls", {}))]
        message: dict[str, Any] = {"role": "assistant", "content": None if calls else ""}
        message |= {key: well_formed("".join(given[key])) for key in TEXTS if key in given}
        if calls:
            message["tool_calls"] = [_whole_call(call) for call in calls]
        return {"index": whole["index"], "message": message, **_aside(whole)}


class Completion:
    """Plain text."""

    def piece(self, choice: Mapping[str, Any], *, first: bool) -> Choice:
        text, logprobs = choice.get("text") or "", choice.get("logprobs")
        return ({"text": text} if text or logprobs else {}) | ({"logprobs": logprobs} if logprobs else {})

    def add(self, whole: Choice, piece: Mapping[str, Any]) -> None:
        whole.setdefault("text", []).append(piece["text"])
        if logprobs := piece.get("logprobs"):
            _add_lists(whole.setdefault("logprobs", {}), logprobs)

    def end(self, whole: Choice) -> Choice:
        return {"index": whole["index"], "text": well_formed("".join(whole.get("text", ()))), **_aside(whole)}


KINDS: Mapping[str, Callable[[], Kind]] = {"chat": Chat, "completion": Completion}
"""By task."""


def _aside(whole: Choice) -> Choice:
    return {key: whole[key] for key in _ASIDE if key in whole}


def _add_lists(whole: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Log probabilities come as lists, each piece with the entries of its own tokens."""
    for key, entries in piece.items():
        if isinstance(entries, list):
            whole.setdefault(key, []).extend(entries)


def _add_calls(calls: dict[int, dict[str, Any]], pieces: Iterable[Mapping[str, Any]]) -> None:
    """Of a call the first piece names the function, and the arguments come in pieces. What Gemini wants back with the
    next turn is beside it."""
    for piece in pieces:
        call = calls.setdefault(piece.get("index") or 0, {"name": "", "arguments": [], "beside": {}})
        function = piece.get("function") or {}
        call["beside"] |= {key: piece[key] for key in ("id", "extra_content") if piece.get(key)}
        call["name"] = function.get("name") or call["name"]
        call["arguments"].append(function.get("arguments") or "")


def _whole_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": well_formed("".join(call["arguments"]))}
    return {"type": "function", "function": function, **call["beside"]}

"""The output of a response as it grows, as pure code: pieces of a chat's answer go in, items and their events come out.

The same pieces give the same events, whoever asks: so they can be counted, and told on from any of them. A whole
answer is one piece. Texts end when something else begins; calls of functions, whose pieces may come mixed, end with
the answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
"""An event but for its number."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Of texts within an item. ``part``: their type, ``key``: where a part has its text, ``event``: of its pieces."""

    item: str
    part: str
    key: str
    event: str


_TEXT = _Kind("message", "output_text", "text", "response.output_text")
_REFUSAL = _Kind("message", "refusal", "refusal", "response.refusal")
_REASONING = _Kind("reasoning", "reasoning_text", "text", "response.reasoning_text")
_PREFIXES = {"message": "msg", "reasoning": "rs"}


@dataclass
class _Part:
    kind: _Kind
    index: int
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def whole(self) -> dict[str, Any]:
        extra = {"annotations": [], "logprobs": [_logprob(one) for one in self.logprobs]}
        return {"type": self.kind.part, self.kind.key: self.text, **(extra if self.kind is _TEXT else {})}

    def brief(self, logprobs: Sequence[Any]) -> dict[str, Any]:
        """What events about a text tell besides it."""
        return {"logprobs": [_brief(one) for one in logprobs]} if self.kind is _TEXT else {}


class _Texts:
    """A message, or what the model thinks."""

    def __init__(self, kind: str, item_id: str, index: int) -> None:
        self.kind = kind
        self.index = index
        self._id = item_id
        self._parts: list[_Part] = []

    def item(self, status: str) -> dict[str, Any]:
        head: dict[str, Any] = {"id": self._id, "type": self.kind, "status": status}
        own: dict[str, Any] = {"summary": [], "encrypted_content": None}
        if self.kind == "message":
            own = {"role": "assistant"}
        return {**head, **own, "content": [part.whole() for part in self._parts]}

    def add(self, kind: _Kind, text: str, logprobs: Sequence[Any]) -> Iterator[Event]:
        part = self._parts[-1] if self._parts else None
        if part is None or part.kind is not kind:
            yield from self._end_part()
            part = _Part(kind, len(self._parts))
            yield self._event("response.content_part.added", part, part=part.whole())
            self._parts.append(part)
        part.pieces.append(text)
        part.logprobs.extend(logprobs)
        if text or logprobs:
            yield self._event(f"{kind.event}.delta", part, delta=text, **part.brief(logprobs))

    def end(self, status: str) -> Iterator[Event]:
        yield from self._end_part()

    def _end_part(self) -> Iterator[Event]:
        if self._parts:
            part = self._parts[-1]
            told = {part.kind.key: part.text, **part.brief(part.logprobs)}
            yield self._event(f"{part.kind.event}.done", part, **told)
            yield self._event("response.content_part.done", part, part=part.whole())

    def _event(self, name: str, part: _Part, /, **told: Any) -> Event:
        place = {"item_id": self._id, "output_index": self.index, "content_index": part.index}
        return {"type": name, **place, **told}


class _Call:
    """A function that the client is to call."""

    kind = "function_call"

    def __init__(self, item_id: str, index: int, call_id: str, name: str) -> None:
        self.index = index
        self._id = item_id
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []

    def item(self, status: str) -> dict[str, Any]:
        arguments = "".join(self._arguments)
        head = {"id": self._id, "type": self.kind, "status": status}
        return {**head, "call_id": self._call_id, "name": self._name, "arguments": arguments}

    def add(self, arguments: str) -> Iterator[Event]:
        if arguments:
            self._arguments.append(arguments)
            yield self._event("delta", delta=arguments)

    def end(self, status: str) -> Iterator[Event]:
        yield self._event("done", name=self._name, arguments="".join(self._arguments))

    def _event(self, kind: str, /, **told: Any) -> Event:
        place = {"item_id": self._id, "output_index": self.index}
        return {"type": f"response.function_call_arguments.{kind}", **place, **told}


class Output:
    """``key``: what ids are made of, one for each response."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._open: list[_Texts | _Call] = []
        self._ended: dict[int, dict[str, Any]] = {}
        self._calls: dict[int, _Call] = {}
        self._logprobs: list[Any] = []

    @property
    def items(self) -> list[dict[str, Any]]:
        """All that have ended."""
        return [self._ended[index] for index in sorted(self._ended)]

    def add(self, piece: Mapping[str, Any]) -> Iterator[Event]:
        """``piece``: a choice of a chunk of a chat."""
        delta = piece.get("delta") or {}
        logprobs = [*self._logprobs, *((piece.get("logprobs") or {}).get("content") or ())]
        self._logprobs = []
        reasoning = delta.get("reasoning") or delta.get("reasoning_content")
        if reasoning:
            yield from self._text(_REASONING, reasoning, ())
        if delta.get("content"):
            yield from self._text(_TEXT, delta["content"], logprobs)
        elif not reasoning and not delta.get("tool_calls"):
            # Of tokens that are no character yet.
            self._logprobs = logprobs
        if delta.get("refusal"):
            yield from self._text(_REFUSAL, delta["refusal"], ())
        for call in delta.get("tool_calls") or ():
            yield from self._call(call)

    def end(self, *, complete: bool) -> Iterator[Event]:
        """No more comes. ``complete``: not broken off; else the last item is not complete either."""
        if self._logprobs or not (self._open or self._ended):
            yield from self._text(_TEXT, "", self._logprobs)
        last = len(self._open) + len(self._ended) - 1
        for item in [*self._open]:
            yield from self._end(item, "completed" if complete or item.index != last else "incomplete")

    def _text(self, kind: _Kind, text: str, logprobs: Sequence[Any]) -> Iterator[Event]:
        found = next((item for item in self._open if isinstance(item, _Texts)), None)
        if found is None or found.kind != kind.item:
            yield from self._end_texts()
            before = sum(item["type"] == kind.item for item in self._ended.values())
            name = f"{_PREFIXES[kind.item]}_{self._key}" + (f"_{before}" if before else "")
            found = _Texts(kind.item, name, self._next)
            yield from self._begin(found)
        yield from found.add(kind, text, logprobs)

    def _call(self, piece: Mapping[str, Any]) -> Iterator[Event]:
        number, function = piece.get("index") or 0, piece.get("function") or {}
        if number not in self._calls:
            yield from self._end_texts()
            call_id = piece.get("id") or f"call_{self._key}_{number}"
            call = _Call(f"fc_{self._key}_{number}", self._next, call_id, function.get("name") or "")
            self._calls[number] = call
            yield from self._begin(call)
        yield from self._calls[number].add(function.get("arguments") or "")

    @property
    def _next(self) -> int:
        return len(self._open) + len(self._ended)

    def _begin(self, item: _Texts | _Call) -> Iterator[Event]:
        self._open.append(item)
        yield {"type": "response.output_item.added", "output_index": item.index, "item": item.item("in_progress")}

    def _end_texts(self) -> Iterator[Event]:
        for item in [*self._open]:
            if isinstance(item, _Texts):
                yield from self._end(item, "completed")

    def _end(self, item: _Texts | _Call, status: str) -> Iterator[Event]:
        self._open.remove(item)
        self._ended[item.index] = item.item(status)
        yield from item.end(status)
        yield {"type": "response.output_item.done", "output_index": item.index, "item": item.item(status)}


def _logprob(one: Mapping[str, Any]) -> dict[str, Any]:
    return {**_bytes(one), "top_logprobs": [_bytes(top) for top in one.get("top_logprobs") or ()]}


def _bytes(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": one["token"], "bytes": one.get("bytes") or [], "logprob": one["logprob"]}


def _brief(one: Mapping[str, Any]) -> dict[str, Any]:
    tops = [{"token": top["token"], "logprob": top["logprob"]} for top in one.get("top_logprobs") or ()]
    return {"token": one["token"], "logprob": one["logprob"], "top_logprobs": tops}

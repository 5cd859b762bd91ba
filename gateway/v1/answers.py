"""Jobs as answers of OpenAI's API, whole and as streams of chunks, as pure code.

A stream is made of the events that the job's attempt has stored, and of its end: a chunk with the reason why each
choice has ended, one with the usage if it was asked for, and ``[DONE]``. Each has a number, counted from 1, so that
whoever has seen so many can go on after them, on any gateway: the same job gives the same bytes each time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.job import Job
from gateway.vectors import numbers

DONE = "[DONE]"
_PREFIXES = {"chat": "chatcmpl-", "completion": "cmpl-"}
_OBJECTS = {"chat": "chat.completion", "completion": "text_completion"}


@dataclass(frozen=True, slots=True)
class View:
    """One job's answer."""

    job: Job

    @property
    def model(self) -> str:
        """The name that the client asked for."""
        return str(self.job.asked.get("model", self.job.model))

    @property
    def usage(self) -> bool:
        """Whether chunks tell of it."""
        return bool(self.job.asked.get("usage"))

    @property
    def id(self) -> str:
        return f"{_PREFIXES[self.job.task]}{self.job.id}"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": int(self.job.created_at.timestamp()), "model": self.model}

    def whole(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The answer as one body."""
        if self.job.task == "embedding":
            return self._embeddings(result)
        choices = [_whole_choice(choice) for choice in result["choices"]]
        usage = {"usage": result["usage"]} if "usage" in result else {}
        return {**self._head(_OBJECTS[self.job.task]), "choices": choices, **usage}

    def _embeddings(self, result: Mapping[str, Any]) -> dict[str, Any]:
        as_they_are = self.job.asked.get("encoding") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": vector if as_they_are else numbers(vector)}
            for index, vector in enumerate(result["embeddings"])
        ]
        usage = result.get("usage") or {"prompt_tokens": 0, "total_tokens": 0}
        return {"object": "list", "data": data, "model": self.model, "usage": usage}

    def chunk(self, choices: str) -> str:
        """An event of a stream. ``choices``: JSON text, as it is stored."""
        head = json.dumps(self._head(self._chunk_object), separators=(",", ":"))
        usage = ',"usage":null' if self.usage else ""
        return f'{head[:-1]},"choices":{choices}{usage}}}'

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self.job.task == "chat" else "text_completion"

    def ending(self, result: Mapping[str, Any]) -> Iterator[str]:
        """What follows after all stored events of a completed job."""
        ends = [_end_of(choice, self.job.task) for choice in result["choices"]]
        yield self.chunk(json.dumps(ends, separators=(",", ":")))
        if self.usage:
            last = {**self._head(self._chunk_object), "choices": [], "usage": result.get("usage")}
            yield json.dumps(last, separators=(",", ":"))
        yield DONE

    def all_at_once(self, result: Mapping[str, Any]) -> str:
        """One event with the whole of the texts, for who comes when the pieces are gone."""
        return self.chunk(json.dumps(as_pieces(result), separators=(",", ":")))


def as_pieces(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices of a result in the form in which they come while they are generated."""
    return [_as_piece(choice) for choice in result["choices"]]


def _whole_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    whole = {"logprobs": None, **choice}
    if "message" in choice:
        whole["message"] = {"refusal": None, **choice["message"]}
    return whole


def _end_of(choice: Mapping[str, Any], task: str) -> dict[str, Any]:
    piece: dict[str, Any] = {"delta": {}} if task == "chat" else {"text": ""}
    aside = {"stop_reason": choice["stop_reason"]} if "stop_reason" in choice else {}
    return {"index": choice["index"], **piece, "logprobs": None, "finish_reason": choice["finish_reason"], **aside}


def _as_piece(choice: Mapping[str, Any]) -> dict[str, Any]:
    if "message" in choice:
        calls = _numbered(choice["message"].get("tool_calls", ()))
        piece: dict[str, Any] = {"delta": {**choice["message"], **calls}}
    else:
        piece = {"text": choice["text"]}
    return {"index": choice["index"], **piece, "logprobs": choice.get("logprobs"), "finish_reason": None}


def _numbered(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **call} for index, call in enumerate(calls)]} if calls else {}

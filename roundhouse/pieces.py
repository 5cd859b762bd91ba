"""The events of a chat's stream as pieces of its answer, as pure code."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from roundhouse.errors import JobFailed, RoundhouseApiError, StreamRestarted, error_of, said_by
from roundhouse.models import End, Piece, Reasoning, Text, ToolCallPiece, Usage

DONE = "[DONE]"
# Codes of events that tell of the stream, and nothing of how its job has ended.
ABOUT_THE_WAY = frozenset({"gateway_stopping", "database_unavailable", "stream_expired", "internal_error"})


class Reading:
    """What has been read of one answer. ``over``: all of it."""

    def __init__(self) -> None:
        self.over = False
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    def add(self, data: str) -> Iterator[Piece]:
        """The pieces in an event's data, in order. Raises the RoundhouseApiError that the event tells of."""
        if data == DONE:
            self.over = True
            yield End(self._finish_reason, self._usage)
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise _told(said_by(chunk))
        self._usage = Usage.of(chunk.get("usage")) or self._usage
        for choice in chunk["choices"]:
            yield from _pieces(choice)
            if choice["index"] == 0:
                self._finish_reason = choice.get("finish_reason") or self._finish_reason


def _told(said: Mapping[str, Any]) -> RoundhouseApiError:
    error = error_of(said, status=None, otherwise="The stream ended with an error.", headers={})
    if isinstance(error, StreamRestarted) or error.code in ABOUT_THE_WAY:
        return error
    return JobFailed(error.message, code=error.code, details=error.details)


def _pieces(choice: Mapping[str, Any]) -> Iterator[Piece]:
    delta, index = choice["delta"], choice["index"]
    if thought := delta.get("reasoning_content") or delta.get("reasoning"):
        yield Reasoning(thought, index)
    if text := delta.get("content"):
        yield Text(text, index)
    for call in delta.get("tool_calls") or ():
        function = call.get("function") or {}
        arguments = function.get("arguments") or ""
        yield ToolCallPiece(call["index"], arguments, call.get("id"), function.get("name"), index)

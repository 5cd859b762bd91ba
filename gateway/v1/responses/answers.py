"""Jobs as responses of OpenAI's Responses API, as pure code."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from broker.job import Job, Status
from gateway.v1.answers import as_pieces
from gateway.v1.responses.items import Output

_STATES: Mapping[Status, str] = {
    Status.QUEUED: "queued",
    Status.PROCESSING: "in_progress",
    Status.FAILED: "failed",
    Status.TIMEOUT: "failed",
    Status.CANCELLED: "cancelled",
}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# OpenAI's clients know few codes: ours stands in the message.
_INVALID = frozenset({"engine_rejected_input", "task_unsupported"})

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One job's response. ``instructions``: those of its request, where they are not kept with what else the response
    tells of that."""

    job: Job
    instructions: str | None = None

    def at(self, job: Job) -> "Answer":
        """The response as of a later reading of its job."""
        return replace(self, job=job)

    @property
    def id(self) -> str:
        return f"resp_{self.job.id}"

    @property
    def background(self) -> bool:
        return bool(self.job.asked["background"])

    def state(self, result: Mapping[str, Any] | None = None) -> Body:
        """The response as the job is now. ``result``: that of a completed job."""
        if result is not None:
            return self.whole(result)
        error = None
        if self.job.status in (Status.FAILED, Status.TIMEOUT):
            error = _error(self.job.error or {"code": "failed", "message": "The job has failed."})
        return self.body(_STATES[self.job.status], error=error)

    def whole(self, result: Mapping[str, Any]) -> Body:
        """The response of a completed job."""
        output = Output(str(self.job.id))
        # What counts is what they leave behind.
        for events in (output.add(as_pieces(result)[0]), output.end(complete=complete(result))):
            list(events)
        return self.ended(result, output.items)

    def ended(self, result: Mapping[str, Any], output: Sequence[Body]) -> Body:
        """The response of a completed job with ``output``."""
        reason = _INCOMPLETE.get(result["choices"][0]["finish_reason"])
        return self.body(
            "incomplete" if reason else "completed",
            output=output,
            usage=usage(result.get("usage")),
            incomplete_details={"reason": reason} if reason else None,
        )

    def body(self, status: str, *, output: Sequence[Body] = (), **told: Any) -> Body:
        finished = self.job.finished_at
        at = {"completed_at": int(finished.timestamp())} if status == "completed" and finished else {}
        return {
            "id": self.id,
            "object": "response",
            "created_at": int(self.job.created_at.timestamp()),
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": str(self.job.asked["model"]),
            "output": list(output),
            "usage": None,
            **json.loads(self.job.asked["echo"]),
            **({} if self.instructions is None else {"instructions": self.instructions}),
            **at,
            **told,
        }


def complete(result: Mapping[str, Any]) -> bool:
    """Whether the answer was not broken off."""
    return result["choices"][0]["finish_reason"] not in _INCOMPLETE


def usage(told: Mapping[str, Any] | None) -> Body | None:
    """A chat's usage, as responses have it. All in tokens."""
    if told is None:
        return None
    read, written = told.get("prompt_tokens_details") or {}, told.get("completion_tokens_details") or {}
    return {
        "input_tokens": told.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": read.get("cached_tokens") or 0, "cache_write_tokens": 0},
        "output_tokens": told.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": written.get("reasoning_tokens") or 0},
        "total_tokens": told.get("total_tokens", 0),
    }


def _error(told: Mapping[str, Any]) -> Body:
    code = "invalid_prompt" if told["code"] in _INVALID else "server_error"
    return {"code": code, "message": f"{told['message']} ({told['code']})"}

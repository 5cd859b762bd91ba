"""What the client hands out: jobs, answers, and the pieces of an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

TERMINAL = frozenset({"completed", "failed", "timeout", "cancelled"})


@dataclass(frozen=True, slots=True)
class JobError:
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """``unit``: «pages» of a document. ``total``: None until it is known."""

    done: int
    total: int | None
    unit: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the gateway last told of it; the answer to a submit tells less. ``body``: all that it told.

    ``status``: queued, processing, completed, failed, timeout or cancelled. ``message``: of a submit, what to know,
    e.g. why the job will have to wait.
    """

    id: str
    status: str
    task: str
    model: str
    priority: str
    position: int | None = None
    eta_seconds: float | None = None
    attempts: int = 0
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress | None = None
    result: Mapping[str, Any] | None = None
    error: JobError | None = None
    message: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL

    @property
    def text(self) -> str | None:
        """The text of a result, where it has one."""
        if self.result is None:
            return None
        message = self.result.get("message")
        text = message.get("content") if isinstance(message, Mapping) else self.result.get("text")
        return None if text is None else str(text)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "Job":
        """From a body of the API: of a submit, a job, or an entry of a list."""
        progress, error = body.get("progress"), body.get("error")
        return cls(
            id=body["request_id"],
            status=body["status"],
            task=body["task"],
            model=body["model"],
            priority=body["priority"],
            position=body.get("position"),
            eta_seconds=body.get("eta_seconds"),
            attempts=body.get("attempts", 0),
            created_at=_moment(body.get("created_at")),
            started_at=_moment(body.get("started_at")),
            finished_at=_moment(body.get("finished_at")),
            progress=progress and Progress(progress["done"], progress["total"], progress["unit"]),
            result=body.get("result"),
            error=error and JobError(error["code"], error["message"]),
            message=body.get("message"),
            body=body,
        )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first. ``next_cursor`` asks for those after them; None at the end."""

    jobs: Sequence[Job]
    next_cursor: str | None
    body: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """News of a job: ``state``, ``page``, ``progress``, ``end`` …, with what docs/client.md says of each."""

    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """A name that requests may use. ``root``: the model that it stands for. ``state``: ready, starting, no worker …"""

    name: str
    root: str
    task: str
    state: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, body: Mapping[str, Any] | None) -> "Usage | None":
        if body is None:
            return None
        return cls(*(int(body.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion", "total")))


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer's text. ``choice``: which one, where several were asked for."""

    text: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what a reasoning model thinks before it answers."""

    text: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """A piece of the ``number``-th tool call: ``id`` and ``name`` come with the first, ``arguments`` (JSON) add up."""

    number: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Restart:
    """All pieces so far are void: the worker or the engine was lost, and the answer begins anew."""


@dataclass(frozen=True, slots=True)
class End:
    """The answer is whole. ``finish_reason``: of the first choice; stop, length, tool_calls …"""

    finish_reason: str | None
    usage: Usage | None


Piece: TypeAlias = Text | Reasoning | ToolCallPiece | Restart | End


@dataclass(frozen=True, slots=True)
class ToolCall:
    """``arguments``: JSON, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The first choice of a chat's answer. ``body``: all of it, as OpenAI's API has it."""

    job_id: str
    text: str
    finish_reason: str | None
    usage: Usage | None
    tool_calls: Sequence[ToolCall] = ()
    body: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def message(self) -> Mapping[str, Any]:
        """As it goes into the next request's messages."""
        told: Mapping[str, Any] = self.body["choices"][0]["message"]
        return {key: value for key, value in told.items() if value is not None or key == "content"}

    @classmethod
    def of(cls, job_id: str, body: Mapping[str, Any]) -> "Answer":
        first = body["choices"][0]
        message = first["message"]
        calls = [
            ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ]
        usage = Usage.of(body.get("usage"))
        return cls(job_id, message.get("content") or "", first["finish_reason"], usage, calls, body)

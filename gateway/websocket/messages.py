"""What is said on ``/ws/jobs``, as pure code: the messages of both sides, and what somebody knows of a job.

Each message is one JSON object in a text frame. The events, and their ids, are those of ``GET /api/jobs/{id}/events``.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, StringConstraints, Tag, TypeAdapter, ValidationError
from pydantic_core import from_json

from gateway.event_log import LONGEST, Event, Known
from gateway.payloads import Payload, tag_of
from gateway.problems import Problem
from gateway.tokens import MAX_LENGTH

EventKind: TypeAlias = Literal["state", "progress", "page", "token"]
KINDS: tuple[EventKind, ...] = ("state", "progress", "page", "token")
# What of ``Known`` an event of each name tells.
_TELLS: Mapping[str, tuple[str, ...]] = {
    "token": ("place",),
    "restart": ("place",),
    "state": ("state",),
    "progress": ("progress",),
    "page": ("ended", "begun"),
    "end": ("over",),
}

JobId = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Auth(Payload):
    """Who asks. Needed as the first message where no Authorization header was sent; later, a newer token."""

    type: Literal["auth"]
    token: Annotated[str, StringConstraints(min_length=1, max_length=MAX_LENGTH)]


class Subscribe(Payload):
    """Tells of a job from now on, or from where another connection has stopped."""

    type: Literal["subscribe"]
    job: JobId
    events: Annotated[list[EventKind], Field(min_length=1, max_length=16)] = Field(default=[*KINDS])
    """What is to be told. The job's end is told always."""
    after: Annotated[str, StringConstraints(max_length=LONGEST)] | None = None
    """`id` of the last message that was received of the job."""


class Unsubscribe(Payload):
    type: Literal["unsubscribe"]
    job: JobId


class Ping(Payload):
    type: Literal["ping"]


ClientMessage: TypeAlias = Auth | Subscribe | Unsubscribe | Ping
_CLIENT_MESSAGES: TypeAdapter[ClientMessage] = TypeAdapter(
    Annotated[
        Annotated[Auth, Tag("<auth>")]
        | Annotated[Subscribe, Tag("<subscribe>")]
        | Annotated[Unsubscribe, Tag("<unsubscribe>")]
        | Annotated[Ping, Tag("<ping>")],
        Discriminator(
            tag_of,
            custom_error_type="message_type",
            custom_error_message="A message's type is auth, subscribe, unsubscribe or ping",
        ),
    ]
)


def read_message(text: str | None) -> ClientMessage:
    """A client's message; None: it came in a binary frame. Raises Problem ``invalid_message``."""
    if text is None:
        raise Problem("invalid_message", "A message is a JSON object in a text frame, not a binary one.")
    try:
        return _CLIENT_MESSAGES.validate_python(from_json(text, allow_inf_nan=False))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(item) for item in fault["loc"] if not str(item).startswith("<"))
        raise Problem("invalid_message", f"{where}: {fault['msg']}." if where else f"{fault['msg']}.") from error
    except ValueError as error:
        raise Problem("invalid_message", f"The message is not valid JSON: {error}.") from error


def known_from(after: str | None) -> Known:
    """What somebody knows whose last message had that id. Of what is no id nothing is known: all is told from the
    start. An end is told again."""
    return replace(Known.read(after), over=False)


def with_event(known: Known, event: Event) -> Known:
    """And that event, but not what came before it and was not told."""
    return replace(known, **{name: getattr(event.known, name) for name in _TELLS[event.name]})


def event_message(job: str, known: Known, event: Event) -> str:
    """``known``: with the event."""
    return json.dumps({"type": event.name, "job": job, "id": str(known), **event.data.model_dump(mode="json")})


def error_message(problem: Problem, job: str | None = None) -> str:
    return json.dumps({"type": "error", "job": job, "code": problem.code, "message": problem.message})

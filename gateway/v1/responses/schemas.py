"""What the routes of the Responses API answer, as ``/openapi.json`` has it."""

from typing import Any, Literal

from pydantic import ConfigDict

from gateway.schemas import Body


class ResponseUsage(Body):
    """In tokens."""

    model_config = ConfigDict(extra="allow")

    input_tokens: int
    output_tokens: int
    total_tokens: int


class ResponseFault(Body):
    code: Literal["invalid_prompt", "server_error"]
    message: str
    """Ends with the code of the job's error."""


class IncompleteDetails(Body):
    reason: Literal["max_output_tokens", "content_filter"]


class ResponseBody(Body):
    """As OpenAI's API has it. What is not written here is what the request said."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseFault | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[dict[str, Any]]
    """Items of type message, function_call or reasoning."""
    previous_response_id: str | None
    usage: ResponseUsage | None


class ResponseDeleted(Body):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItemList(Body):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool

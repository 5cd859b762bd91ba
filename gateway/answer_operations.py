"""What the plain routes do that answer on the connection, or list what answers, for ``/openapi.json``."""

from typing import Any

from gateway.documents.operations import EventData
from gateway.model_list import ModelSummaries
from gateway.openapi import EVENTS, RATE_HEADERS, Answer, Operation, Operations
from gateway.parameters import HOW_TO_RUN, HOW_TO_RUN_PROBLEMS
from gateway.payloads import ChatRequest, InferenceRequest
from gateway.schemas import Body

_HEADERS = ("x-request-id", "X-Cache", "Idempotent-Replayed", *RATE_HEADERS)
_PROBLEMS = (*HOW_TO_RUN_PROBLEMS, "empty_body", "invalid_json", "invalid_query", "invalid_request", "no_default_model")
_GONE = "A client that goes away cancels the job, unless it gave an `Idempotency-Key` or the model is set up otherwise."


class Inference(Body):
    request_id: str
    model: str
    text: str
    """What follows on the prompt."""
    finish_reason: str
    usage: dict[str, Any] | None


ANSWER_OPERATIONS: Operations = {
    ("POST", "/api/chat/stream"): Operation(
        tag="jobs",
        summary="Answer a chat as it is generated",
        description=(
            "As `POST /api/chat`, answered by what `GET /api/jobs/{id}/events` tells of the job, whose id is in "
            "`x-request-id`: who is cut off goes on there by `Last-Event-ID`. " + _GONE
        ),
        parameters=HOW_TO_RUN,
        body={"application/json": ChatRequest},
        answers=(Answer(200, "The events", EventData, _HEADERS, media_type=EVENTS),),
        problems=_PROBLEMS,
    ),
    ("GET", "/api/models"): Operation(
        tag="jobs",
        summary="List what can be asked for",
        answers=(Answer(200, "The models, in the order of the configuration", ModelSummaries),),
    ),
    ("POST", "/v1/inference/complete"): Operation(
        tag="jobs",
        summary="Go on with a text",
        description=_GONE,
        parameters=HOW_TO_RUN,
        body={"application/json": InferenceRequest},
        answers=(Answer(200, "What follows", Inference, _HEADERS),),
        problems=(*_PROBLEMS, "file_missing", "gateway_stopping"),
        waits=True,
    ),
    ("POST", "/v1/inference/stream"): Operation(
        tag="jobs",
        summary="Go on with a text, told as it is generated",
        description="The events are those of `POST /api/chat/stream`. " + _GONE,
        parameters=HOW_TO_RUN,
        body={"application/json": InferenceRequest},
        answers=(Answer(200, "The events", EventData, _HEADERS, media_type=EVENTS),),
        problems=_PROBLEMS,
    ),
}

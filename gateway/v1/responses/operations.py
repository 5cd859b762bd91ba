"""What the routes of the Responses API do, for ``/openapi.json``."""

from gateway.openapi import EVENTS, Answer, Operation, Operations, Parameter
from gateway.parameters import HOW_TO_RUN, TEXT
from gateway.v1.operations import ANSWER_HEADERS, SUBMIT_PROBLEMS
from gateway.v1.responses.requests import ResponseRequest
from gateway.v1.responses.schemas import InputItemList, ResponseBody, ResponseDeleted

_ID = Parameter("id", "path", "The id of the response.", TEXT)
_STARTING_AFTER = Parameter(
    "starting_after",
    "query",
    "The `sequence_number` of the last event that was received: what follows it is sent.",
    {"type": "integer", "minimum": 0},
)
_LAST_EVENT_ID = Parameter("Last-Event-ID", "header", "As `starting_after`, and goes before it.", TEXT)
_ORDER = Parameter("order", "query", "`desc`, the newest first, or `asc`.", {"type": "string", "enum": ["asc", "desc"]})
_FOLLOWED = ("invalid_event_id", "invalid_query", "stream_expired", "stream_restarted")
_STREAM = Answer(200, "Its events", {"type": "string"}, media_type=EVENTS)

RESPONSE_OPERATIONS: Operations = {
    ("POST", "/v1/responses"): Operation(
        tag="openai",
        summary="Make a response",
        description=(
            "As OpenAI's Responses API has it, with functions as the only tools. The response is a job, which outlives "
            "crashes. A client that goes away cancels it, unless it said `background`, gave an `Idempotency-Key` or "
            "the model is configured otherwise."
        ),
        parameters=HOW_TO_RUN,
        body={"application/json": ResponseRequest},
        answers=(
            Answer(200, "The response, with `background` before it is begun", ResponseBody, ANSWER_HEADERS),
            _STREAM,
        ),
        problems=(
            *SUBMIT_PROBLEMS,
            *_FOLLOWED,
            "previous_response_not_completed",
            "previous_response_not_found",
        ),
        waits=True,
    ),
    ("GET", "/v1/responses/{id}"): Operation(
        tag="openai",
        summary="Get a response, or go on with its stream",
        parameters=(
            _ID,
            Parameter("stream", "query", "`true`: its events.", {"type": "string", "enum": ["true", "false"]}),
            _STARTING_AFTER,
            _LAST_EVENT_ID,
        ),
        answers=(Answer(200, "The response as it is now", ResponseBody, ("x-request-id",)), _STREAM),
        problems=("file_missing", "gateway_stopping", "job_not_found", *_FOLLOWED),
    ),
    ("DELETE", "/v1/responses/{id}"): Operation(
        tag="openai",
        summary="Delete a response",
        description="It is not to be had here any more; one that goes on is cancelled. The job's record stays.",
        parameters=(_ID,),
        answers=(Answer(200, "It is deleted", ResponseDeleted),),
        problems=("job_not_found",),
    ),
    ("POST", "/v1/responses/{id}/cancel"): Operation(
        tag="openai",
        summary="Cancel a response that goes on in the background",
        description="What has ended stays as it is.",
        parameters=(_ID,),
        answers=(Answer(200, "The response as it is now", ResponseBody, ("x-request-id",)),),
        problems=("file_missing", "job_not_found", "response_not_background"),
    ),
    ("GET", "/v1/responses/{id}/input_items"): Operation(
        tag="openai",
        summary="List what a response answers",
        description="The items of its conversation, those of the responses before it too, without instructions.",
        parameters=(
            _ID,
            Parameter("limit", "query", "Items at most; 20.", {"type": "integer", "minimum": 1, "maximum": 100}),
            _ORDER,
            Parameter("after", "query", "The id of the last item that was received.", TEXT),
        ),
        answers=(Answer(200, "Some of them", InputItemList),),
        problems=("file_missing", "invalid_cursor", "invalid_query", "job_not_found"),
    ),
}

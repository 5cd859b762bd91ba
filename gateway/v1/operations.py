"""What the routes of OpenAI's API do, for ``/openapi.json``."""

from gateway.openapi import EVENTS, RATE_HEADERS, Answer, Content, Operation, Operations, Parameter
from gateway.parameters import HOW_TO_RUN, HOW_TO_RUN_PROBLEMS, TEXT
from gateway.v1.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from gateway.v1.schemas import ChatCompletion, EmbeddingList, Model, ModelList, TextCompletion

ANSWER_HEADERS = ("x-request-id", "X-Cache", "Idempotent-Replayed", *RATE_HEADERS)
SUBMIT_PROBLEMS = (
    *HOW_TO_RUN_PROBLEMS,
    "empty_body",
    "file_missing",
    "gateway_stopping",
    "invalid_json",
    "invalid_query",
    "invalid_request",
    "url_not_fetched",
)
_STREAM = (
    "A chunk an event, each with an id that it goes on after, and `[DONE]` at the end. An error is the last event."
)
_FOLLOWED = ("invalid_event_id", "stream_expired", "stream_restarted")
_ANY_ANSWER = {
    "anyOf": [{"$ref": f"#/components/schemas/{answer.__name__}"} for answer in (ChatCompletion, TextCompletion)]
}


def _generation(summary: str, body: Content, answer: Content) -> Operation:
    return Operation(
        tag="openai",
        summary=summary,
        description=(
            "As OpenAI's API has it. The answer is that of a job, which outlives crashes. A client that goes away "
            "cancels it, unless it gave an `Idempotency-Key` or the model is configured otherwise. " + _STREAM
        ),
        parameters=HOW_TO_RUN,
        body={"application/json": body},
        answers=(
            Answer(200, "The answer, or with `stream` its pieces as they are generated", answer, ANSWER_HEADERS),
            Answer(200, "Its pieces", {"type": "string"}, media_type=EVENTS),
        ),
        problems=(*SUBMIT_PROBLEMS, *_FOLLOWED),
        waits=True,
    )


V1_OPERATIONS: Operations = {
    ("POST", "/v1/chat/completions"): _generation("Answer a chat", ChatCompletionRequest, ChatCompletion),
    ("POST", "/v1/completions"): _generation("Complete a text", CompletionRequest, TextCompletion),
    ("POST", "/v1/embeddings"): Operation(
        tag="openai",
        summary="Turn texts into vectors",
        parameters=HOW_TO_RUN,
        body={"application/json": EmbeddingRequest},
        answers=(Answer(200, "A vector for each input", EmbeddingList, ANSWER_HEADERS),),
        problems=SUBMIT_PROBLEMS,
        waits=True,
    ),
    ("GET", "/v1/chat/completions/{id}"): Operation(
        tag="openai",
        summary="Get an answer again, or go on with its stream",
        description="Of chats and of completions, while they are generated and as long as the job is kept. " + _STREAM,
        parameters=(
            Parameter("id", "path", "The id of the answer, or `x-request-id`.", TEXT),
            Parameter("stream", "query", "`true`: its pieces.", {"type": "string", "enum": ["true", "false"]}),
            Parameter("Last-Event-ID", "header", "The last event that was received: what follows it is sent.", TEXT),
        ),
        answers=(
            Answer(200, "The answer, or its pieces", _ANY_ANSWER, ("x-request-id",)),
            Answer(200, "Its pieces", {"type": "string"}, media_type=EVENTS),
        ),
        problems=("file_missing", "gateway_stopping", "invalid_query", "job_not_found", *_FOLLOWED),
        waits=True,
    ),
    ("GET", "/v1/models"): Operation(
        tag="openai",
        summary="List the models, with all names that they have",
        answers=(Answer(200, "The models", ModelList),),
    ),
    ("GET", "/v1/models/{model}"): Operation(
        tag="openai",
        summary="Look a model up",
        parameters=(Parameter("model", "path", "Its name.", TEXT),),
        answers=(Answer(200, "The model", Model),),
        problems=("model_not_found",),
    ),
}

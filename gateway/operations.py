"""What every route does, for ``/openapi.json``. A route that is missing here fails a contract test."""

from importlib.metadata import version
from typing import Any, Literal, get_args

from pydantic import BaseModel

from broker.job import Status
from config.models import Resolution
from gateway.admin.cache import CACHE_OPERATIONS
from gateway.admin.operations import ADMIN_OPERATIONS
from gateway.answer_operations import ANSWER_OPERATIONS
from gateway.documents.operations import OCR_OPERATIONS
from gateway.openapi import RATE_HEADERS, Answer, Operation, Operations, Parameter
from gateway.parameters import HOW_TO_RUN, HOW_TO_RUN_PROBLEMS, JOB_ID, PREFER, TEXT, WAIT
from gateway.payloads import ChatRequest, OcrFields, OcrRequest
from gateway.query import LONGEST
from gateway.schemas import (
    Accepted,
    Body,
    Health,
    JobBody,
    JobList,
)
from gateway.v1.batches.operations import FILE_OPERATIONS
from gateway.v1.operations import V1_OPERATIONS
from gateway.v1.requests import EmbeddingRequest
from gateway.v1.responses.operations import RESPONSE_OPERATIONS
from gateway.webhooks.operations import WEBHOOK_OPERATIONS

VERSION = version("roundhouse")
DESCRIPTION = """\
Roundhouse keeps model engines warm and runs jobs on them: POST a document or a chat, and poll, or wait for, its
result. Get a token from `/auth/token` first. Errors are `application/problem+json` with a stable `code`.

Many jobs are followed on one connection by the WebSocket `/ws/jobs`, which OpenAPI cannot describe: see
`docs/websocket.md`."""


class TokenForm(Body):
    """`username` and `password` for the grant `password`, `refresh_token` for the grant of that name."""

    grant_type: Literal["password", "refresh_token"] = "password"
    username: str | None = None
    password: str | None = None
    refresh_token: str | None = None


class TokenBody(Body):
    access_token: str
    refresh_token: str
    token_type: Literal["bearer"]
    expires_in: int
    """Seconds that the access token lives."""


class TokenError(Body):
    """The error format of OAuth 2.0 (RFC 6749 section 5.2), with a stable `code` added."""

    error: Literal["invalid_grant", "invalid_request", "temporarily_unavailable", "unsupported_grant_type"]
    error_description: str
    code: Literal[
        "invalid_credentials",
        "invalid_grant",
        "invalid_request",
        "payload_too_large",
        "rate_limited",
        "unsupported_grant_type",
    ]


_RESOLUTION = Parameter(
    "X-Resolution",
    "header",
    "The mode of models that have several.",
    {"type": "string", "enum": [*get_args(Resolution)]},
)
_CACHE_CONTROL = Parameter(
    "Cache-Control",
    "header",
    "`no-cache`: read it anew. Else a document of yours that the same model has read whole before, with the same "
    "options, is answered with what was read then: such a job is completed as it is accepted.",
    TEXT,
)
_SUBMIT_PARAMETERS = (*HOW_TO_RUN, PREFER, WAIT)


def _query_of(model: type[BaseModel], note: str) -> tuple[Parameter, ...]:
    """A model's fields as query parameters. ``null`` is left out: in a query a field is there or it is not."""
    found = []
    for name, schema in model.model_json_schema()["properties"].items():
        described = {"anyOf": [kind for kind in schema["anyOf"] if kind.get("type") != "null"]}
        for kind in described["anyOf"]:
            if kind.get("type") == "string" and "enum" not in kind:
                kind["maxLength"] = min(kind.get("maxLength", LONGEST), LONGEST)
        shape = described["anyOf"][0] if len(described["anyOf"]) == 1 else described
        found.append(Parameter(name, "query", f"{schema.get('description', '')} {note}".strip(), shape))
    return tuple(found)


def _form_of(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    file = {"type": "string", "contentMediaType": "application/octet-stream", "description": "The document."}
    return {
        "type": "object",
        "properties": {"file": file, **schema["properties"]},
        "required": ["file"],
        "additionalProperties": False,
    }


# The media types are no more than customary: the document's type is told from its bytes.
_DOCUMENTS = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff", "application/pdf")
_SUBMIT_ANSWERS = (
    Answer(
        200,
        "The job ended within the wait that was asked for; its `status` says how",
        JobBody,
        ("Location", "Preference-Applied", "Idempotent-Replayed", "X-Cache", *RATE_HEADERS),
    ),
    Answer(
        202,
        "The job is stored and will be run",
        Accepted,
        ("Location", "Preference-Applied", "Idempotent-Replayed", "X-Cache", *RATE_HEADERS),
    ),
)
_SUBMIT_PROBLEMS = (
    *HOW_TO_RUN_PROBLEMS,
    "empty_body",
    "file_missing",
    "invalid_json",
    "invalid_query",
    "invalid_request",
    "no_default_model",
)

OPERATIONS: Operations = {
    ("GET", "/health"): Operation(
        tag="service",
        summary="Whether jobs are accepted",
        parameters=(
            Parameter(
                "detail",
                "query",
                "1: with the database, the workers and the models.",
                {"type": "string", "enum": ["0", "1"]},
            ),
        ),
        answers=(
            Answer(200, "Jobs are accepted", Health),
            Answer(503, "No job can be accepted just now", Health, ("Retry-After",)),
        ),
        public=True,
    ),
    ("POST", "/auth/token"): Operation(
        tag="service",
        summary="Get a token",
        description="The password and refresh grants of OAuth 2.0 (RFC 6749 sections 4.3 and 6).",
        body={"application/x-www-form-urlencoded": TokenForm},
        answers=(
            Answer(200, "A token for requests, and one to get the next with", TokenBody),
            Answer(400, "The form or what it claims is wrong", TokenError),
            Answer(413, "The form is too long", TokenError),
            Answer(429, "Too many wrong passwords for this name", TokenError, ("Retry-After", *RATE_HEADERS)),
        ),
        public=True,
    ),
    ("POST", "/api/ocr"): Operation(
        tag="jobs",
        summary="Submit a document to be read",
        description=(
            "Three ways in: JSON with OpenAI-style `messages` that hold the document as a `data:` URL; a form with "
            "the field `file`; or the document itself as the body. JPEG, PNG, WebP, BMP, TIFF and PDF are read, told "
            "apart by their bytes."
        ),
        parameters=(
            *_SUBMIT_PARAMETERS,
            _RESOLUTION,
            _CACHE_CONTROL,
            *_query_of(OcrFields, "Only where the body is the document itself."),
        ),
        body={
            "application/json": OcrRequest,
            "multipart/form-data": _form_of(OcrFields),
            **{media_type: {} for media_type in _DOCUMENTS},
            "application/octet-stream": {},
        },
        answers=_SUBMIT_ANSWERS,
        problems=(
            *_SUBMIT_PROBLEMS,
            "invalid_base64",
            "invalid_multipart",
            "invalid_resolution",
            "no_file",
            "several_documents",
            "unsupported_media_type",
            "url_not_allowed",
        ),
    ),
    ("POST", "/api/chat"): Operation(
        tag="jobs",
        summary="Submit a chat to be answered",
        description="OpenAI-style `messages`, or `message` with `system` as a shorthand.",
        parameters=_SUBMIT_PARAMETERS,
        body={"application/json": ChatRequest},
        answers=_SUBMIT_ANSWERS,
        problems=_SUBMIT_PROBLEMS,
    ),
    ("POST", "/api/embeddings"): Operation(
        tag="jobs",
        summary="Submit texts to be turned into vectors",
        parameters=_SUBMIT_PARAMETERS,
        body={"application/json": EmbeddingRequest},
        answers=_SUBMIT_ANSWERS,
        problems=_SUBMIT_PROBLEMS,
    ),
    ("GET", "/api/jobs"): Operation(
        tag="jobs",
        summary="List your jobs, newest first",
        description="An admin sees everybody's.",
        parameters=(
            Parameter("status", "query", "Only these.", {"type": "string", "enum": [*Status]}),
            Parameter("model", "query", "Only those of this model.", TEXT),
            Parameter("client", "query", "Only those with this `X-Client-ID`.", TEXT),
            Parameter("cursor", "query", "`next_cursor` of the list before.", TEXT),
            Parameter("limit", "query", "How many.", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}),
        ),
        answers=(Answer(200, "Jobs, and where to go on", JobList),),
        problems=("invalid_cursor", "invalid_query"),
    ),
    ("GET", "/api/jobs/{id}"): Operation(
        tag="jobs",
        summary="Look a job up, or wait for it",
        parameters=(JOB_ID, PREFER, WAIT),
        answers=(Answer(200, "The job, with its result if it is completed", JobBody, ("Preference-Applied",)),),
        problems=("file_missing", "invalid_wait", "job_not_found"),
    ),
    ("DELETE", "/api/jobs/{id}"): Operation(
        tag="jobs",
        summary="Cancel a job",
        description="Final at once, also while the job is processing. To cancel twice is no error.",
        parameters=(JOB_ID,),
        answers=(Answer(200, "The cancelled job", JobBody),),
        problems=("job_finished", "job_not_found"),
    ),
    **OCR_OPERATIONS,
    **ANSWER_OPERATIONS,
    **WEBHOOK_OPERATIONS,
    **V1_OPERATIONS,
    **FILE_OPERATIONS,
    **RESPONSE_OPERATIONS,
    **ADMIN_OPERATIONS,
    **CACHE_OPERATIONS,
    ("GET", "/openapi.json"): Operation(
        tag="service",
        summary="This document",
        answers=(Answer(200, "OpenAPI 3.1", {"type": "object"}),),
        public=True,
        database=False,
    ),
    ("GET", "/docs"): Operation(
        tag="service",
        summary="This document as a page to read and to try",
        answers=(Answer(200, "Swagger UI", {"type": "string"}, media_type="text/html"),),
        public=True,
        database=False,
    ),
    ("GET", "/docs/openapi.json"): Operation(
        tag="service",
        summary="This document in OpenAPI 3.0, for tools that read no later one",
        answers=(Answer(200, "OpenAPI 3.0", {"type": "object"}),),
        public=True,
        database=False,
    ),
}

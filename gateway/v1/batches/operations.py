"""What the routes of files and batches do, for ``/openapi.json``."""

from collections.abc import Mapping
from typing import Any, get_args

from gateway.openapi import RATE_HEADERS, Answer, Operation, Operations, Parameter
from gateway.v1.batches.files import Purpose
from gateway.v1.batches.routes import BatchRequest
from gateway.v1.batches.schemas import BatchList, BatchObject, DeletedFile, FileList, FileObject

_TEXT: Mapping[str, Any] = {"type": "string"}
_BYTES: Mapping[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream"}
_FILE_ID = Parameter("id", "path", "The file's id.", _TEXT)
_BATCH_ID = Parameter("id", "path", "The batch's id.", _TEXT)
_AFTER = Parameter("after", "query", "`last_id` of the list before.", _TEXT)
_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "file": {**_BYTES, "description": "Of 200 MB at most."},
        "purpose": {
            "type": "string",
            "enum": [*get_args(Purpose)],
            "description": "`batch`: requests for a batch, one JSON object a line. `user_data`: kept for you.",
        },
    },
    "required": ["file", "purpose"],
    "additionalProperties": False,
}


def _limit(default: int, most: int) -> Parameter:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Parameter("limit", "query", "How many.", schema)


_FILE_OPERATIONS: Operations = {
    ("POST", "/v1/files"): Operation(
        tag="openai",
        summary="Send a file",
        description="A file that no batch needs is kept as long as the history.",
        body={"multipart/form-data": _FORM},
        answers=(Answer(200, "The file", FileObject, RATE_HEADERS),),
        problems=(
            "empty_body",
            "file_too_slow",
            "invalid_multipart",
            "invalid_request",
            "no_file",
            "payload_too_large",
            "rate_limited",
            "several_documents",
            "unsupported_media_type",
        ),
    ),
    ("GET", "/v1/files"): Operation(
        tag="openai",
        summary="List your files, newest first",
        description="An admin sees everybody's.",
        parameters=(
            _AFTER,
            _limit(1000, 10_000),
            Parameter("order", "query", "By age.", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}),
            Parameter("purpose", "query", "Only those.", _TEXT),
        ),
        answers=(Answer(200, "Files", FileList),),
        problems=("invalid_cursor", "invalid_query"),
    ),
    ("GET", "/v1/files/{id}"): Operation(
        tag="openai",
        summary="Look a file up",
        parameters=(_FILE_ID,),
        answers=(Answer(200, "The file", FileObject),),
        problems=("file_not_found",),
    ),
    ("DELETE", "/v1/files/{id}"): Operation(
        tag="openai",
        summary="Delete a file",
        description="Not while a batch reads it.",
        parameters=(_FILE_ID,),
        answers=(Answer(200, "It is gone", DeletedFile),),
        problems=("file_in_use", "file_not_found"),
    ),
    ("GET", "/v1/files/{id}/content"): Operation(
        tag="openai",
        summary="Get what a file holds",
        parameters=(_FILE_ID,),
        answers=(Answer(200, "Its bytes", dict(_BYTES), media_type="application/octet-stream"),),
        problems=("file_missing", "file_not_found"),
    ),
}

FILE_OPERATIONS: Operations = {
    **_FILE_OPERATIONS,
    ("POST", "/v1/batches"): Operation(
        tag="openai",
        summary="Run the requests of a file",
        description=(
            "Up to 50,000 requests to one model, as ordinary jobs of low priority that take at most half of the "
            "model's places. The answers come in files, in the order of the requests."
        ),
        parameters=(
            Parameter(
                "X-Client-ID",
                "header",
                "A label of your own for its jobs.",
                {"type": "string", "minLength": 1, "maxLength": 128},
            ),
            Parameter(
                "X-Priority",
                "header",
                "Of its jobs; the role caps it. Without it: low.",
                {"type": "string", "enum": ["high", "normal", "low"]},
            ),
            Parameter("X-Timeout", "header", "Seconds for each attempt at a request.", _TEXT),
            Parameter(
                "X-Cache",
                "header",
                "Whether earlier answers may be used for its requests; without it as the model's entry says.",
                {"type": "string", "enum": ["on", "off"]},
            ),
            Parameter(
                "Idempotency-Key",
                "header",
                "The same key with the same body gives the same batch, with `Idempotent-Replayed: true`.",
                {"type": "string", "minLength": 1, "maxLength": 255},
            ),
        ),
        body={"application/json": BatchRequest},
        answers=(Answer(200, "The batch, whose file is about to be validated", BatchObject, RATE_HEADERS),),
        problems=(
            "empty_body",
            "file_not_found",
            "idempotency_conflict",
            "invalid_cache",
            "invalid_client_id",
            "invalid_idempotency_key",
            "invalid_json",
            "invalid_priority",
            "invalid_request",
            "invalid_timeout",
            "invalid_wait",
            "invalid_webhook",
            "payload_too_large",
            "priority_not_allowed",
            "rate_limited",
            "too_many_batches",
        ),
    ),
    ("GET", "/v1/batches"): Operation(
        tag="openai",
        summary="List your batches, newest first",
        description="An admin sees everybody's.",
        parameters=(_AFTER, _limit(20, 100)),
        answers=(Answer(200, "Batches", BatchList),),
        problems=("invalid_cursor", "invalid_query"),
    ),
    ("GET", "/v1/batches/{id}"): Operation(
        tag="openai",
        summary="Look a batch up",
        parameters=(_BATCH_ID,),
        answers=(Answer(200, "The batch, with how many of its requests have ended", BatchObject),),
        problems=("batch_not_found",),
    ),
    ("POST", "/v1/batches/{id}/cancel"): Operation(
        tag="openai",
        summary="Cancel a batch",
        description="What was answered before is still given. To cancel twice is no error.",
        parameters=(_BATCH_ID,),
        answers=(Answer(200, "The batch", BatchObject),),
        problems=("batch_finished", "batch_not_found"),
    ),
}

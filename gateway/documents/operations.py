"""What the routes on results, pages, files and events do, for ``/openapi.json``."""

from collections.abc import Mapping
from typing import Any

from pydantic import RootModel

from gateway.documents.result_formats import MEDIA_TYPES
from gateway.documents.schemas import (
    DocumentResult,
    EndEvent,
    Page,
    PageEvent,
    ProgressEvent,
    RestartEvent,
    StateEvent,
    TokenEvent,
)
from gateway.openapi import EVENTS, Answer, Operation, Operations, Parameter

_TEXT: Mapping[str, Any] = {"type": "string"}
_FLAG: Mapping[str, Any] = {"type": "string", "enum": ["true", "1", "false", "0"]}
_NUMBER: Mapping[str, Any] = {"type": "integer", "minimum": 1}
_BYTES: Mapping[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream"}
_JOB_ID = Parameter("id", "path", "The job's `request_id`.", _TEXT)


class ResultBody(RootModel[DocumentResult | dict[str, Any]]):
    """A document that was read; of a job on no document what `GET /api/jobs/{id}` has as `result`."""


class EventData(RootModel[StateEvent | PageEvent | ProgressEvent | TokenEvent | RestartEvent | EndEvent]):
    """What an event's `data` holds, as JSON."""


def _media(name: str) -> str:
    return MEDIA_TYPES[name].partition(";")[0]


OCR_OPERATIONS: Operations = {
    ("GET", "/api/jobs/{id}/result"): Operation(
        tag="documents",
        summary="The result of a job in one of several formats",
        description=(
            "Only of a job that is completed. A page that could not be read is marked with why in each format, and a "
            "blank one is there too. `json`: the pages with their blocks. `markdown`: each page under a comment with "
            "its number; figures are referred to as `files/NAME`, which is where they are from here. `text`: pages are "
            "separated by form feeds. `html`: one document of which nothing can run, with up to 2 MB of each page's "
            "figures inside; what is beyond that is referred to as in markdown. `zip`: all of these, with the figures "
            "and the pictures of the pages. `pdf`: the searchable PDF, if one was asked for. With `overlay`: the "
            "picture of a page with the boxes of its blocks drawn over it, also while others are still being read."
        ),
        parameters=(
            _JOB_ID,
            Parameter("format", "query", "The default is `json`.", {"type": "string", "enum": [*MEDIA_TYPES]}),
            Parameter("overlay", "query", "1: instead of the result, a page's picture as SVG.", _FLAG),
            Parameter("page", "query", "The page for `overlay`; the default is 1.", _NUMBER),
        ),
        answers=(
            Answer(200, "The result", ResultBody),
            *(Answer(200, "", dict(_TEXT), media_type=_media(name)) for name in ("markdown", "text", "html")),
            *(Answer(200, "", dict(_BYTES), media_type=_media(name)) for name in ("zip", "pdf")),
            Answer(200, "", dict(_TEXT), media_type="image/svg+xml"),
        ),
        problems=(
            "file_missing",
            "file_not_found",
            "format_not_available",
            "invalid_query",
            "job_not_finished",
            "job_not_found",
            "job_without_result",
            "no_searchable_pdf",
            "page_not_finished",
            "page_not_found",
        ),
    ),
    ("GET", "/api/jobs/{id}/pages/{number}"): Operation(
        tag="documents",
        summary="A page, as soon as it is read",
        parameters=(_JOB_ID, Parameter("number", "path", "The page's number in the document, from 1.", _NUMBER)),
        answers=(Answer(200, "The page, read, blank or failed", Page),),
        problems=("job_not_found", "page_not_finished", "page_not_found"),
    ),
    ("GET", "/api/jobs/{id}/files/{name}"): Operation(
        tag="documents",
        summary="A figure, the picture of a page, or the searchable PDF",
        parameters=(_JOB_ID, Parameter("name", "path", "As the result or a page tells it.", _TEXT)),
        answers=tuple(
            Answer(200, "The file", dict(_BYTES), media_type=media_type)
            for media_type in ("image/jpeg", "image/png", "application/pdf")
        ),
        problems=("file_missing", "file_not_found", "job_not_found"),
    ),
    ("GET", "/api/jobs/{id}/events"): Operation(
        tag="documents",
        summary="How a job comes along, as server-sent events",
        description=(
            "`state` when the job's state changes, `page` when a page is begun or has come to its end, `progress`, "
            "`token` for each piece of an answer that was asked for with `stream`, and at last `end`. What has been so "
            "far is told first. Whoever is cut off goes on by `Last-Event-ID`, on any gateway, without missing a page "
            "or a token; states that were over meanwhile are not told. Where a worker or an engine was lost, `restart` "
            "says that all tokens before it are void. A comment comes every 15 seconds (`server.heartbeat`). The "
            "stream ends with the job, and when the gateway is stopped."
        ),
        parameters=(
            _JOB_ID,
            Parameter("Last-Event-ID", "header", "The `id` of the last event that was received.", _TEXT),
        ),
        answers=(
            Answer(200, "The events", EventData, media_type=EVENTS),
            Answer(204, "The last event that was received was `end`: there is nothing to come"),
        ),
        problems=("job_not_found",),
    ),
}

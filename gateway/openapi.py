"""``/openapi.json`` (OpenAPI 3.1), made from Starlette's routes, the table of operations and the pydantic models."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.routing import BaseRoute, Route

from gateway.problems import MEDIA_TYPE, STATUS

Schema = dict[str, Any]
Content = type[BaseModel] | Schema
"""A model, or a schema written out where no model says it."""

_REF = "#/components/schemas/{model}"
_METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH")


EVENTS = "text/event-stream"
# Where errors have OpenAI's shape.
_V1 = "/v1/"


class ProblemBody(BaseModel):
    """What went wrong (RFC 9457). `code` is stable; `detail` is for people. Some codes add members of their own."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class ErrorDetail(BaseModel):
    """`param`: the part of the request that is at fault, where it is one. `code`: stable, as elsewhere."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error as OpenAI's API has it."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Parameter:
    """``schema``: as OpenAPI has it."""

    name: str
    place: Literal["path", "query", "header"]
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with which nothing went wrong, or one that has a shape of its own though something did."""

    status: int
    description: str
    content: Content | None = None
    headers: tuple[str, ...] = ()
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """What one route does with one method, as its clients should know it.

    ``problems``: the codes that it may answer with, besides those that any route may. ``body``: media type → what
    it holds. ``public``: needs no token. ``role``: the one that the token has to have. ``waits``: the answer is that
    of a job, or how the job has failed.
    """

    tag: str
    summary: str
    answers: tuple[Answer, ...]
    problems: tuple[str, ...] = ()
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Content] | None = None
    public: bool = False
    role: str | None = None
    database: bool = True
    waits: bool = False

    def codes(self) -> list[str]:
        """All codes that may be answered, each once."""
        codes = ["internal_error", *self.problems]
        if not self.public:
            codes += ["token_missing", "token_expired", "token_invalid"]
        if self.role:
            codes.append("forbidden")
        if self.database:
            codes.append("database_unavailable")
        return sorted(set(codes))


Operations = Mapping[tuple[str, str], Operation]
"""(method, path as clients write it, e.g. ``/api/jobs/{id}``) → operation."""

HEADERS: Mapping[str, Schema] = {
    "Idempotent-Replayed": {
        "description": "`true`: the answer of the job that the same request has made before.",
        "schema": {"type": "string", "const": "true"},
    },
    "Location": {"description": "Where the job is.", "schema": {"type": "string", "format": "uri-reference"}},
    "Preference-Applied": {"description": "The wait that was granted.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}},
    "WWW-Authenticate": {"description": "What the token lacked.", "schema": {"type": "string"}},
    "X-Cache": {
        "description": "Whether an earlier answer was used; only where one might have been.",
        "schema": {"type": "string", "enum": ["hit", "miss"]},
    },
    "x-request-id": {
        "description": "The job's id: it can be looked up, and its answer followed, by that.",
        "schema": {"type": "string"},
    },
    "x-ratelimit-limit-requests": {
        "description": "Requests that may come at once.",
        "schema": {"type": "integer"},
    },
    "x-ratelimit-remaining-requests": {
        "description": "Requests that may come now.",
        "schema": {"type": "integer"},
    },
    "x-ratelimit-reset-requests": {
        "description": "How long until all may come at once again, e.g. `1.5s`.",
        "schema": {"type": "string"},
    },
}
RATE_HEADERS = tuple(name for name in HEADERS if name.startswith("x-ratelimit"))
_PROBLEM_HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After", *RATE_HEADERS), 503: ("Retry-After",)}
# How a job may fail that is waited for: by its engine's refusal, its end before its time, ours or the upstream's fault.
_FAILURES = (400, 404, 409, 413, 415, 422, 500, 502, 504)
_CODE_HEADERS = {"job_not_finished": ("Retry-After",), "page_not_finished": ("Retry-After",)}


def endpoints(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str, str]]:
    """(method, path, name) of every route of the API. Mounts hold files, and are no part of it."""
    for route in routes:
        if isinstance(route, Route) and route.include_in_schema:
            for method in _METHODS:
                if method in (route.methods or ()):
                    yield method, route.path_format, route.name


def document(routes: Sequence[BaseRoute], operations: Operations, version: str, description: str) -> Schema:
    """The OpenAPI document. Raises KeyError for a route that is not in ``operations``."""
    schemas = _Schemas(operations.values())
    paths: dict[str, Schema] = {}
    for method, path, name in endpoints(routes):
        paths.setdefault(path, {})[method.lower()] = _operation(operations[method, path], name, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Roundhouse",
            "version": version,
            "description": description,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"bearer": []}, {"password": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "headers": dict(HEADERS),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "password": {
                    "type": "oauth2",
                    "flows": {"password": {"tokenUrl": "/auth/token", "refreshUrl": "/auth/token", "scopes": {}}},
                },
            },
        },
    }


class _Schemas:
    """The schemas of all models that operations speak of."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        wanted: set[tuple[type[BaseModel], JsonSchemaMode]] = {
            (ProblemBody, "serialization"),
            (ErrorBody, "serialization"),
        }
        for operation in operations:
            wanted |= {(body, "validation") for body in (operation.body or {}).values() if isinstance(body, type)}
            wanted |= {
                (answer.content, "serialization") for answer in operation.answers if isinstance(answer.content, type)
            }
        ordered = sorted(wanted, key=lambda item: (item[0].__name__, item[1]))
        self._references, found = models_json_schema(ordered, ref_template=_REF)
        self.definitions: Schema = found["$defs"]

    def of(self, content: Content, mode: JsonSchemaMode) -> Schema:
        return dict(self._references[content, mode]) if isinstance(content, type) else dict(content)


def _operation(operation: Operation, name: str, path: str, schemas: _Schemas) -> Schema:
    described: Schema = {
        "tags": [operation.tag],
        "operationId": name,
        "summary": operation.summary,
        "responses": _responses(operation, path, schemas),
    }
    if operation.description:
        described["description"] = operation.description
    if operation.parameters:
        described["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.body is not None:
        content = {media: {"schema": schemas.of(body, "validation")} for media, body in operation.body.items()}
        described["requestBody"] = {"required": True, "content": content}
    if operation.public:
        described["security"] = []
    return described


def _parameter(parameter: Parameter) -> Schema:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }


def _responses(operation: Operation, path: str, schemas: _Schemas) -> dict[str, Schema]:
    responses: dict[int, Schema] = {}
    for answer in operation.answers:
        # Answers of one status differ in their media types, and are described by the first.
        response = responses.setdefault(answer.status, {"description": answer.description})
        if answer.content is not None:
            content = schemas.of(answer.content, "serialization")
            if answer.media_type == EVENTS:
                content = _event(content)
            response.setdefault("content", {})[answer.media_type] = {"schema": content}
        _add_headers(response, answer.headers)
    grouped = _by_status(operation.codes())
    for status, codes in grouped.items():
        response = responses.setdefault(status, {"description": HTTPStatus(status).phrase})
        response["description"] += f": {', '.join(f'`{code}`' for code in codes)}"
        _add_error(response, path, codes, schemas)
        for headers in (_PROBLEM_HEADERS.get(status, ()), *(_CODE_HEADERS.get(code, ()) for code in codes)):
            _add_headers(response, headers)
    for status in _FAILURES if operation.waits else ():
        response = responses.setdefault(status, {"description": HTTPStatus(status).phrase})
        response["description"] += "; or the job has failed so, and `code` is the job's"
        response.setdefault("content", {}).update(_error_content(path, schemas))
    return {str(status): responses[status] for status in sorted(responses)}


def _event(data: Schema) -> Schema:
    """Each event of a stream, in the words of OpenAPI 3.2, as older ones have none. ``data``: what it holds."""
    text: Schema = {"type": "string"}
    if data != text:
        text |= {"contentMediaType": "application/json", "contentSchema": data}
    properties = {"id": {"type": "string"}, "event": {"type": "string"}, "data": text}
    return {"type": "object", "properties": properties, "required": ["data"]}


def _add_error(response: Schema, path: str, codes: list[str], schemas: _Schemas) -> None:
    if path.startswith(_V1):
        response.setdefault("content", {}).update(_error_content(path, schemas))
    else:
        response.setdefault("content", {})[MEDIA_TYPE] = {"schema": _problem_schema(codes, schemas)}


def _by_status(codes: Iterable[str]) -> dict[int, list[str]]:
    grouped: dict[int, list[str]] = {}
    for code in codes:
        grouped.setdefault(STATUS[code], []).append(code)
    return grouped


def _error_content(path: str, schemas: _Schemas) -> Schema:
    if path.startswith(_V1):
        return {"application/json": {"schema": schemas.of(ErrorBody, "serialization")}}
    return {MEDIA_TYPE: {"schema": schemas.of(ProblemBody, "serialization")}}


def _problem_schema(codes: list[str], schemas: _Schemas) -> Schema:
    return {
        "allOf": [
            schemas.of(ProblemBody, "serialization"),
            {"type": "object", "properties": {"code": {"enum": codes}}},
        ]
    }


def _add_headers(response: Schema, names: Iterable[str]) -> None:
    for name in names:
        response.setdefault("headers", {})[name] = {"$ref": f"#/components/headers/{name}"}

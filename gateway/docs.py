"""``/openapi.json`` and ``/docs``: the API for programs and as a page (Swagger UI), all of it served from here."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from gateway.openapi import Schema, document
from gateway.operations import DESCRIPTION, OPERATIONS, VERSION

# Scripts and styles come from this server only. Style attributes, which Swagger UI writes, cannot run anything.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "style-src-attr 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# Addresses are relative, so that the page also works behind a proxy that puts a prefix before it.
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Roundhouse API</title>
<link rel="icon" type="image/png" href="docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript; the API is described in <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """\
SwaggerUIBundle({
  url: "docs/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
});
"""
_ASSETS = frozenset({"swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"})


class Assets(StaticFiles):
    """The files of Swagger UI that the page asks for, and none of the others: its own page loads a stranger's API."""

    def __init__(self) -> None:
        super().__init__(directory=_assets_directory())

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path not in _ASSETS:
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers.update({**SECURITY_HEADERS, "Cache-Control": "public, max-age=86400"})
        return response


def _assets_directory() -> Path:
    """Where the package keeps Swagger UI: a folder that is named by its version."""
    [bundle] = Path(str(files("swagger_ui_bundle"))).glob("vendor/*/swagger-ui-bundle.js")
    return bundle.parent


def document_of(app: Starlette) -> Schema:
    """The OpenAPI document of an application, made once."""
    if not hasattr(app.state, "openapi"):
        app.state.openapi = document(app.routes, OPERATIONS, VERSION, DESCRIPTION)
    made: Schema = app.state.openapi
    return made


async def openapi(request: Request) -> Response:
    return JSONResponse(document_of(request.app))


async def docs(_: Request) -> Response:
    return HTMLResponse(_PAGE, headers=SECURITY_HEADERS)


async def start_script(_: Request) -> Response:
    return Response(_START, headers=SECURITY_HEADERS, media_type="text/javascript")


async def openapi_30(request: Request) -> Response:
    return JSONResponse(as_openapi_30(document_of(request.app)), headers=SECURITY_HEADERS)


DOCS_ROUTES: list[BaseRoute] = [
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/docs", docs, methods=["GET"]),
    Route("/docs/openapi.json", openapi_30, methods=["GET"]),
    Route("/docs/start.js", start_script, methods=["GET"], include_in_schema=False),
    Mount("/docs/assets", Assets(), name="docs-assets"),
]


def as_openapi_30(document: Schema) -> Schema:
    """An OpenAPI 3.1 document in the words of 3.0.3: the Swagger UI that is packaged for Python reads no later one.

    Knows those keywords of JSON Schema in which the two differ and that pydantic or this gateway use.
    """
    told: Schema = _schemas_30(document)
    told["openapi"] = "3.0.3"
    told["info"] = {**document["info"], "license": {"name": document["info"]["license"]["name"]}}
    return told


# Nothing but null: for that 3.0 has no type.
_NULL: Schema = {"type": "string", "nullable": True, "enum": [None]}


def _schemas_30(value: Any) -> Any:
    if isinstance(value, list):
        return [_schemas_30(item) for item in value]
    if not isinstance(value, dict):
        return value
    schema = {key: _schemas_30(item) for key, item in value.items()}
    _without_null(schema)
    if "default" in schema and schema["default"] is None:
        del schema["default"]
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    if isinstance(schema.get("examples"), list):
        schema["example"] = schema.pop("examples")[0]
    if "contentMediaType" in schema:
        binary = schema.pop("contentMediaType") == "application/octet-stream"
        schema |= {"format": "binary"} if binary else {}
        schema.pop("contentSchema", None)
    schema.pop("propertyNames", None)
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        limit = schema.get(exclusive)
        if isinstance(limit, int | float) and not isinstance(limit, bool):
            schema |= {bound: limit, exclusive: True}
    if "$ref" in schema and len(schema) > 1:
        schema["allOf"] = [{"$ref": schema.pop("$ref")}]
    return schema


def _without_null(schema: Schema) -> None:
    """``null`` among the types of a schema becomes ``nullable``."""
    if schema.get("type") == "null":
        schema |= _NULL
    kinds = schema.get("anyOf")
    if not isinstance(kinds, list):
        return
    others = [kind for kind in kinds if kind != _NULL]
    if len(others) < len(kinds):
        schema["nullable"] = True
        if len(others) == 1:
            del schema["anyOf"]
            schema |= others[0]
        else:
            schema["anyOf"] = others

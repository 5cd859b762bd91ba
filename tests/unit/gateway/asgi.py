"""Requests and apps for tests, by way of ASGI itself: no server, and every event in the test's hand."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import BaseRoute

from gateway.problems import EXCEPTION_HANDLERS, ProblemMiddleware


def request(
    body: bytes | list[bytes] = b"", headers: Mapping[str, str] | None = None, query: str = "", path: str = "/api/ocr"
) -> Request:
    """A POST request whose body arrives in these pieces. To ask for more than there is fails the test."""
    pieces = [body] if isinstance(body, bytes) else body
    events = iter(
        {"type": "http.request", "body": piece, "more_body": index < len(pieces) - 1}
        for index, piece in enumerate(pieces)
    )

    async def receive() -> dict[str, Any]:
        return next(events)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
    }
    return Request(scope, receive)


def application(routes: list[BaseRoute], *middleware: Middleware, shapes: Mapping[str, Any] | None = None) -> Starlette:
    return Starlette(
        routes=routes,
        exception_handlers=EXCEPTION_HANDLERS,
        middleware=[Middleware(ProblemMiddleware, shapes=shapes or {}), *middleware],
    )


@asynccontextmanager
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roundhouse") as http:
        yield http

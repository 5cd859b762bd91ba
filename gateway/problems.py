"""Errors as HTTP answers: ``application/problem+json`` (RFC 9457) with a stable ``code``.

Everything that a request may fail with ends in ``problem_for``, whether a route, a middleware or the router
raised it. The shape of the answer is chosen by path, so that an API with another error format has its place.
"""

import logging
import uuid
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from pymongo.errors import ConnectionFailure, PyMongoError, WaitQueueTimeoutError, WTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from config.errors import JSON, RoundhouseError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
# Seconds: an election takes a few, a restart of mongod about as long.
DATABASE_RETRY_AFTER = 2

STATUS: Mapping[str, int] = MappingProxyType(
    {
        # What this process answers by itself.
        "action_not_supported": 409,
        "already_subscribed": 409,
        "bad_request": 400,
        "cannot_start": 409,
        "empty_body": 400,
        "file_not_found": 404,
        "forbidden": 403,
        "format_not_available": 400,
        "gateway_stopping": 503,
        "internal_error": 500,
        "invalid_base64": 400,
        "invalid_cache": 400,
        "invalid_client_id": 400,
        "invalid_credentials": 400,
        "invalid_cursor": 400,
        "invalid_event_id": 400,
        "invalid_grant": 400,
        "invalid_idempotency_key": 400,
        "invalid_json": 400,
        "invalid_message": 400,
        "invalid_multipart": 400,
        "invalid_priority": 400,
        "invalid_query": 400,
        "invalid_request": 400,
        "invalid_resolution": 400,
        "invalid_timeout": 400,
        "invalid_wait": 400,
        "invalid_webhook": 400,
        "job_not_finished": 409,
        "job_without_result": 409,
        "method_not_allowed": 405,
        "model_ambiguous": 409,
        "model_not_allowed": 403,
        "model_not_running": 409,
        "no_default_model": 400,
        "no_file": 400,
        "no_searchable_pdf": 404,
        "not_changeable": 400,
        "not_found": 404,
        "origin_not_allowed": 403,
        "page_not_finished": 409,
        "page_not_found": 404,
        "payload_too_large": 413,
        "previous_response_not_completed": 400,
        "previous_response_not_found": 400,
        "priority_not_allowed": 403,
        "rate_limited": 429,
        "response_not_background": 400,
        "several_documents": 400,
        "stream_expired": 410,
        "stream_restarted": 409,
        "too_many_subscriptions": 429,
        "token_expired": 401,
        "token_invalid": 401,
        "token_missing": 401,
        "unknown_backend": 400,
        "unsupported_grant_type": 400,
        "unsupported_media_type": 415,
        "url_not_allowed": 400,
        "url_not_fetched": 400,
        "url_refused": 400,
        "webhooks_disabled": 403,
        "wrong_task": 400,
        # What the broker raises.
        "batch_finished": 409,
        "batch_not_found": 404,
        "file_in_use": 409,
        "database_unavailable": 503,
        "file_missing": 410,
        "file_too_slow": 408,
        "idempotency_conflict": 422,
        "job_finished": 409,
        "job_not_found": 404,
        "model_not_found": 404,
        "mongod_unavailable": 503,
        "queue_full": 503,
        "too_many_batches": 429,
    }
)
"""Which status each code is answered with. A code that is not listed is a mistake of ours: 500."""

# OutOfDiskSpace and, where the database is shutting down or loses its role, what it says of commands under way.
_AWAY = frozenset({14031, 91, 189, 11600, 11602})

_HTTP_CODES: Mapping[int, str] = MappingProxyType(
    {
        400: "bad_request",
        403: "forbidden",
        404: "not_found",
        405: "method_not_allowed",
        413: "payload_too_large",
        415: "unsupported_media_type",
    }
)


class Problem(RoundhouseError):
    """An error that only HTTP knows. ``code`` must be listed in ``STATUS``.

    ``details`` become members of the answer's body, next to the ones that RFC 9457 names.
    """

    def __init__(self, code: str, message: str, *, headers: Mapping[str, str] | None = None, **details: JSON) -> None:
        super().__init__(message, **details)
        self.code = code  # type: ignore[misc]
        self.status = STATUS[code]
        self.headers = dict(headers or {})

    def body(self) -> dict[str, JSON]:
        return {
            **self.details,
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.message,
            "code": self.code,
        }


Shape = Callable[[Problem], Response]
"""Turns a problem into an answer in one API's error format."""


def problem_response(problem: Problem) -> Response:
    return JSONResponse(problem.body(), problem.status, problem.headers, MEDIA_TYPE)


def problem_for(error: Exception, scope: Scope) -> Problem:
    """What to answer for ``error``. The unforeseen is logged with its traceback and an id that is shown."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RoundhouseError) and STATUS.get(error.code, 500) != 500:
        return _from_tree(error)
    if isinstance(error, HTTPException):
        return _from_http(error, scope)
    if isinstance(error, PyMongoError) and is_outage(error):
        logger.warning("%s %s: the database does not answer: %s", scope["method"], scope["path"], error)
        return Problem(
            "database_unavailable",
            f"The database does not answer; try again in {DATABASE_RETRY_AFTER} s.",
            headers={"Retry-After": str(DATABASE_RETRY_AFTER)},
        )
    incident = uuid.uuid4().urn
    logger.error("%s %s failed, %s", scope["method"], scope["path"], incident, exc_info=error)
    message = f"Something went wrong here; the log names it {incident}."
    return Problem("internal_error", message, instance=incident)


def is_outage(error: PyMongoError) -> bool:
    """Whether the database was away (or its majority was), rather than unwilling."""
    return (
        isinstance(error, ConnectionFailure | WaitQueueTimeoutError | WTimeoutError)
        or error.timeout
        or error.has_error_label("RetryableWriteError")
        or error.has_error_label("TransientTransactionError")
        or getattr(error, "code", None) in _AWAY
    )


def _from_tree(error: RoundhouseError) -> Problem:
    retry_after = getattr(error, "retry_after", None)
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Problem(error.code, error.message, headers=headers, **error.details)


def _from_http(error: HTTPException, scope: Scope) -> Problem:
    headers = dict(error.headers or {})
    code = _HTTP_CODES.get(error.status_code, "bad_request" if error.status_code < 500 else "internal_error")
    if code == "not_found":
        return Problem(code, f"There is nothing at {scope['path']}.", headers=headers)
    if code == "method_not_allowed":
        headers["Allow"] = ", ".join(_allowed_methods(scope)) or headers.get("Allow", "")
        return Problem(
            code, f"{scope['path']} does not take {scope['method']}, but {headers['Allow']}.", headers=headers
        )
    return Problem(code, error.detail, headers=headers)


def _allowed_methods(scope: Scope) -> list[str]:
    """The methods of all routes at this path: Starlette's own header names only those of the first."""
    app = scope.get("app")
    routes: list[BaseRoute] = [] if app is None else app.routes
    # ``matches`` reads path parameters of a mount from the scope; at this level there are none yet.
    plain = {**scope, "path_params": {}}
    found = (route for route in routes if route.matches(plain)[0] is not Match.NONE)
    return sorted({method for route in found for method in getattr(route, "methods", None) or ()})


_SHAPE = "roundhouse.error_shape"


def answer_for(error: Exception, scope: Scope) -> Response:
    """The answer for ``error`` in the error format of the path that was asked for."""
    shape: Shape = scope.get(_SHAPE, problem_response)
    return shape(problem_for(error, scope))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    return answer_for(error, request.scope)


EXCEPTION_HANDLERS: Mapping[Any, ExceptionHandler] = MappingProxyType({HTTPException: _on_http_exception})
"""For ``Starlette(exception_handlers=…)``: only what Starlette would else answer by itself, in plain text."""


class ProblemMiddleware:
    """The outermost middleware: whatever is raised beneath it is answered, or logged where it is too late to.

    ``shapes``: path prefix → error format, for paths that do not answer in problem+json.
    """

    def __init__(self, app: ASGIApp, shapes: Mapping[str, Shape] = MappingProxyType({})) -> None:
        self.app = app
        self.shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        for prefix, shape in self.shapes.items():
            if scope["path"] == prefix or scope["path"].startswith(f"{prefix}/"):
                scope[_SHAPE] = shape
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except ClientDisconnect:
            logger.debug("%s %s: the client went away", scope["method"], scope["path"])
        except Exception as error:
            # With half an answer sent, only a broken connection can tell the client that it is not whole.
            if started:
                raise
            await answer_for(error, scope)(scope, receive, send)

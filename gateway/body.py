"""Request bodies, never longer than they may be."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from config.errors import JSON
from gateway.problems import Problem

Model = TypeVar("Model", bound=BaseModel)
# Of a body that are told.
MOST_FAULTS = 100


def too_large(limit: int) -> Problem:
    """``limit`` in bytes."""
    return Problem("payload_too_large", f"The body is longer than {_size(limit)}, the most that is taken here.")


def _size(count: int) -> str:
    return f"{count / 2**20:.3g} MB" if count >= 2**20 else f"{count} bytes"


async def body_chunks(request: Request, limit: int, stated: int | None = None) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. Raises Problem ``payload_too_large`` as soon as it is known to exceed ``limit``.

    That is at once where Content-Length says so. ``stated``: the limit that the message names, if another.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large(stated or limit)
    received = 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            received += len(chunk)
            if received > limit:
                raise too_large(stated or limit)
            yield chunk


async def read_body(request: Request, limit: int, stated: int | None = None) -> bytes:
    async with aclosing(body_chunks(request, limit, stated)) as chunks:
        return b"".join([chunk async for chunk in chunks])


def parse_json(body: bytes) -> Any:
    """Raises Problem ``empty_body`` or ``invalid_json`` (NaN, lone surrogates and deep nesting included)."""
    if not body.strip():
        raise Problem("empty_body", "The request has no body.")
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Problem("invalid_json", f"The body is not valid JSON: {error}.") from error


def validated(model: type[Model], data: Any, *, within: tuple[str, ...] = ()) -> Model:
    """``data`` as ``model``. Raises Problem ``invalid_request`` with every fault and its path, ``within`` first."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = [
            {"loc": ".".join([*within, *_path(fault["loc"])]), "msg": fault["msg"]}
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise invalid_request(faults) from error


def invalid_request(faults: list[dict[str, str]]) -> Problem:
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    where = f"{first['loc']}: " if first["loc"] else ""
    errors: JSON = faults[:MOST_FAULTS]
    return Problem("invalid_request", f"{where}{first['msg']}{more}.", errors=errors)


def _path(location: tuple[int | str, ...]) -> list[str]:
    """The path in the body's own keys: pydantic puts the tag of a union's member in between."""
    return [str(item) for item in location if not (isinstance(item, str) and item.startswith("<"))]

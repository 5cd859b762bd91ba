"""Query parameters, checked."""

from starlette.requests import Request

from gateway.problems import Problem

# Characters of a value: a URL may have 64 KB in all, and a character takes up to twelve bytes there.
LONGEST = 2048
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def flag(request: Request, name: str, *, default: bool) -> bool:
    """Raises Problem ``invalid_query`` for what is neither true nor false."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if text not in _FLAGS:
        raise Problem("invalid_query", f"{name}={text!r} is neither true nor false.")
    return _FLAGS[text]


def integer(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """Raises Problem ``invalid_query`` for what is no whole number from ``least`` to ``most``."""
    text = request.query_params.get(name)
    if text is None:
        return default
    # Not int() alone: it takes «1_000» and other scripts' digits, too.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise Problem("invalid_query", f"{name}={text!r} is no whole number from {least} to {most}.")
    return int(text)

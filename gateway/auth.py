"""Who a request comes from: ``POST /auth/token`` gives tokens, and the middleware checks them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn, cast
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.body import read_body
from gateway.problems import STATUS, Problem
from gateway.rate_limit import Limit, RateLimiter, rate_limited
from gateway.tokens import LEEWAY, Tokens, token_invalid, token_missing
from gateway.users import MAX_NAME, User, Users

PUBLIC = frozenset({"/health", "/auth/token", "/openapi.json", "/docs"})
PUBLIC_PREFIXES = ("/docs/",)
SOCKETS = frozenset({"/ws/jobs"})
"""WebSocket routes. They see to it themselves who comes: browsers can set no header, and say so in a message."""

LOGIN_LIMIT = Limit(requests_per_minute=6, burst=10)
"""Wrong passwords for one user name. The price: who keeps guessing at a name also keeps its owner out."""

_FORM_LIMIT = 16 * 1024
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
# RFC 6749 section 5.2; it has no name for a limit, so the nearest of section 4.1.2.1 stands in.
_OAUTH_ERRORS: Mapping[str, str] = MappingProxyType(
    {
        "invalid_credentials": "invalid_grant",
        "invalid_grant": "invalid_grant",
        "invalid_request": "invalid_request",
        "payload_too_large": "invalid_request",
        "unsupported_grant_type": "unsupported_grant_type",
        "rate_limited": "temporarily_unavailable",
    }
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: limits, fairness and ownership follow ``subject``, permissions follow ``role``."""

    subject: str
    role: str


def principal_of(connection: HTTPConnection) -> Principal:
    """The principal that the middleware found. Only for routes that are not public."""
    return cast(Principal, connection.state.principal)


def require_role(connection: HTTPConnection, *roles: str) -> Principal:
    """The principal, if it has one of ``roles``; raises Problem ``forbidden`` if not."""
    principal = principal_of(connection)
    if principal.role not in roles:
        raise Problem("forbidden", f"This needs the role {' or '.join(roles)}; yours is {principal.role}.")
    return principal


class AuthenticationMiddleware:
    """Lets in who bears a token, and puts the Principal on ``request.state.principal``.

    Everything needs a token unless it is listed as public, so that a new route is safe before anybody thinks of
    it. Plain ASGI: Starlette's BaseHTTPMiddleware would stand between a stream and its client.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self.app = app
        self.tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_public(scope["path"]):
            scope.setdefault("state", {})["principal"] = self._authenticate(Headers(scope=scope))
        elif scope["type"] == "websocket" and scope["path"] not in SOCKETS:
            # A new route of that kind must not be open to all by oversight.
            await send({"type": "websocket.close", "code": 1008})
            return
        await self.app(scope, receive, send)

    def _authenticate(self, headers: Headers) -> Principal:
        claims = self.tokens.verify(bearer_token(headers))
        return Principal(claims.subject, claims.role)


def bearer_token(headers: Headers) -> str:
    """What the Authorization header holds. Raises Problem ``token_missing`` or ``token_invalid``."""
    given = headers.getlist("authorization")
    if not given:
        raise token_missing()
    scheme, _, token = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise token_invalid("the Authorization header has to be 'Bearer <token>', once")
    return token.strip()


def is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(PUBLIC_PREFIXES)


async def grant_token(request: Request, users: Users, tokens: Tokens, logins: RateLimiter) -> Response:
    """``POST /auth/token``: the password and refresh grants of OAuth 2.0 (RFC 6749 sections 4.3 and 6).

    Errors have the shape of its section 5.2 with our ``code`` added. ``logins`` counts wrong passwords by name.
    """
    try:
        form = await _read_form(request)
        user = await _authenticated_user(form, users, tokens, logins)
    except Problem as problem:
        return _oauth_error(problem)
    pair = tokens.pair(user.name, user.role)
    body = {
        "access_token": pair.access_token,
        "refresh_token": pair.refresh_token,
        "token_type": "bearer",
        "expires_in": pair.expires_in,
    }
    return JSONResponse(body, headers=_NO_STORE)


async def _read_form(request: Request) -> dict[str, str]:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        raise Problem("invalid_request", "Send the fields as application/x-www-form-urlencoded.")
    body = await read_body(request, _FORM_LIMIT)
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError as error:
        raise Problem("invalid_request", "The form cannot be read: it has to be URL-encoded UTF-8.") from error
    form = dict(fields)
    if len(form) != len(fields):
        raise Problem("invalid_request", "A field of the form is given twice.")
    return form


async def _authenticated_user(form: Mapping[str, str], users: Users, tokens: Tokens, logins: RateLimiter) -> User:
    match form.get("grant_type", "password"):
        case "password":
            return await _by_password(_field(form, "username"), _field(form, "password"), users, logins)
        case "refresh_token":
            return await _by_refresh_token(_field(form, "refresh_token"), users, tokens)
        case other:
            raise Problem(
                "unsupported_grant_type", f"grant_type={other[:50]!r} is not known; take password or refresh_token."
            )


def _field(form: Mapping[str, str], name: str) -> str:
    if not form.get(name):
        raise Problem("invalid_request", f"The form lacks the field {name}.")
    return form[name]


async def _by_password(name: str, password: str, users: Users, logins: RateLimiter) -> User:
    if len(name) > MAX_NAME:
        raise Problem("invalid_credentials", "The user name or the password is wrong.")
    # Counted before the password is looked at, and given back if it is right: guesses sent all at once count too.
    decision = await logins.acquire(name)
    if not decision.allowed:
        raise rate_limited(decision)
    user = await users.verify(name, password)
    if user is None:
        raise Problem("invalid_credentials", "The user name or the password is wrong.")
    await logins.forget(name)
    return user


async def _by_refresh_token(token: str, users: Users, tokens: Tokens) -> User:
    try:
        claims = tokens.verify(token, "refresh")
    except Problem as problem:
        _refuse_grant(problem.message)
    user = await users.find(claims.subject)
    if user is None or user.disabled:
        _refuse_grant("The user has been disabled.")
    if claims.issued_at + LEEWAY < int(user.password_changed_at.timestamp()):
        _refuse_grant("The password has been changed since; log in again.")
    return user


def _refuse_grant(reason: str) -> NoReturn:
    raise Problem("invalid_grant", reason)


def _oauth_error(problem: Problem) -> Response:
    body = {
        "error": _OAUTH_ERRORS[problem.code],
        "error_description": problem.message,
        "code": problem.code,
    }
    return JSONResponse(body, STATUS[problem.code], _NO_STORE | problem.headers)

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from pymongo.asynchronous.database import AsyncDatabase
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.auth import AuthenticationMiddleware, grant_token, is_public, principal_of, require_role
from gateway.rate_limit import Limit, RateLimiter
from gateway.tokens import Tokens
from gateway.users import Users
from tests.unit.gateway.asgi import application, client

PASSWORD = "correct horse"
GUESSES = 4


def tokens(now: Callable[[], float] = time.time) -> Tokens:
    return Tokens("s" * 32, issuer="here", audience="roundhouse", access_ttl=60, refresh_ttl=3600, now=now)


TOKENS = tokens()


@pytest.fixture
async def users(database: AsyncDatabase[dict[str, Any]]) -> Users:
    users = Users(database, PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    await users.create("ada", PASSWORD, "user")
    return users


@pytest.fixture
async def http(users: Users, database: AsyncDatabase[dict[str, Any]]) -> AsyncIterator[httpx.AsyncClient]:
    logins = RateLimiter(database, "login", Limit(requests_per_minute=1, burst=GUESSES))

    async def token(request: Request) -> Response:
        return await grant_token(request, users, TOKENS, logins)

    async def whoami(request: Request) -> Response:
        principal = principal_of(request)
        return JSONResponse([principal.subject, principal.role])

    async def admin(request: Request) -> Response:
        return JSONResponse(require_role(request, "admin").subject)

    async def public(request: Request) -> Response:
        return JSONResponse(hasattr(request.state, "principal"))

    routes = [
        Route("/auth/token", token, methods=["POST"]),
        Route("/whoami", whoami),
        Route("/admin", admin),
        Route("/health", public),
    ]
    app = application(list(routes), Middleware(AuthenticationMiddleware, tokens=TOKENS))
    async with client(app) as http:
        yield http


def log_in(http: httpx.AsyncClient, **fields: str) -> Any:
    return http.post("/auth/token", data={"username": "ada", "password": PASSWORD} | fields)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_password_buys_tokens_that_open_the_routes(http: httpx.AsyncClient) -> None:
    answer = await log_in(http)
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert (body["token_type"], body["expires_in"]) == ("bearer", 60)
    assert (await http.get("/whoami", headers=bearer(body["access_token"]))).json() == ["ada", "user"]


async def test_a_refresh_token_buys_new_tokens_with_the_role_of_today(http: httpx.AsyncClient, users: Users) -> None:
    refresh = (await log_in(http)).json()["refresh_token"]
    await users._collection.update_one({"_id": "ada"}, {"$set": {"role": "admin"}})
    answer = await http.post("/auth/token", data={"grant_type": "refresh_token", "refresh_token": refresh})
    assert answer.status_code == 200
    assert (await http.get("/whoami", headers=bearer(answer.json()["access_token"]))).json() == ["ada", "admin"]


@pytest.mark.parametrize(
    ("fields", "status", "error", "code"),
    [
        ({"password": "wrong"}, 400, "invalid_grant", "invalid_credentials"),
        ({"username": "bob"}, 400, "invalid_grant", "invalid_credentials"),
        ({"username": "x" * 5000}, 400, "invalid_grant", "invalid_credentials"),
        ({"username": "a\0b"}, 400, "invalid_grant", "invalid_credentials"),
        ({"username": ""}, 400, "invalid_request", "invalid_request"),
        ({"password": "x" * 20000}, 413, "invalid_request", "payload_too_large"),
        ({"grant_type": "client_credentials"}, 400, "unsupported_grant_type", "unsupported_grant_type"),
        ({"grant_type": "refresh_token"}, 400, "invalid_request", "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, 400, "invalid_grant", "invalid_grant"),
    ],
)
async def test_a_refusal_has_the_shape_of_oauth_and_our_code(
    http: httpx.AsyncClient, fields: dict[str, str], status: int, error: str, code: str
) -> None:
    answer = await log_in(http, **fields)
    body = answer.json()
    assert (answer.status_code, body["error"], body["code"]) == (status, error, code)
    assert body["error_description"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b'{"username": "ada"}', "application/json"),
        (b"username=ada&password=x&username=bob", "application/x-www-form-urlencoded"),
        (b"username=%ff&password=x", "application/x-www-form-urlencoded"),
        (b"\xff", "application/x-www-form-urlencoded"),
        (b"&".join(b"f%d=1" % number for number in range(30)), "application/x-www-form-urlencoded"),
        (b"", "application/x-www-form-urlencoded"),
    ],
)
async def test_what_is_no_proper_form_is_refused(http: httpx.AsyncClient, content: bytes, content_type: str) -> None:
    answer = await http.post("/auth/token", content=content, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


async def test_an_access_token_refreshes_nothing(http: httpx.AsyncClient) -> None:
    access = (await log_in(http)).json()["access_token"]
    answer = await http.post("/auth/token", data={"grant_type": "refresh_token", "refresh_token": access})
    assert answer.json()["error"] == "invalid_grant"


async def test_a_disabled_user_cannot_refresh(http: httpx.AsyncClient, users: Users) -> None:
    refresh = (await log_in(http)).json()["refresh_token"]
    await users.set_disabled("ada", True)
    answer = await http.post("/auth/token", data={"grant_type": "refresh_token", "refresh_token": refresh})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_grant")


async def test_a_new_password_voids_the_refresh_tokens_from_before(http: httpx.AsyncClient, users: Users) -> None:
    refresh = tokens(now=lambda: time.time() - 60).issue("ada", "user", "refresh")
    form = {"grant_type": "refresh_token", "refresh_token": refresh}
    await users._collection.update_one(
        {"_id": "ada"}, {"$set": {"password_changed_at": datetime.fromtimestamp(0, UTC)}}
    )
    assert (await http.post("/auth/token", data=form)).status_code == 200
    await users.set_password("ada", "battery staple")
    answer = await http.post("/auth/token", data=form)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_grant")


async def test_guesses_at_one_name_are_limited_even_all_at_once(http: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(log_in(http, password=f"guess {number}") for number in range(GUESSES + 6)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [400] * GUESSES + [429] * 6
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) > 0
    assert (refused.json()["error"], refused.json()["code"]) == ("temporarily_unavailable", "rate_limited")
    assert (await log_in(http)).status_code == 429
    assert (await log_in(http, username="bob")).status_code == 400


async def test_right_passwords_are_not_counted(http: httpx.AsyncClient) -> None:
    for _ in range(GUESSES + 3):
        assert (await log_in(http)).status_code == 200


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({}, "token_missing"),
        ({"Authorization": ""}, "token_invalid"),
        ({"Authorization": "Basic YWRhOng="}, "token_invalid"),
        ({"Authorization": "Bearer"}, "token_invalid"),
        ({"Authorization": "Bearer  "}, "token_invalid"),
        ({"Authorization": "Bearer x.y.z"}, "token_invalid"),
    ],
)
async def test_without_a_token_nothing_opens(http: httpx.AsyncClient, header: dict[str, str], code: str) -> None:
    for path in ("/whoami", "/nowhere", "/auth/token/", "//health"):
        answer = await http.get(path, headers=header)
        assert (answer.status_code, answer.json()["code"]) == (401, code)
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_two_authorization_headers_are_one_too_many(http: httpx.AsyncClient) -> None:
    token = TOKENS.issue("ada", "user")
    headers = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
    assert (await http.get("/whoami", headers=headers)).json()["code"] == "token_invalid"


async def test_the_scheme_is_read_without_case(http: httpx.AsyncClient) -> None:
    headers = {"Authorization": f"bearer {TOKENS.issue('ada', 'user')}"}
    assert (await http.get("/whoami", headers=headers)).status_code == 200


async def test_a_role_opens_what_is_kept_for_it(http: httpx.AsyncClient) -> None:
    refused = await http.get("/admin", headers=bearer(TOKENS.issue("ada", "user")))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await http.get("/admin", headers=bearer(TOKENS.issue("root", "admin")))).json() == "root"


async def test_what_is_public_needs_no_token_and_minds_none(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).json() is False
    assert (await http.get("/health", headers=bearer("x"))).status_code == 200


def test_only_what_is_listed_is_public() -> None:
    assert all(is_public(path) for path in ("/health", "/auth/token", "/openapi.json", "/docs", "/docs/swagger-ui.css"))
    assert not any(
        is_public(path) for path in ("/", "/health/", "/healthy", "/docsx", "/HEALTH", "/api/jobs", "health")
    )


async def test_a_websocket_is_turned_away() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    app = application([], Middleware(AuthenticationMiddleware, tokens=TOKENS))
    await app({"type": "websocket", "path": "/health", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]

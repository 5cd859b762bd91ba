"""The OpenAPI document tells the truth: every route is in it, and what the routes answer is what it says."""

import ast
import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV30SpecValidator, OpenAPIV31SpecValidator

from gateway.docs import as_openapi_30
from gateway.openapi import Operation, document, endpoints
from gateway.operations import DESCRIPTION, OPERATIONS, VERSION
from gateway.problems import STATUS
from gateway.routes import ROUTES
from gateway.users import Users
from tests.contract.described import GENERAL, check
from tests.deployments import Gateway
from worker.worker import Worker

GATEWAY = Path(__file__).parents[2] / "gateway"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
DOCUMENT = document(ROUTES, OPERATIONS, VERSION, DESCRIPTION)
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
Call = tuple[str, str, dict[str, Any], int]


def test_every_route_is_described_and_nothing_else() -> None:
    assert {(method, path) for method, path, _ in endpoints(ROUTES)} == OPERATIONS.keys()


def test_a_route_that_is_not_described_is_noticed() -> None:
    with pytest.raises(KeyError):
        document(ROUTES, {}, VERSION, DESCRIPTION)


def test_the_document_is_valid_in_both_versions() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    OpenAPIV30SpecValidator(as_openapi_30(DOCUMENT)).validate()


def test_the_older_version_keeps_no_keyword_that_it_does_not_know() -> None:
    def keywords(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keywords, value)) if value else set()
        return set(value) | set().union(*map(keywords, value.values())) if isinstance(value, dict) and value else set()

    assert not keywords(as_openapi_30(DOCUMENT)) & {
        "const",
        "examples",
        "contentMediaType",
        "contentSchema",
        "propertyNames",
        "$defs",
        "identifier",
    }
    assert "'null'" not in str(as_openapi_30(DOCUMENT))


def test_operation_ids_are_unique() -> None:
    names = [name for _, _, name in endpoints(ROUTES)]
    assert len(names) == len(set(names))


def raised_codes() -> set[str]:
    """Every code that the gateway's own code names in ``Problem(…)``."""
    return {
        node.args[0].value
        for module in GATEWAY.rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in {"Problem", "_refused"}
        and isinstance(node.args[0], ast.Constant)
    }


def test_every_code_is_described_somewhere() -> None:
    described = {code for operation in OPERATIONS.values() for code in operation.codes()}
    of_the_token_route = {"invalid_credentials", "invalid_grant", "unsupported_grant_type"}
    # OpenAPI knows no WebSockets.
    of_the_socket = {"already_subscribed", "invalid_message", "origin_not_allowed", "too_many_subscriptions"}
    assert raised_codes() - described == of_the_token_route | of_the_socket
    assert described <= STATUS.keys()
    # The rest are what Starlette raises by itself, and what is raised before a gateway serves anybody.
    assert STATUS.keys() - described - of_the_token_route - of_the_socket == GENERAL | {
        "bad_request",
        "mongod_unavailable",
    }


def test_only_what_is_public_is_described_as_open() -> None:
    from gateway.auth import is_public

    for (_, path), operation in OPERATIONS.items():
        assert operation.public == is_public(path)


def test_what_an_operation_may_answer_includes_what_any_may() -> None:
    plain = Operation("tag", "summary", (), problems=("queue_full",))
    assert plain.codes() == [
        "database_unavailable",
        "internal_error",
        "queue_full",
        "token_expired",
        "token_invalid",
        "token_missing",
    ]
    assert Operation("tag", "summary", (), public=True, database=False).codes() == ["internal_error"]
    assert "forbidden" in Operation("tag", "summary", (), role="admin").codes()


CALLS: list[Call] = [
    ("GET", "/health", {}, 200),
    ("GET", "/health?detail=1", {}, 200),
    ("GET", "/openapi.json", {}, 200),
    ("GET", "/docs", {}, 200),
    ("GET", "/docs/openapi.json", {}, 200),
    ("POST", "/auth/token", {"data": {"username": "ada", "password": "ada-password"}}, 200),
    ("POST", "/auth/token", {"data": {"username": "ada", "password": "wrong"}}, 400),
    ("POST", "/auth/token", {"data": {"username": "ada", "password": "x" * 20_000}}, 413),
    ("POST", "/api/chat", {"json": {"message": "Hi."}}, 202),
    ("POST", "/api/chat?wait=0", {"json": {"message": "Hi."}}, 202),
    ("POST", "/api/chat", {"json": {"messages": [{"role": "user", "content": "Hi."}], "temperature": 0}}, 202),
    ("POST", "/api/chat", {"json": {"message": "Hi.", "temprature": 0}}, 400),
    ("POST", "/api/chat", {"content": b"{"}, 400),
    ("POST", "/api/chat", {"content": b""}, 400),
    ("POST", "/api/chat?wait=x", {"json": {"message": "Hi."}}, 400),
    ("POST", "/api/chat?temperature=1", {"json": {"message": "Hi."}}, 400),
    ("POST", "/api/chat", {"json": {"message": "Hi.", "model": "none"}}, 404),
    ("POST", "/api/chat", {"json": {"message": "Hi.", "model": "tesseract"}}, 400),
    ("POST", "/api/chat", {"json": {"message": "Hi."}, "headers": {"X-Priority": "urgent"}}, 400),
    ("POST", "/api/chat", {"json": {"message": "Hi."}, "headers": {"X-Client-ID": ""}}, 400),
    ("POST", "/api/chat", {"json": {"message": "x" * 2**20}}, 413),
    ("POST", "/api/ocr", {"content": PNG}, 202),
    ("POST", "/api/ocr", {"files": {"file": ("a.png", PNG)}}, 202),
    ("POST", "/api/ocr", {"json": {"messages": [{"role": "user", "content": [IMAGE]}]}}, 202),
    ("POST", "/api/ocr", {"content": b"text"}, 415),
    ("POST", "/api/ocr", {"files": {"image": ("a.png", PNG)}}, 400),
    ("POST", "/api/ocr", {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, 400),
    ("POST", "/api/ocr", {"content": PNG, "headers": {"X-Resolution": "huge"}}, 400),
    ("POST", "/api/ocr?language=..", {"content": PNG}, 400),
    ("POST", "/api/ocr", {"content": bytes(11 * 2**20)}, 413),
    ("GET", "/api/jobs", {}, 200),
    ("GET", "/api/jobs?status=queued&limit=1", {}, 200),
    ("GET", "/api/jobs?status=odd", {}, 400),
    ("GET", "/api/jobs?cursor=odd", {}, 400),
    ("GET", "/api/jobs?limit=0", {}, 400),
    ("GET", "/api/jobs/odd", {}, 404),
    ("GET", "/api/jobs/000000000000000000000000", {}, 404),
    ("GET", "/api/jobs/000000000000000000000000?wait=-1", {}, 400),
    ("DELETE", "/api/jobs/000000000000000000000000", {}, 404),
    ("PUT", "/api/jobs/000000000000000000000000", {}, 405),
    ("GET", "/admin/models", {}, 200),
    ("GET", "/admin/models/simulator", {}, 200),
    ("GET", "/admin/models/none/at/all", {}, 404),
    ("PATCH", "/admin/models/simulator", {"json": {"max_waiting": 9}}, 200),
    ("PATCH", "/admin/models/simulator", {"json": {"max_waiting": -1}}, 400),
    ("PATCH", "/admin/models/simulator", {"content": b"x" * 70_000}, 413),
    ("POST", "/admin/models/simulator/start", {}, 409),
    ("POST", "/admin/models/simulator/stop", {}, 200),
    ("POST", "/admin/models/simulator/auto", {}, 200),
    ("POST", "/admin/models/simulator/sleep", {}, 409),
    ("POST", "/admin/models/simulator/pin", {}, 200),
    ("POST", "/admin/ocr/resolution", {"json": {"resolution": "base"}}, 409),
    ("GET", "/admin/workers", {}, 200),
    ("GET", "/admin/queue/tesseract", {}, 200),
    ("GET", "/admin/queue/none/at/all", {}, 404),
    ("GET", "/admin/crashes", {}, 200),
    ("GET", "/admin/crashes?since=yesterday", {}, 400),
    ("GET", "/admin/missing-models", {}, 200),
    ("GET", "/nowhere", {}, 404),
]  # fmt: skip


async def test_each_route_answers_as_described(gateway: Gateway) -> None:
    await Users(gateway.broker.database.handle).create("ada", "ada-password", "user")
    for method, path, arguments, status in CALLS:
        response = await gateway.http.request(method, path, **arguments)
        assert response.status_code == status, f"{method} {path}: {response.status_code} {response.text[:300]}"
        check(DOCUMENT, response)


async def test_without_a_token_each_route_answers_as_described(gateway: Gateway) -> None:
    del gateway.http.headers["Authorization"]
    for (method, path), operation in OPERATIONS.items():
        if not operation.public:
            response = await gateway.http.request(method, path)
            assert response.status_code == 401
            check(DOCUMENT, response)


async def test_what_an_admin_may_is_described_as_forbidden_to_others(gateway: Gateway) -> None:
    await Users(gateway.broker.database.handle).create("ada", "ada-password", "user")
    await gateway.sign_in("ada", "ada-password")
    for (method, path), operation in OPERATIONS.items():
        if operation.role == "admin":
            response = await gateway.http.request(method, path)
            assert response.status_code == 403
            check(DOCUMENT, response)
    response = await gateway.http.post("/api/chat", json={"message": "Hi."}, headers={"X-Priority": "high"})
    assert response.status_code == 403
    check(DOCUMENT, response)


async def test_a_job_is_described_through_its_whole_life(gateway: Gateway, worker: Worker) -> None:
    answers: list[httpx.Response] = [await gateway.http.post("/api/chat?wait=30", json={"message": "Hi."})]
    assert answers[0].status_code == 200
    job = answers[0].headers["location"]
    answers += [await gateway.http.get(job), await gateway.http.get("/api/jobs")]
    answers.append(await gateway.http.delete(job))
    assert answers[-1].status_code == 409
    fault = {"message": "Hi.", "simulate": {"fault": "error", "attempts": 9}}
    answers.append(await gateway.http.post("/api/chat?wait=30", json=fault))
    assert len(answers[-1].json()["errors"]) > 1
    for answer in answers:
        check(DOCUMENT, answer)


async def test_a_full_queue_is_described(gateway: Gateway) -> None:
    answers = [await gateway.http.post("/api/chat", json={"message": "Hi."}) for _ in range(21)]
    assert answers[-1].status_code == 503
    check(DOCUMENT, answers[-1])


async def test_a_cancelled_job_is_described(gateway: Gateway) -> None:
    job = (await gateway.http.post("/api/chat", json={"message": "Hi."})).headers["location"]
    answer = await gateway.http.delete(job)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    check(DOCUMENT, answer)


async def test_too_many_wrong_passwords_are_described(gateway: Gateway) -> None:
    for _ in range(11):
        answer = await gateway.http.post("/auth/token", data={"username": "eve", "password": "a guess"})
    assert answer.status_code == 429
    check(DOCUMENT, answer)


@pytest.mark.parametrize(
    ("path", "body", "fits"),
    [
        ("/api/chat", {"message": "Hi."}, True),
        ("/api/chat", {"messages": [{"role": "user", "content": "Hi."}]}, True),
        ("/api/chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}]}, True),
        ("/api/chat", {"message": "Hi.", "temprature": 1}, False),
        ("/api/chat", {"message": "Hi.", "temperature": 3}, False),
        ("/api/ocr", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": URL}]}]}, True),
        ("/api/ocr", {"messages": [{"role": "user", "content": [{"type": "odd"}]}]}, False),
        ("/api/ocr", {"messages": []}, False),
    ],
)
async def test_a_body_is_accepted_just_if_its_schema_allows_it(
    gateway: Gateway, path: str, body: dict[str, Any], fits: bool
) -> None:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = content["schema"] | {"components": DOCUMENT["components"]}
    assert Draft202012Validator(schema).is_valid(body) == fits
    assert ((await gateway.http.post(path, json=body)).status_code == 202) == fits

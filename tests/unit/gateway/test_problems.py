import ast
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pymongo.errors import (
    AutoReconnect,
    ExecutionTimeout,
    OperationFailure,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from broker.errors import BrokerError, JobFinished, JobNotFound, QueueFull
from config.errors import RoundhouseError
from gateway.problems import MEDIA_TYPE, STATUS, Problem
from tests.unit.gateway.asgi import application, client

GATEWAY = Path(__file__).parents[3] / "gateway"


async def answer_to(error: Exception) -> httpx.Response:
    async def fail(_: Request) -> Response:
        raise error

    async with client(application([Route("/it", fail)])) as http:
        return await http.get("/it")


async def test_a_problem_is_answered_with_its_status_code_details_and_headers() -> None:
    problem = Problem("rate_limited", "Too fast.", headers={"Retry-After": "3"}, retry_after=3)
    answer = await answer_to(problem)
    assert answer.status_code == 429
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["retry-after"] == "3"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "Too fast.",
        "code": "rate_limited",
        "retry_after": 3,
    }


async def test_details_cannot_replace_the_members_of_the_standard() -> None:
    answer = await answer_to(JobFinished("65f0", "completed"))
    assert (answer.status_code, answer.json()["status"], answer.json()["code"]) == (409, 409, "job_finished")


async def test_an_error_of_the_broker_has_the_status_of_its_code() -> None:
    answer = await answer_to(JobNotFound("65f0"))
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


async def test_a_full_queue_says_when_to_come_back() -> None:
    answer = await answer_to(QueueFull("tesseract", 20, 7))
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["model"]) == (503, "7", "tesseract")


def broker_errors(base: type[RoundhouseError] = BrokerError) -> Iterator[type[RoundhouseError]]:
    for error in base.__subclasses__():
        yield error
        yield from broker_errors(error)


def test_every_error_of_the_broker_has_a_status() -> None:
    assert {error.code for error in broker_errors()} <= STATUS.keys()


def test_every_code_that_the_gateway_raises_has_a_status() -> None:
    """``Problem`` would fail with a KeyError only when it is raised."""
    used = set()
    for module in GATEWAY.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"Problem", "_refused"}:
                code = node.args[0]
                if isinstance(code, ast.Constant):
                    used.add(code.value)
    assert used
    assert used <= STATUS.keys()


@pytest.mark.parametrize("error", [RoundhouseError("No status."), ValueError("secret detail"), OperationFailure("odd")])
async def test_the_unforeseen_is_answered_without_detail_and_logged_with_its_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await answer_to(error)
    body = answer.json()
    assert (answer.status_code, body["code"]) == (500, "internal_error")
    assert "secret detail" not in answer.text
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert body["instance"] in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize(
    "error",
    [
        AutoReconnect("gone"),
        ServerSelectionTimeoutError("nobody"),
        WaitQueueTimeoutError("busy"),
        ExecutionTimeout("slow", 50),
        OperationFailure("retry", details={"errorLabels": ["RetryableWriteError"]}),
    ],
)
async def test_a_database_that_is_away_is_answered_503(error: Exception) -> None:
    answer = await answer_to(error)
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_an_unknown_path_is_a_problem_too() -> None:
    async with client(application([])) as http:
        answer = await http.get("/nowhere")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == MEDIA_TYPE


async def test_a_wrong_method_is_told_all_the_right_ones() -> None:
    async def endpoint(_: Request) -> Response:
        return PlainTextResponse("")

    routes = [Route("/jobs/{id}", endpoint, methods=["GET"]), Route("/jobs/{id}", endpoint, methods=["DELETE"])]
    async with client(application(list(routes))) as http:
        answer = await http.put("/jobs/7")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, HEAD"


@pytest.mark.parametrize(
    ("status", "code"), [(400, "bad_request"), (403, "forbidden"), (418, "bad_request"), (502, "internal_error")]
)
async def test_an_http_exception_has_a_code(status: int, code: str) -> None:
    answer = await answer_to(HTTPException(status, "Why."))
    assert (answer.status_code, answer.json()["code"], answer.json()["detail"]) == (STATUS[code], code, "Why.")


async def test_a_client_that_went_away_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: Request) -> Response:
        raise ClientDisconnect

    sent: list[object] = []

    async def send(message: object) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/it", "headers": [], "query_string": b""}
    await application([Route("/it", fail)])(scope, receive, send)
    assert not sent
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_failure_after_the_answer_began_breaks_it_off() -> None:
    async def stream(_: Request) -> Response:
        async def pieces() -> Iterator[bytes]:  # type: ignore[misc]
            yield b"half"
            raise ValueError("in the middle")

        return StreamingResponse(pieces())  # type: ignore[arg-type]

    async with client(application([Route("/it", stream)])) as http:
        with pytest.raises(ValueError, match="in the middle"):
            await http.get("/it")


async def test_another_api_may_have_its_own_error_format_under_its_prefix() -> None:
    def openai(problem: Problem) -> Response:
        return JSONResponse({"error": {"message": problem.message, "code": problem.code}}, problem.status)

    async with client(application([], shapes={"/v1": openai})) as http:
        theirs, ours = await http.get("/v1/nowhere"), await http.get("/v12")
    assert theirs.json() == {"error": {"message": "There is nothing at /v1/nowhere.", "code": "not_found"}}
    assert ours.headers["content-type"] == MEDIA_TYPE

"""Errors as OpenAI's API has them: ``{"error": {"message", "type", "param", "code"}}``, with our stable codes."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from broker.job import Job, Status
from config.errors import RoundhouseError
from gateway.hops import route_headers
from gateway.problems import Problem

# The client's SDK goes by the status; these names are what it shows.
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
# What an upstream may have refused a request with that is worth passing on.
_REFUSALS = frozenset({404, 413, 415, 422})
_BAD_INPUT = frozenset({"engine_rejected_input", "task_unsupported", "unknown_backend"})
_UPSTREAM = frozenset(
    {
        "answer_cut_off",
        "backends_held_back",
        "bad_answer",
        "engine_unavailable",
        "upstream_error",
        "upstream_refused_key",
        "upstream_unreachable",
    }
)


class AnswerFailed(Problem):
    """A job that has ended without an answer, told where the answer was waited for."""

    def __init__(self, job: Job) -> None:
        error = job.error or {"code": job.status.value, "message": f"The job is {job.status.value}."}
        RoundhouseError.__init__(self, error["message"])
        self.code = error["code"]  # type: ignore[misc]
        self.status = status_of(job, self.code)
        # It was tried as often as the model's entry says: for OpenAI's own clients not to do it all again.
        self.headers = {**route_headers(job), "x-request-id": str(job.id), "x-should-retry": "false"}


def status_of(job: Job, code: str) -> int:
    """The HTTP status for how the job has ended."""
    if job.status is Status.TIMEOUT:
        return 504
    if job.status is Status.CANCELLED:
        return 409
    if code in _BAD_INPUT:
        details = job.errors[-1].get("details", {}) if job.errors else {}
        return details["status"] if details.get("status") in _REFUSALS else 400
    return 502 if code in _UPSTREAM else 500


def error_body(problem: Problem) -> dict[str, Any]:
    """``problem`` as the body of an answer, or as an event in a stream."""
    kind = _TYPES.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    return {"error": {"message": problem.message, "type": kind, "param": _param(problem), "code": problem.code}}


def error_event(problem: Problem) -> bytes:
    """``problem`` as the last event of a stream that has begun."""
    # Without a name: clients of OpenAI's API look at what an event holds.
    return f"data: {json.dumps(error_body(problem))}\n\n".encode()


def _param(problem: Problem) -> str | None:
    faults = problem.details.get("errors")
    if isinstance(faults, list) and faults and isinstance(faults[0], dict):
        return str(faults[0]["loc"]) or None
    return "model" if "model" in problem.details else None


def openai_response(problem: Problem) -> Response:
    return JSONResponse(error_body(problem), problem.status, problem.headers)

"""What a call may raise:

RoundhouseApiError       the gateway refused it: ``code`` is the gateway's, stable and in snake_case
├── Unreachable          no gateway could be reached, for as long as the client has patience
├── DeadlinePassed       the ``timeout`` that the caller gave is over; the job, if there is one, goes on
├── JobFailed            the job has ended without an answer
└── StreamRestarted      the answer is generated anew, after some of it was handed out
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx


class RoundhouseApiError(Exception):
    """``status``: of HTTP, None where there was no response. ``job_id``: of the job that it is about, where known.
    ``retry_after``: seconds, where the gateway said so. ``may_repeat``: False where the gateway said not to."""

    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        job_id: str | None = None,
        retry_after: float | None = None,
        may_repeat: bool = True,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.status = status
        self.job_id = job_id
        self.retry_after = retry_after
        self.may_repeat = may_repeat
        self.details = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


class Unreachable(RoundhouseApiError):
    code = "gateway_unreachable"


class DeadlinePassed(RoundhouseApiError, TimeoutError):
    code = "deadline_passed"


def too_late() -> DeadlinePassed:
    return DeadlinePassed("The time that the call was given is over.")


@contextmanager
def about(job_id: str) -> Iterator[None]:
    """What is raised in it names the job, if it did not before."""
    try:
        yield
    except RoundhouseApiError as error:
        error.job_id = error.job_id or job_id
        raise


class JobFailed(RoundhouseApiError):
    code = "job_failed"


class StreamRestarted(RoundhouseApiError):
    code = "stream_restarted"


@contextmanager
def understood() -> Iterator[None]:
    """What a gateway has sent is read in it. Raises RoundhouseApiError ``bad_answer`` for what is no such thing, as
    proxies send it, and gateways of another release."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"[:200]
        raise RoundhouseApiError(f"What was answered is not what was asked for ({why}).", code="bad_answer") from error


def refusal(response: httpx.Response) -> RoundhouseApiError:
    """What a response that is no success says, in any of the gateway's three forms. Its body has been read."""
    try:
        body = response.json()
    except ValueError:
        body = None
    told = said_by(body if isinstance(body, dict) else {})
    return error_of(
        told,
        status=response.status_code,
        otherwise=f"{response.status_code} {response.reason_phrase}".strip(),
        headers=response.headers,
    )


def said_by(body: Mapping[str, Any]) -> dict[str, Any]:
    """What problem+json, OpenAI's ``{"error": {…}}`` or an OAuth error says, with ``message`` and ``code``."""
    inner = body.get("error")
    told = dict(inner) if isinstance(inner, dict) else dict(body)
    told["message"] = told.get("message") or told.get("detail") or told.get("error_description")
    return told


def error_of(
    told: Mapping[str, Any], *, status: int | None, otherwise: str, headers: Mapping[str, str]
) -> RoundhouseApiError:
    """The exception for what ``said_by`` found. An answer that is not to be asked for again is that of an ended job."""
    may_repeat = headers.get("x-should-retry", "").lower() != "false"
    job_id = headers.get("x-request-id")
    kind = RoundhouseApiError
    if told.get("code") == StreamRestarted.code:
        kind = StreamRestarted
    elif job_id is not None and not may_repeat:
        kind = JobFailed
    return kind(
        str(told.get("message") or otherwise),
        code=told.get("code"),
        status=status,
        job_id=job_id,
        retry_after=seconds_of(headers.get("retry-after")),
        may_repeat=may_repeat,
        details={key: value for key, value in told.items() if key not in ("message", "code")},
    )


def seconds_of(retry_after: str | None) -> float | None:
    """Retry-After in seconds, as this gateway sends it; its other form, a date, is left to the backoff."""
    return float(retry_after) if retry_after is not None and retry_after.strip().isdecimal() else None

"""Answers on the connection that asked for them, in plain words: ``POST /api/chat/stream``, ``/v1/inference/complete``
and ``/v1/inference/stream``."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from broker.job import Job, NewJob
from gateway.arrival import Arrival, arrive
from gateway.body import parse_json, read_body, validated
from gateway.calls import answered
from gateway.context import Context
from gateway.event_log import Known
from gateway.events import job_events
from gateway.payloads import InferenceRequest
from gateway.problems import Problem
from gateway.sse import Events
from gateway.submissions import CHAT_LIMIT, ChatSubmission, read_chat


class PlainForm:
    """A text or, in pieces, what ``GET /api/jobs/{id}/events`` tells of the job."""

    def whole(self, job: Job, result: Mapping[str, Any]) -> Mapping[str, Any]:
        first = result["choices"][0]
        answer = {"text": first["text"], "finish_reason": first["finish_reason"], "usage": result.get("usage")}
        return {"request_id": str(job.id), "model": job.model, **answer}

    def events(self, gateway: Context, job: Job, request: Request | None) -> Events:
        known = Known() if request is None else Known.read(request.headers.get("last-event-id"))
        return job_events(gateway, job, known)

    def failed(self, problem: Problem) -> bytes:
        return f"event: error\ndata: {json.dumps(problem.body())}\n\n".encode()


async def stream_chat(request: Request) -> Response:
    arrival = await arrive(request, "chat")
    return await _answered(request, arrival, "chat", await read_chat(request), stream=True)


async def complete(request: Request) -> Response:
    arrival = await arrive(request, "chat")
    return await _answered(request, arrival, "completion", await _read(request), stream=False)


async def stream(request: Request) -> Response:
    arrival = await arrive(request, "chat")
    return await _answered(request, arrival, "completion", await _read(request), stream=True)


async def _read(request: Request) -> ChatSubmission:
    body = validated(InferenceRequest, parse_json(await read_body(request, CHAT_LIMIT)))
    return ChatSubmission(body.model, body.model_dump(exclude={"model"}, exclude_none=True))


async def _answered(
    request: Request, arrival: Arrival, task: str, submission: ChatSubmission, *, stream: bool
) -> Response:
    idempotency = arrival.idempotency(submission.model, submission.payload)

    async def make() -> NewJob:
        told = await arrival.with_webhook(submission.webhook)
        model, _ = await told.model("chat", submission.model)
        payload = told.payload(submission.model, submission.payload)
        return told.new_job(task, model, payload, idempotency, stream=stream)

    return await answered(request, arrival, PlainForm(), idempotency, make, stream=stream)

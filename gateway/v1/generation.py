"""``POST /v1/chat/completions``, ``/v1/completions`` and ``/v1/embeddings``: a job, and its answer."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from broker.errors import JobNotFound
from broker.job import Job
from gateway.arrival import arrive
from gateway.auth import principal_of
from gateway.body import parse_json, read_body
from gateway.calls import Call, answered
from gateway.context import Context, context
from gateway.jobs import whose
from gateway.problems import Problem
from gateway.query import flag
from gateway.sse import Events
from gateway.submissions import ENVELOPE
from gateway.v1.answers import View
from gateway.v1.errors import error_event
from gateway.v1.streams import answer_events, asked_place
from gateway.v1.work import ENDPOINTS, model_task, work_of


class OpenaiForm:
    """Answers as OpenAI's API has them."""

    def whole(self, job: Job, result: Mapping[str, Any]) -> Mapping[str, Any]:
        return View(job).whole(result)

    def events(self, gateway: Context, job: Job, request: Request | None) -> Events:
        return answer_events(gateway, job, None if request is None else asked_place(request))

    def failed(self, problem: Problem) -> bytes:
        return error_event(problem)


async def submit(request: Request) -> Response:
    """A body of OpenAI's API, answered where it was sent."""
    endpoint = request.url.path
    arrival = await arrive(request, model_task(ENDPOINTS[endpoint][0]))
    work = work_of(endpoint, await read(request))
    idempotency = arrival.idempotency(work.model, {**work.payload, "endpoint": endpoint, "asked": dict(work.asked)})
    make = partial(work.job, arrival, idempotency)
    return await answered(request, arrival, OpenaiForm(), idempotency, make, stream=work.stream)


async def stored_answer(request: Request) -> Response:
    """``GET /v1/chat/completions/{id}``: the answer of before, or with ``stream=true`` what is still new of it."""
    gateway = context(request)
    job = await gateway.broker.reader.get(job_id_of(request.path_params["id"]), whose(principal_of(request)))
    if job.task not in ("chat", "completion"):
        raise JobNotFound(request.path_params["id"])
    stream = flag(request, "stream", default=False)
    if request.method == "HEAD" and (stream or not job.status.terminal):
        return _head(job, stream=stream)
    return await Call(request, gateway, OpenaiForm()).repeat(job, stream=stream)


def _head(job: Job, *, stream: bool) -> Response:
    """That of an answer whose body nobody waits for."""
    head = Response(
        headers={"x-request-id": str(job.id)}, media_type="text/event-stream" if stream else "application/json"
    )
    # That would be of the body of GET, and is not known.
    del head.headers["content-length"]
    return head


async def read(request: Request) -> object:
    """The JSON of a body that may hold pictures."""
    limit = context(request).settings.server.max_upload * 4 // 3 + ENVELOPE
    return parse_json(await read_body(request, limit))


def job_id_of(given: str) -> str:
    """The job's id, from that or from the id of its answer."""
    return given.rpartition("-")[2]

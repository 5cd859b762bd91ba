"""OpenAI's Responses API: each response is a job that answers a chat.

``POST /v1/responses`` waits for it, streams it, or with ``background`` leaves it to itself; what was begun so or so can
be got, followed and deleted by its id as long as its job is kept, and gone on with by ``previous_response_id``.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from broker.errors import JobFinished, JobNotFound
from broker.job import Idempotency, Job, NewJob, Status
from broker.payloads import unstow
from broker.results import unpack
from gateway.arrival import Arrival, arrive
from gateway.auth import principal_of
from gateway.body import parse_json, read_body, validated
from gateway.calls import REPLAYED, Call, answered
from gateway.context import Context, context
from gateway.jobs import whose
from gateway.problems import Problem
from gateway.query import flag, integer
from gateway.sse import HEADERS, Events
from gateway.submissions import ENVELOPE
from gateway.v1.responses.answers import Answer
from gateway.v1.responses.input import Message, items_of
from gateway.v1.responses.requests import ResponseRequest
from gateway.v1.responses.streams import Narrator, asked_number, response_events
from gateway.v1.responses.work import API, conversation, instructions_apart, response_work

Make = Callable[[], Awaitable[NewJob]]

_NO_STORE = {"Cache-Control": "no-store"}


class ResponseForm:
    """Answers as the Responses API has them, for one request. ``instructions``: see ``Answer``."""

    def __init__(self, instructions: str | None) -> None:
        self._narrator: Narrator | None = None
        self._instructions = instructions

    def whole(self, job: Job, result: Mapping[str, Any]) -> Mapping[str, Any]:
        return Answer(job, self._instructions).whole(result)

    def events(self, gateway: Context, job: Job, request: Request | None) -> Events:
        after = -1 if request is None else asked_number(request)
        self._narrator = Narrator(job, after, self._instructions)
        return response_events(gateway, job, self._narrator)

    def failed(self, problem: Problem) -> bytes:
        assert self._narrator is not None  # of a stream that has begun
        return self._narrator.problem(problem)


async def create(request: Request) -> Response:
    """``POST /v1/responses``."""
    arrival = await arrive(request, "chat")
    most = arrival.gateway.settings.server.max_upload * 4 // 3 + ENVELOPE
    body = await read_body(request, most)
    asked = validated(ResponseRequest, parse_json(body))
    # As it was sent: what it goes on with may be gone when it is sent again.
    idempotency = arrival.idempotency(asked.model, asked.model_dump(mode="json", by_alias=True))

    async def make() -> NewJob:
        before = await _before(arrival, asked.previous_response_id, most, len(body))
        return await response_work(asked, before).job(arrival, idempotency)

    if asked.background and not asked.stream:
        return await _begun(arrival, make, idempotency, asked.instructions)
    form, goes_on = ResponseForm(asked.instructions), bool(asked.background)
    return await answered(request, arrival, form, idempotency, make, stream=bool(asked.stream), goes_on=goes_on)


async def _begun(arrival: Arrival, make: Make, idempotency: Idempotency | None, instructions: str | None) -> Response:
    """The answer to a request for something that goes on by itself."""
    if earlier := await arrival.earlier(idempotency):
        return await _current(arrival.gateway, earlier, arrival.headers | REPLAYED)
    new = await make()
    job = await arrival.gateway.broker.submit(new)
    if job.id != new.id:
        return await _current(arrival.gateway, job, arrival.headers | REPLAYED)
    # Whether a worker has it already is not known yet.
    told = Answer(job, instructions).body("queued")
    return JSONResponse(told, headers={**arrival.headers, "x-request-id": str(job.id)})


async def _before(arrival: Arrival, previous: str | None, most: int, given: int) -> list[Message]:
    """The conversation as far as the response ``previous``, with that. It is read from that one job: each keeps all.
    With the body, of ``given`` bytes, it may have ``most``."""
    if previous is None:
        return []
    try:
        job = await _stored(arrival.gateway, previous, arrival.principal.subject)
    except JobNotFound:
        raise _unusable(
            "previous_response_not_found", f"There is no response {previous} of yours to go on with."
        ) from None
    if job.status is not Status.COMPLETED:
        state = Answer(job).state()["status"]
        message = f"The response {previous} is {state}; only a completed one can be gone on with."
        raise _unusable("previous_response_not_completed", message)
    files = arrival.gateway.broker.files
    kept = [file for file in (job.payload_file, job.result_file) if file is not None]
    if given + sum([await files.size(file) for file in kept]) > most:
        message = "The conversation is too long to go on with: with this request it would be longer than one may be."
        raise Problem("payload_too_large", message)
    return conversation(job, await unstow(files, job), await unpack(files, job))


def _unusable(code: str, message: str) -> Problem:
    return Problem(code, message, errors=[{"loc": "previous_response_id", "msg": message}])


async def get(request: Request) -> Response:
    """``GET /v1/responses/{id}``: the response as it is, or with ``stream=true`` what is still new of it."""
    gateway, job = context(request), await _asked(request)
    if not flag(request, "stream", default=False):
        return await _current(gateway, job)
    if request.method == "HEAD":
        return Response(headers=HEADERS, media_type="text/event-stream")
    return Call(request, gateway, ResponseForm(await _instructions(gateway, job))).stream(job)


async def cancel(request: Request) -> Response:
    """``POST /v1/responses/{id}/cancel``. What has ended stays as it is."""
    gateway, job = context(request), await _asked(request)
    if not job.asked["background"]:
        message = "Only a response that was made with background: true can be cancelled; hang up to end another one."
        raise Problem("response_not_background", message)
    with suppress(JobFinished):
        await gateway.broker.queue.cancel(job.id, None)
    return await _current(gateway, await gateway.broker.reader.get(str(job.id), None))


async def delete(request: Request) -> Response:
    """``DELETE /v1/responses/{id}``: nobody gets it here any more; one that goes on is cancelled."""
    gateway, job = context(request), await _asked(request)
    with suppress(JobFinished):
        await gateway.broker.queue.cancel(job.id, None)
    await gateway.broker.queue.hide(job.id, None)
    return JSONResponse({"id": Answer(job).id, "object": "response", "deleted": True})


async def input_items(request: Request) -> Response:
    """``GET /v1/responses/{id}/input_items``: what the response answers, with the conversation before it."""
    gateway, job = context(request), await _asked(request)
    limit = integer(request, "limit", default=20, least=1, most=100)
    items = items_of(conversation(job, await unstow(gateway.broker.files, job), None), str(job.id))
    match request.query_params.get("order", "desc"):
        case "desc":
            items.reverse()
        case "asc":
            pass
        case other:
            raise Problem("invalid_query", f"order={other!r} is neither asc nor desc.")
    page = items[_after(request, items) :]
    shown = page[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": shown, **ends, "has_more": len(page) > limit}, headers=_NO_STORE)


def _after(request: Request, items: list[dict[str, Any]]) -> int:
    """Where the page begins."""
    if (last := request.query_params.get("after")) is None:
        return 0
    for index, item in enumerate(items):
        if item["id"] == last:
            return index + 1
    raise Problem("invalid_cursor", f"after={last[:100]!r} is no item of this response.")


async def _asked(request: Request) -> Job:
    """The job of the response that the path names. Raises JobNotFound, also for one that is none of the client's."""
    return await _stored(context(request), request.path_params["id"], whose(principal_of(request)))


async def _stored(gateway: Context, given: str, subject: str | None) -> Job:
    job = await gateway.broker.reader.get(given.removeprefix("resp_"), subject)
    asked = job.asked
    if asked.get("api") != API or not asked["stored"] or asked.get("hidden"):
        raise JobNotFound(given)
    return job


async def _current(gateway: Context, job: Job, headers: Mapping[str, str] | None = None) -> Response:
    result = await unpack(gateway.broker.files, job) if job.status is Status.COMPLETED else None
    head = {**_NO_STORE, **(headers or {}), "x-request-id": str(job.id)}
    return JSONResponse(Answer(job, await _instructions(gateway, job)).state(result), headers=head)


async def _instructions(gateway: Context, job: Job) -> str | None:
    """Those that are not kept with what else the response tells of its request. Raises FileMissing."""
    return instructions_apart(job, await unstow(gateway.broker.files, job)) if job.asked.get("apart") else None

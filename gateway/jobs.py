"""The client's routes: submit a document or a chat, look a job up, wait for it, cancel it, list one's own."""

from collections.abc import Mapping
from typing import Any

from bson import ObjectId
from starlette.requests import Request
from starlette.responses import Response

from broker.errors import JobNotFound, QueueFull
from broker.feed import happens
from broker.job import Job, NewJob, Priority, Status, StoredFile, parse_job_id
from broker.results import unpack
from gateway.auth import Principal, principal_of
from gateway.context import Context, context, json_body
from gateway.model_choice import choose_model, require_room
from gateway.problems import Problem
from gateway.query import integer
from gateway.rate_limit import rate_limited
from gateway.schemas import JobBody, JobList
from gateway.submissions import SubmitOptions, read_chat, read_ocr, submit_options, wait_seconds
from gateway.views import accepted, job_body, summary


async def submit_ocr(request: Request) -> Response:
    gateway, principal = context(request), principal_of(request)
    options = submit_options(request, gateway.settings, principal)
    limits = await _admit(gateway, principal, "ocr", request.query_params.get("model"))
    submission = await read_ocr(request, gateway.settings.server.max_upload)
    workers = await gateway.broker.registry.known_workers()
    model = await choose_model(gateway, "ocr", submission.model, principal, workers)
    if not await gateway.broker.queue.has_room(model):
        raise gateway.broker.queue.full(model)
    file = await gateway.broker.files.put(submission.document, submission.media_type, submission.filename)
    payload = {"prompt": submission.prompt, "options": dict(submission.options)}
    new = _new_job("ocr", model, principal, options, payload, file)
    try:
        return await _submit(gateway, new, options, sum(worker.serves(model) for worker in workers), limits)
    except QueueFull:
        await gateway.broker.files.delete(file.id)
        raise


async def submit_chat(request: Request) -> Response:
    gateway, principal = context(request), principal_of(request)
    options = submit_options(request, gateway.settings, principal)
    limits = await _admit(gateway, principal, "chat", request.query_params.get("model"))
    submission = await read_chat(request)
    workers = await gateway.broker.registry.known_workers()
    model = await choose_model(gateway, "chat", submission.model, principal, workers)
    new = _new_job("chat", model, principal, options, submission.payload, None)
    return await _submit(gateway, new, options, sum(worker.serves(model) for worker in workers), limits)


async def _admit(gateway: Context, principal: Principal, task: str, asked: str | None) -> dict[str, str]:
    """The rate limit's headers. Raises Problem ``rate_limited``, QueueFull: all that needs no body."""
    settings = gateway.settings.rate_limit
    headers: dict[str, str] = {}
    if settings.enabled and principal.role not in settings.exempt_roles:
        decision = await gateway.limiter.acquire(principal.subject)
        if not decision.allowed:
            raise rate_limited(decision)
        headers = decision.headers()
    await require_room(gateway, task, asked)
    return headers


def _new_job(
    task: str,
    model: str,
    principal: Principal,
    options: SubmitOptions,
    payload: Mapping[str, Any],
    file: StoredFile | None,
) -> NewJob:
    return NewJob(
        task=task,
        model=model,
        subject=principal.subject,
        payload=payload,
        client=options.client,
        priority=Priority(options.priority),
        file=file,
    )


async def _submit(
    gateway: Context, new: NewJob, options: SubmitOptions, workers: int, limits: dict[str, str]
) -> Response:
    broker, headers = gateway.broker, {"Location": f"/api/jobs/{new.id}", **limits}
    # Whoever watches before the job is there misses nothing and need not look first.
    with broker.feed.watch(new.id) as ended:
        job = await broker.queue.submit(new)
        if options.wait is not None:
            headers["Preference-Applied"] = f"wait={options.wait}"
            await happens(ended, options.wait)
            job = await broker.reader.get(str(new.id), None)
    if job.status.terminal:
        return json_body(await _body(gateway, job), headers=headers)
    return json_body(accepted(job, await broker.positions.of(job), workers), 202, headers)


async def _wait(gateway: Context, job_id: ObjectId, subject: str | None, seconds: int) -> Job:
    return await gateway.broker.feed.when_ended(
        job_id, lambda: gateway.broker.reader.get(str(job_id), subject), float(seconds)
    )


async def _body(gateway: Context, job: Job) -> JobBody:
    position = await gateway.broker.positions.of(job)
    return job_body(job, position, await unpack(gateway.broker.files, job))


def _whose(principal: Principal) -> str | None:
    """None for an admin, who sees everybody's jobs."""
    return None if principal.role == "admin" else principal.subject


def _job_id(request: Request) -> ObjectId:
    job_id = parse_job_id(request.path_params["id"])
    if job_id is None:
        raise JobNotFound(request.path_params["id"])
    return job_id


async def get_job(request: Request) -> Response:
    gateway, principal = context(request), principal_of(request)
    wait = wait_seconds(request, gateway.settings)
    job = await _wait(gateway, _job_id(request), _whose(principal), wait or 0)
    headers = {"Cache-Control": "no-store"} | ({} if wait is None else {"Preference-Applied": f"wait={wait}"})
    return json_body(await _body(gateway, job), headers=headers)


async def cancel_job(request: Request) -> Response:
    gateway, whose = context(request), _whose(principal_of(request))
    job_id = _job_id(request)
    await gateway.broker.queue.cancel(job_id, whose)
    return json_body(await _body(gateway, await gateway.broker.reader.get(str(job_id), whose)))


async def list_jobs(request: Request) -> Response:
    gateway, query = context(request), request.query_params
    page = await gateway.broker.reader.newest(
        _whose(principal_of(request)),
        status=_status(query.get("status")),
        model=_model(gateway, query.get("model")),
        client=query.get("client"),
        before=_cursor(query.get("cursor")),
        limit=integer(request, "limit", default=50, least=1, most=200),
    )
    return json_body(JobList(jobs=[summary(job) for job in page.jobs], next_cursor=page.cursor))


def _status(text: str | None) -> Status | None:
    if text is None:
        return None
    try:
        return Status(text)
    except ValueError:
        raise Problem("invalid_query", f"status={text!r} is none of {', '.join(Status)}.") from None


def _model(gateway: Context, name: str | None) -> str | None:
    """An alias lists its model's jobs; a model that is configured no longer may still have some."""
    return None if name is None else gateway.settings.resolve(name) or name


def _cursor(text: str | None) -> ObjectId | None:
    cursor = None if text is None else parse_job_id(text)
    if text is not None and cursor is None:
        raise Problem("invalid_cursor", "The cursor is not one that a list of jobs gave.")
    return cursor

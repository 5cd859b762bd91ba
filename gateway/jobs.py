"""The client's routes on jobs: look one up, wait for it, cancel it, list one's own."""

from bson import ObjectId
from starlette.requests import Request
from starlette.responses import Response

from broker.errors import JobNotFound
from broker.job import Job, Status, parse_job_id
from broker.results import unpack
from gateway.auth import Principal, principal_of
from gateway.context import Context, context, json_body
from gateway.hops import route_headers
from gateway.problems import Problem
from gateway.query import integer
from gateway.schemas import JobBody, JobList
from gateway.submissions import wait_seconds
from gateway.views import job_body, summary


async def wait_for(gateway: Context, job_id: ObjectId, subject: str | None, seconds: int) -> Job:
    return await gateway.broker.feed.when_ended(
        job_id, lambda: gateway.broker.reader.get(str(job_id), subject), float(seconds)
    )


async def full_body(gateway: Context, job: Job) -> JobBody:
    position = await gateway.broker.positions.of(job)
    pages = await gateway.broker.pages.states(job.pages_id) if job.task == "ocr" else None
    return job_body(job, position, await unpack(gateway.broker.files, job), pages)


def whose(principal: Principal) -> str | None:
    """None for an admin, who sees everybody's jobs."""
    return None if principal.role == "admin" else principal.subject


def asked_job_id(request: Request) -> ObjectId:
    job_id = parse_job_id(request.path_params["id"])
    if job_id is None:
        raise JobNotFound(request.path_params["id"])
    return job_id


async def asked_job(request: Request) -> Job:
    """Raises JobNotFound, also for a job that is none of the client's."""
    job_id, subject = asked_job_id(request), whose(principal_of(request))
    return await context(request).broker.reader.get(str(job_id), subject)


async def get_job(request: Request) -> Response:
    gateway, principal = context(request), principal_of(request)
    wait = wait_seconds(request, gateway.settings)
    job = await wait_for(gateway, asked_job_id(request), whose(principal), wait or 0)
    headers = {"Cache-Control": "no-store"} | ({} if wait is None else {"Preference-Applied": f"wait={wait}"})
    return json_body(await full_body(gateway, job), headers=headers | route_headers(job))


async def cancel_job(request: Request) -> Response:
    gateway, subject = context(request), whose(principal_of(request))
    job_id = asked_job_id(request)
    await gateway.broker.queue.cancel(job_id, subject)
    return json_body(await full_body(gateway, await gateway.broker.reader.get(str(job_id), subject)))


async def list_jobs(request: Request) -> Response:
    gateway, query = context(request), request.query_params
    page = await gateway.broker.reader.newest(
        whose(principal_of(request)),
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

"""The routes that submit work: from a request to a durable job, and to its result where the client waits for it."""

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from broker.errors import QueueFull
from broker.job import Job, NewJob
from broker.job_updates import after_end
from broker.reuse import HOW_IT_RUNS, fingerprint
from gateway.answer_cache import cache_headers
from gateway.arrival import Arrival, arrive
from gateway.body import parse_json, read_body
from gateway.context import Context, json_body
from gateway.hops import route_headers
from gateway.jobs import full_body, wait_for
from gateway.submissions import CHAT_LIMIT, no_cache, read_chat, read_ocr
from gateway.switch_views import why_it_waits
from gateway.v1.work import work_of
from gateway.views import accepted


async def submit_ocr(request: Request) -> Response:
    arrival = await arrive(request, "ocr")
    gateway = arrival.gateway
    submission = await read_ocr(request, gateway.settings.server.max_upload)
    payload = {"prompt": submission.prompt, "options": dict(submission.options)}
    idempotency = arrival.idempotency(submission.model, payload, submission.document)
    if earlier := await arrival.earlier(idempotency):
        return await _replayed(arrival, earlier)
    arrival = await arrival.with_webhook(submission.webhook)
    model, workers = await arrival.model("ocr", submission.model)
    payload = {**arrival.payload(submission.model, payload)}
    new = await _with_fingerprint(gateway, arrival.new_job("ocr", model, payload, idempotency), submission.document)
    if not no_cache(request) and (answered := await _read_before(gateway, new)):
        return await (_reply(arrival, answered, workers) if answered.id == new.id else _replayed(arrival, answered))
    if not await gateway.broker.queue.has_room(model):
        raise gateway.broker.queue.full(model)
    file = await gateway.broker.files.put(new.id, submission.document, submission.media_type, submission.filename)
    try:
        return await _submit(arrival, replace(new, file=file), workers)
    except QueueFull:
        await gateway.broker.files.delete(file.id)
        raise


async def _with_fingerprint(gateway: Context, new: NewJob, document: bytes) -> NewJob:
    entry = gateway.settings.models[new.model].model_dump(mode="json", exclude=set(HOW_IT_RUNS))
    # Only models that have modes have one set; operators' choice goes before it.
    if "resolution" in entry and new.payload["options"].get("resolution") is None:
        entry["resolution"] = (await gateway.broker.desired.one(new.model)).resolution or entry["resolution"]
    return replace(new, fingerprint=fingerprint(document, new.model, entry, new.payload))


async def _read_before(gateway: Context, new: NewJob) -> Job | None:
    """The job, answered at once where the same has been read before."""
    assert new.fingerprint is not None
    origin = await gateway.broker.reuse.find(new.subject, new.fingerprint)
    return None if origin is None else await gateway.broker.queue.submit_answered(new, origin)


async def submit_chat(request: Request) -> Response:
    arrival = await arrive(request, "chat")
    submission = await read_chat(request)
    idempotency = arrival.idempotency(submission.model, submission.payload)
    if earlier := await arrival.earlier(idempotency):
        return await _replayed(arrival, earlier)
    arrival = await arrival.with_webhook(submission.webhook)
    model, workers = await arrival.model("chat", submission.model)
    payload = arrival.payload(submission.model, submission.payload)
    new = arrival.new_job("chat", model, payload, idempotency, stream=submission.stream)
    return await _submit(arrival, new, workers)


async def submit_embeddings(request: Request) -> Response:
    arrival = await arrive(request, "embedding")
    work = work_of("/v1/embeddings", parse_json(await read_body(request, CHAT_LIMIT)))
    shape = {"endpoint": request.url.path, "asked": dict(work.asked)}
    idempotency = arrival.idempotency(work.model, {**work.payload, **shape})
    if earlier := await arrival.earlier(idempotency):
        return await _replayed(arrival, earlier)
    new = await work.job(arrival, idempotency)
    workers = await arrival.gateway.broker.registry.known_workers()
    return await _submit(arrival, new, sum(worker.serves(new.model) for worker in workers))


async def _submit(arrival: Arrival, new: NewJob, workers: int) -> Response:
    broker, wait = arrival.gateway.broker, arrival.options.wait
    # Whoever watches before the job is there misses nothing and need not look first.
    with broker.feed.watch(new.id) as ending:
        job = await broker.submit(new)
        if job.id == new.id and wait is not None and not job.status.terminal:
            await ending.happens(wait)
            job = after_end(job, ending.changes) or await broker.reader.get(str(job.id), None)
    if job.id == new.id:
        return await _reply(arrival, job, workers)
    if new.file is not None:
        await broker.files.delete(new.file.id)
    return await _replayed(arrival, job)


async def _replayed(arrival: Arrival, job: Job) -> Response:
    """The answer to a repeated request: about the job that the first one made."""
    broker = arrival.gateway.broker
    job = await wait_for(arrival.gateway, job.id, None, arrival.options.wait or 0)
    workers = await broker.registry.known_workers()
    arrival.headers["Idempotent-Replayed"] = "true"
    return await _reply(arrival, job, sum(worker.serves(job.model) for worker in workers))


async def _reply(arrival: Arrival, job: Job, workers: int) -> Response:
    headers = {"Location": f"/api/jobs/{job.id}", **arrival.headers, **route_headers(job), **cache_headers(job)}
    if arrival.options.wait is not None:
        headers["Preference-Applied"] = f"wait={arrival.options.wait}"
        if job.status.terminal:
            return json_body(await full_body(arrival.gateway, job), headers=headers)
    broker = arrival.gateway.broker
    message = None if workers else await why_it_waits(broker, job.model)
    return json_body(accepted(job, await broker.positions.of(job), workers, message), 202, headers)

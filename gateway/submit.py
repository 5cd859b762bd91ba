"""The routes that submit work: from a request to a durable job, and to its result where the client waits for it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from broker.errors import QueueFull
from broker.job import Idempotency, Job, NewJob
from broker.job_updates import after_end
from broker.reuse import fingerprint
from gateway.auth import Principal, principal_of
from gateway.context import Context, context, json_body
from gateway.jobs import full_body, wait_for
from gateway.model_choice import choose_model, require_room
from gateway.payloads import OcrOptions
from gateway.rate_limit import rate_limited
from gateway.submissions import SubmitOptions, no_cache, read_chat, read_ocr, submit_options
from gateway.switch_views import why_it_waits
from gateway.views import accepted

# What an entry of the configuration says of how a model runs, and not of what it makes of a document.
_HOW_IT_RUNS = {"max_concurrent", "max_waiting", "timeout", "max_retries", "aliases", "description"}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that may submit: who sent it, how it is to be queued, and the headers of its answer."""

    gateway: Context
    principal: Principal
    options: SubmitOptions
    headers: dict[str, str]

    def idempotency(self, model: str | None, payload: Mapping[str, Any], document: bytes = b"") -> Idempotency | None:
        """The client's key with a digest of what it sent, decoded: the same file counts as the same in each form."""
        if self.options.key is None:
            return None
        content = json.dumps([model, payload], sort_keys=True).encode()
        return Idempotency(self.options.key, hashlib.sha256(content + b"\0" + document).hexdigest())


async def submit_ocr(request: Request) -> Response:
    arrival = await _arrive(request, "ocr")
    gateway = arrival.gateway
    submission = await read_ocr(request, gateway.settings.server.max_upload)
    payload = {"prompt": submission.prompt, "options": dict(submission.options)}
    idempotency = arrival.idempotency(submission.model, payload, submission.document)
    if earlier := await _earlier(arrival, idempotency):
        return await _replayed(arrival, earlier)
    model, workers = await _model(arrival, "ocr", submission.model)
    new = await _with_fingerprint(gateway, _new_job(arrival, "ocr", model, payload, idempotency), submission.document)
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
    entry = gateway.settings.models[new.model].model_dump(mode="json", exclude=_HOW_IT_RUNS)
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
    arrival = await _arrive(request, "chat")
    submission = await read_chat(request)
    idempotency = arrival.idempotency(submission.model, submission.payload)
    if earlier := await _earlier(arrival, idempotency):
        return await _replayed(arrival, earlier)
    model, workers = await _model(arrival, "chat", submission.model)
    adapter = arrival.gateway.settings.adapter(submission.model)
    payload = submission.payload if adapter is None else {**submission.payload, "adapter": adapter}
    return await _submit(arrival, _new_job(arrival, "chat", model, payload, idempotency), workers)


async def _arrive(request: Request, task: str) -> Arrival:
    """All that needs no body. Raises Problem ``rate_limited`` and those of the headers, QueueFull."""
    gateway, principal = context(request), principal_of(request)
    options = submit_options(request, gateway.settings, principal)
    settings = gateway.settings.rate_limit
    headers: dict[str, str] = {}
    if settings.enabled and principal.role not in settings.exempt_roles:
        decision = await gateway.limiter.acquire(principal.subject)
        if not decision.allowed:
            raise rate_limited(decision)
        headers = decision.headers()
    # What was accepted before needs no room.
    if options.key is None or not await gateway.broker.queue.keys.known(principal.subject, options.key):
        await require_room(gateway, task, request.query_params.get("model"))
    return Arrival(gateway, principal, options, headers)


async def _earlier(arrival: Arrival, idempotency: Idempotency | None) -> Job | None:
    if idempotency is None:
        return None
    return await arrival.gateway.broker.queue.keys.earlier(arrival.principal.subject, idempotency)


async def _model(arrival: Arrival, task: str, asked: str | None) -> tuple[str, int]:
    """The model to run it, and how many workers serve that."""
    workers = await arrival.gateway.broker.registry.known_workers()
    model = await choose_model(arrival.gateway, task, asked, arrival.principal, workers)
    return model, sum(worker.serves(model) for worker in workers)


def _new_job(
    arrival: Arrival,
    task: str,
    model: str,
    payload: Mapping[str, Any],
    idempotency: Idempotency | None,
) -> NewJob:
    return NewJob(
        task=task,
        model=model,
        subject=arrival.principal.subject,
        payload=_with_defaults(arrival.gateway, task, model, payload),
        client=arrival.options.client,
        priority=arrival.options.priority,
        idempotency=idempotency,
    )


def _with_defaults(gateway: Context, task: str, model: str, payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the client leaves open is as operators have set it for the model, if they have."""
    sampling = gateway.broker.models.sampling(model)
    if task == "ocr":
        known = {key: value for key, value in sampling.items() if key in OcrOptions.model_fields}
        return {**payload, "options": {**known, **payload["options"]}}
    return {**sampling, **payload}


async def _submit(arrival: Arrival, new: NewJob, workers: int) -> Response:
    broker, wait = arrival.gateway.broker, arrival.options.wait
    # Whoever watches before the job is there misses nothing and need not look first.
    with broker.feed.watch(new.id) as ending:
        job = await broker.queue.submit(new)
        if job.id == new.id and wait is not None:
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
    headers = {"Location": f"/api/jobs/{job.id}", **arrival.headers}
    if arrival.options.wait is not None:
        headers["Preference-Applied"] = f"wait={arrival.options.wait}"
        if job.status.terminal:
            return json_body(await full_body(arrival.gateway, job), headers=headers)
    broker = arrival.gateway.broker
    message = None if workers else await why_it_waits(broker, job.model)
    return json_body(accepted(job, await broker.positions.of(job), workers, message), 202, headers)

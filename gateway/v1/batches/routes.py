"""``/v1/batches``: files of requests that run when there is room, and whose answers come in files."""

import asyncio
import hashlib
import json
from dataclasses import asdict
from typing import Annotated, Literal

from bson import ObjectId
from pydantic import StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from broker.batch import ERRORS, OUTPUT, Batch, BatchStatus, Counts, NewBatch
from broker.batches import Batches, parse_batch_id
from broker.job import Idempotency, Priority
from broker.uploads import public_id
from gateway.arrival import admitted
from gateway.auth import principal_of
from gateway.body import invalid_request, parse_json, read_body, validated
from gateway.calls import REPLAYED
from gateway.context import context, json_body
from gateway.jobs import whose
from gateway.payloads import Payload
from gateway.problems import Problem
from gateway.query import integer
from gateway.submissions import SubmitOptions, submit_options
from gateway.v1.batches.feeder import feeder_of
from gateway.v1.batches.schemas import BatchFault, BatchFaults, BatchList, BatchObject, RequestCounts
from gateway.v1.objects import Metadata

# Bytes of a request, with its metadata.
_LIMIT = 64 * 1024
WINDOW = 24 * 3600.0
"""Seconds after which a batch expires."""


class BatchRequest(Payload):
    input_file_id: Annotated[str, StringConstraints(max_length=100)]
    """A file with the purpose `batch`: each line a request, see there."""
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    """Where each of its requests would be sent."""
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


async def create(request: Request) -> Response:
    """Raises FileNotFound, IdempotencyConflict, TooManyBatches and Problem: those of the headers and the body, and
    ``rate_limited``."""
    gateway, principal = context(request), principal_of(request)
    options = submit_options(request, gateway.settings, principal)
    if options.webhook is not None:
        message = "A batch tells nobody of its end: look it up by GET /v1/batches/{id}, and leave X-Webhook-URL out."
        raise Problem("invalid_webhook", message)
    headers = await admitted(gateway, principal)
    asked = validated(BatchRequest, parse_json(await read_body(request, _LIMIT)))
    idempotency = _idempotency(options, asked)
    batches = gateway.broker.batches
    if earlier := await batches.earlier(principal.subject, idempotency):
        return json_body(await _counted(batches, earlier), headers=headers | REPLAYED)
    upload = await gateway.broker.uploads.get(asked.input_file_id, whose(principal))
    if upload.purpose != "batch":
        message = f"The file has the purpose {upload.purpose!r}; a batch takes one that was uploaded with 'batch'"
        raise invalid_request([{"loc": "input_file_id", "msg": message}])
    new = NewBatch(
        subject=principal.subject,
        role=principal.role,
        endpoint=asked.endpoint,
        input=upload.id,
        content=upload.content,
        window=WINDOW,
        metadata=asked.metadata,
        client=options.client,
        priority=options.priority if "x-priority" in request.headers else Priority.LOW,
        timeout=options.timeout,
        idempotency=idempotency,
        cache=options.cache,
        fresh=options.fresh,
    )
    batch = await batches.create(new)
    if batch.id != new.id:
        return json_body(await _counted(batches, batch), headers=headers | REPLAYED)
    feeder_of(request).wake()
    return json_body(batch_object(batch, Counts(0, 0, 0)), headers=headers)


def _idempotency(options: SubmitOptions, asked: BatchRequest) -> Idempotency | None:
    if options.key is None:
        return None
    content = json.dumps(asked.model_dump(), sort_keys=True).encode()
    return Idempotency(options.key, hashlib.sha256(content).hexdigest())


async def get(request: Request) -> Response:
    """Raises BatchNotFound."""
    batches, subject = context(request).broker.batches, whose(principal_of(request))
    return json_body(await _counted(batches, await batches.get(request.path_params["id"], subject)))


async def cancel(request: Request) -> Response:
    """Raises BatchNotFound, BatchFinished."""
    batches, subject = context(request).broker.batches, whose(principal_of(request))
    batch = await batches.cancel(request.path_params["id"], subject)
    feeder_of(request).wake()
    return json_body(await _counted(batches, batch))


async def listed(request: Request) -> Response:
    batches, subject = context(request).broker.batches, whose(principal_of(request))
    limit = integer(request, "limit", default=20, least=1, most=100)
    found, more = await batches.listed(subject, _after(request.query_params.get("after")), limit)
    data = await asyncio.gather(*(_counted(batches, batch) for batch in found))
    return json_body(BatchList.of(data, more=more))


def _after(text: str | None) -> ObjectId | None:
    after = None if text is None else parse_batch_id(text)
    if text is not None and after is None:
        raise Problem("invalid_cursor", f"after={text!r} is no id of a batch.")
    return after


async def _counted(batches: Batches, batch: Batch) -> BatchObject:
    return batch_object(batch, await batches.counts(batch))


def batch_object(batch: Batch, counts: Counts) -> BatchObject:
    def at(status: BatchStatus) -> int | None:
        return int(batch.times[status].timestamp()) if status in batch.times else None

    # Before the batch has ended its files may not be there yet.
    outputs = (batch.outputs or {}) if batch.status is batch.ending else {}
    faults = [BatchFault(**asdict(fault)) for fault in batch.faults]
    return BatchObject(
        id=batch.public_id,
        endpoint=batch.endpoint,
        model=batch.model or None,
        errors=BatchFaults(data=faults) if faults else None,
        input_file_id=public_id(batch.input),
        status=batch.status.value,
        output_file_id=public_id(outputs[OUTPUT].id) if OUTPUT in outputs else None,
        error_file_id=public_id(outputs[ERRORS].id) if ERRORS in outputs else None,
        created_at=int(batch.created_at.timestamp()),
        expires_at=int(batch.expires_at.timestamp()),
        in_progress_at=at(BatchStatus.IN_PROGRESS),
        finalizing_at=at(BatchStatus.FINALIZING),
        completed_at=at(BatchStatus.COMPLETED),
        failed_at=at(BatchStatus.FAILED),
        expired_at=at(BatchStatus.EXPIRED),
        cancelling_at=at(BatchStatus.CANCELLING),
        cancelled_at=at(BatchStatus.CANCELLED),
        request_counts=RequestCounts(total=counts.total, completed=counts.completed, failed=counts.failed),
        metadata=None if batch.metadata is None else dict(batch.metadata),
    )

"""The requests of a batch as jobs, and the check that all of them can be."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import cast

from broker.batch import Batch, Fault, line_job_id
from broker.errors import FileMissing
from broker.job import BatchLine, NewJob
from config.errors import RoundhouseError
from gateway.answer_cache import Asked
from gateway.arrival import Arrival
from gateway.auth import Principal
from gateway.context import Context
from gateway.model_choice import require_backend
from gateway.problems import Problem
from gateway.submissions import ENVELOPE, SubmitOptions
from gateway.v1.batches.lines import Line, LineError, Request, lines, request_of
from gateway.v1.work import ENDPOINTS, model_task

LIMIT = 200 * 2**20
"""Bytes of a file."""
MOST_LINES = 50_000
# Faults that are told of a file, which may have one in each line.
MOST_FAULTS = 100
# Characters of what is told of each.
_LONGEST_TOLD = 1000
# Lines that are worked on without letting anybody else act: a millisecond or so.
AT_A_STRETCH = 8


def arrival_of(gateway: Context, batch: Batch) -> Arrival:
    """The request that made the batch, as each of its lines came with it."""
    timeout, model = batch.timeout, gateway.broker.models.get(batch.model)
    if timeout is not None and model is not None:
        # It was right as the file was checked: an operator who lowers the model's refuses no lines by that.
        timeout = min(timeout, model.timeout)
    options = SubmitOptions(
        client=batch.client,
        priority=batch.priority,
        wait=None,
        timeout=timeout,
        cache=cast(Asked | None, batch.cache),
        fresh=batch.fresh,
    )
    return Arrival(gateway, Principal(batch.subject, batch.role), options, {})


async def batch_lines(
    gateway: Context, batch: Batch, offset: int = 0, longest: int = LIMIT, most: int = LIMIT
) -> AsyncGenerator[Line, None]:
    """Those of the batch's file from ``offset`` on. Raises FileMissing, LineError."""
    async with (
        aclosing(gateway.broker.files.chunks(batch.content, offset)) as chunks,
        aclosing(lines(chunks, offset, longest=longest, most=most)) as found,
    ):
        async for line in found:
            yield line


def job_of(arrival: Arrival, batch: Batch, number: int, line: Line) -> NewJob:
    """The job for the batch's request ``number``, from 0. Raises LineError or RoundhouseError for one that has become
    impossible: what was right yesterday need not be so after a change of the configuration."""
    # The batch's model, and not once more what the request calls it: that may depend on which workers are there.
    new = request_of(line.data, batch.endpoint).work.job_for(arrival, batch.model)
    return replace(new, id=line_job_id(batch.id, number), batch=BatchLine(batch.id, number))


def refused_job(batch: Batch, number: int) -> NewJob:
    """What stands for a request that cannot be run any more."""
    return NewJob(
        task=ENDPOINTS[batch.endpoint][0],
        model=batch.model,
        subject=batch.subject,
        payload={},
        client=batch.client,
        priority=batch.priority,
        batch=BatchLine(batch.id, number),
        id=line_job_id(batch.id, number),
    )


@dataclass
class Check:
    """All of a batch's file, looked at once: ``faults`` or else ``total`` and ``model``."""

    gateway: Context
    batch: Batch
    faults: list[Fault] = field(default_factory=list)
    total: int = 0
    model: str = ""
    # Of the ids only what tells them apart, for there may be many and long ones.
    _seen: set[bytes] = field(default_factory=set)
    _models: dict[str, str | LineError] = field(default_factory=dict)

    async def run(self) -> None:
        """Raises PyMongoError."""
        try:
            await self._read()
        except LineError as error:
            self._note(error, error.line)
        except FileMissing:
            self.faults = [Fault("file_missing", "The file is no longer there.")]
        if self.total == 0 and not self.faults:
            self.faults = [Fault("empty_file", "The file holds no request.")]

    async def _read(self) -> None:
        # As long as the body of a request of its own may be.
        longest = self.gateway.settings.server.max_upload * 4 // 3 + ENVELOPE
        # Blank ones cost time, too.
        most = 2 * MOST_LINES
        async with aclosing(batch_lines(self.gateway, self.batch, longest=longest, most=most)) as found:
            async for line in found:
                if self.total == MOST_LINES:
                    raise LineError("too_many_lines", f"The file has more than {MOST_LINES} requests.")
                self.total += 1
                try:
                    await self._look_at(request_of(line.data, self.batch.endpoint))
                except LineError as error:
                    self._note(error, line.number)
                if len(self.faults) == MOST_FAULTS:
                    return
                if self.total % AT_A_STRETCH == 0:
                    await asyncio.sleep(0)

    async def _look_at(self, request: Request) -> None:
        digest = hashlib.blake2b(request.custom_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            message = f"Another line has the custom_id {request.custom_id!r}, too."
            raise LineError("duplicate_custom_id", message, "custom_id")
        self._seen.add(digest)
        asked = request.work.model
        if asked not in self._models:
            self._models[asked] = await self._resolve(request)
        model = self._models[asked]
        if isinstance(model, LineError):
            raise model
        try:
            require_backend(self.gateway.settings.models[model], model, request.work.payload)
        except Problem as problem:
            raise LineError(problem.code, problem.message, "body.modelKey") from problem
        self.model = self.model or model
        if model != self.model:
            message = f"All requests of a batch go to one model: this one to {model}, those before to {self.model}."
            raise LineError("mismatched_model", message, "body.model")

    async def _resolve(self, request: Request) -> str | LineError:
        """What the request's name for its model means, and what else holds for all that have the same."""
        arrival, work = arrival_of(self.gateway, self.batch), request.work
        try:
            model, _ = await arrival.model(model_task(work.task), work.model)
            return arrival.new_job(work.task, model, {}, None).model
        except RoundhouseError as error:
            return LineError(error.code, error.message, "body.model")

    def _note(self, error: LineError, line: int | None) -> None:
        # Both may quote the client, and all faults together have to go into one document.
        param = error.param and error.param[:_LONGEST_TOLD]
        self.faults.append(Fault(error.code, error.message[:_LONGEST_TOLD], line, param))

"""The files of answers of a batch: one line for each request, in the order of the input."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from bson import ObjectId

from broker.batch import ERRORS, OUTPUT, Batch, BatchStatus, Output
from broker.errors import FileMissing
from broker.files import FileStore, FileWriter
from broker.job import Job, Status
from broker.results import unpack
from gateway.context import Context
from gateway.problems import STATUS, Problem
from gateway.v1.answers import View
from gateway.v1.batches.lines import custom_id_of
from gateway.v1.batches.work import AT_A_STRETCH, batch_lines
from gateway.v1.errors import AnswerFailed, error_body

EXPIRED = "batch_expired"
CANCELLED = "batch_cancelled"
_UNANSWERED: Mapping[BatchStatus, tuple[str, str]] = {
    BatchStatus.EXPIRED: (EXPIRED, "The batch's completion window ended before this request could be executed."),
    BatchStatus.CANCELLED: (CANCELLED, "The batch was cancelled before this request had been executed."),
    # No job goes while its batch is open, but somebody may have deleted it by hand.
    BatchStatus.COMPLETED: ("answer_lost", "The job of this request, and its answer, are no longer there."),
}
# Requests whose jobs are read at once: results in job documents may be of 64 KB.
_PORTION = 50


def unanswered(ending: BatchStatus) -> tuple[str, str]:
    """(code, message) for a request that was not run to its end, in a batch that ends so."""
    return _UNANSWERED[ending]


def output_name(batch: Batch, kind: str) -> str:
    return f"{batch.public_id}_{kind}.jsonl"


class _Sheet:
    """A file of answers, which begins with its first line."""

    def __init__(self, files: FileStore, batch: Batch, kind: str, stack: AsyncExitStack) -> None:
        self._files = files
        self._batch = batch
        self._kind = kind
        self._stack = stack
        self._file: FileWriter | None = None
        self._lines = 0

    async def write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            name = output_name(self._batch, self._kind)
            self._file = await self._stack.enter_async_context(self._files.writer(self._batch.id, name))
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        await self._file.write(data)
        self._lines += 1

    @property
    def output(self) -> Output | None:
        """None where it has no line."""
        file = self._file
        return None if file is None else Output(ObjectId(), file.id, file.size, self._lines)


async def assemble(gateway: Context, batch: Batch) -> dict[str, Output]:
    """Writes the files, of a batch of which nothing runs any more. Raises FileMissing, PyMongoError."""
    files = gateway.broker.files
    async with AsyncExitStack() as stack:
        sheets = {kind: _Sheet(files, batch, kind, stack) for kind in (OUTPUT, ERRORS)}
        async with aclosing(_answers(gateway, batch)) as answers:
            async for kind, line in answers:
                await sheets[kind].write(line)
    return {kind: sheet.output for kind, sheet in sheets.items() if sheet.output is not None}


async def _answers(gateway: Context, batch: Batch) -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
    jobs: Mapping[int, Job] = {}
    number = 0
    async with aclosing(batch_lines(gateway, batch)) as found:
        async for line in found:
            if number == batch.total:
                return
            if number % _PORTION == 0:
                jobs = await gateway.broker.batches.jobs(batch, number, _PORTION)
            yield await _answer(gateway, batch, custom_id_of(line.data), number, jobs.get(number))
            number += 1
            if number % AT_A_STRETCH == 0:
                await asyncio.sleep(0)


async def _answer(
    gateway: Context, batch: Batch, custom_id: str, number: int, job: Job | None
) -> tuple[str, Mapping[str, Any]]:
    """(kind of file, line)."""
    told = {"id": f"batch_req_{batch.id}_{number}", "custom_id": custom_id}
    if job is None or not job.status.terminal or _was_closed(job):
        assert batch.ending is not None
        code, message = unanswered(batch.ending)
        return ERRORS, {**told, "response": None, "error": {"code": code, "message": message}}
    status, body = await _response(gateway, job)
    response = {"status_code": status, "request_id": str(job.id), "body": body}
    return OUTPUT if status == 200 else ERRORS, {**told, "response": response, "error": None}


def _was_closed(job: Job) -> bool:
    """Whether it was cancelled along with its batch."""
    return job.status is Status.CANCELLED and (job.error or {}).get("code") in (EXPIRED, CANCELLED)


async def _response(gateway: Context, job: Job) -> tuple[int, Mapping[str, Any]]:
    """The status and the body that a request of its own would have been answered with."""
    if job.status is not Status.COMPLETED:
        problem = _refusal(job) or AnswerFailed(job)
        return problem.status, error_body(problem)
    try:
        result = await unpack(gateway.broker.files, job)
    except FileMissing as error:
        return STATUS[error.code], error_body(Problem(error.code, error.message))
    assert result is not None  # of a completed job
    return 200, View(job).whole(result)


def _refusal(job: Job) -> Problem | None:
    """What a request would have been refused with that could not even become a job that runs."""
    error = job.error
    if error is None or job.attempts or job.status is not Status.FAILED or error["code"] not in STATUS:
        return None
    return Problem(error["code"], error["message"])

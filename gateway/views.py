"""Jobs as clients see them."""

from collections.abc import Mapping
from typing import Any, cast

from broker.job import Job
from broker.positions import Position
from gateway.schemas import (
    Accepted,
    AttemptError,
    JobBody,
    JobError,
    JobProgress,
    JobSummary,
    Links,
    Task,
)


def links(job: Job) -> Links:
    return Links(self=f"/api/jobs/{job.id}")


def _common(job: Job) -> dict[str, Any]:
    return {
        "request_id": str(job.id),
        "status": job.status.value,
        "task": job.task,
        "model": job.model,
        "client": job.client,
        "priority": job.priority.value,
        "attempts": job.attempts,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "progress": None if job.progress is None else JobProgress(**job.progress),
        "error": None if job.error is None else JobError(**job.error),
        "links": links(job),
    }


def _place(position: Position) -> dict[str, Any]:
    return {
        "position": position.number,
        "position_exact": position.exact,
        "eta_seconds": None if position.eta is None else round(position.eta, 3),
    }


def summary(job: Job) -> JobSummary:
    return JobSummary(**_common(job))


def job_body(job: Job, position: Position, result: Mapping[str, Any] | None) -> JobBody:
    return JobBody(
        **_common(job),
        **_place(position),
        max_retries=job.max_retries,
        worker=job.worker,
        result=None if result is None else dict(result),
        errors=[AttemptError(**error) for error in job.errors],
    )


def accepted(job: Job, position: Position, workers: int, message: str | None) -> Accepted:
    return Accepted(
        request_id=str(job.id),
        status=job.status.value,
        task=cast(Task, job.task),
        model=job.model,
        priority=job.priority.value,
        **_place(position),
        workers=workers,
        message=message,
        links=links(job),
    )

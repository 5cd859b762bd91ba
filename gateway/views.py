"""Jobs as clients see them."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from broker.job import Job
from broker.pages import PageState
from broker.positions import Position
from gateway.schemas import (
    Accepted,
    AskedBackend,
    AttemptError,
    Hop,
    JobBody,
    JobError,
    JobProgress,
    JobSummary,
    Links,
    PageStanding,
    Task,
)
from gateway.vectors import numbers


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


def job_body(
    job: Job, position: Position, result: Mapping[str, Any] | None, pages: Sequence[PageState] | None
) -> JobBody:
    """``pages``: None where the job is about no document."""
    return JobBody(
        **_common(job),
        **_place(position),
        **({"pages_done": None, "pages_total": None, "pages": None} if pages is None else _pages(job, pages, result)),
        max_retries=job.max_retries,
        worker=job.worker,
        cached_from=None if job.pages_of is None else str(job.pages_of),
        result=None if result is None else for_client(job, result),
        errors=[AttemptError(**error) for error in job.errors],
        hops=[Hop(**hop) for hop in job.hops],
        backends=[AskedBackend(**backend) for backend in job.backends],
    )


def _pages(job: Job, pages: Sequence[PageState], result: Mapping[str, Any] | None) -> dict[str, Any]:
    told = len(result["pages"]) if result is not None else None
    return {
        "pages_done": sum(page.ended for page in pages),
        "pages_total": told if job.progress is None else job.progress["total"],
        "pages": [PageStanding.model_validate({"number": page.number, "status": page.state}) for page in pages],
    }


def file_link(job: Job, name: str) -> str:
    return f"/api/jobs/{job.id}/files/{name}"


def for_client(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with links to its files. Of several choices the first is the answer, and all stand beside it."""
    links = {"files": {name: file_link(job, name) for name in job.files}}
    told = dict(result) | (links if job.files else {})
    if job.task == "embedding":
        return told | {"embeddings": [numbers(vector) for vector in told["embeddings"]]}
    if job.task == "ocr":
        return told
    first, *others = told.pop("choices")
    answer = {key: value for key, value in first.items() if key != "index"}
    return answer | told | ({"choices": [first, *others]} if others else {})


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

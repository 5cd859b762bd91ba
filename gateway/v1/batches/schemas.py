"""What the routes of files and batches answer, as ``/openapi.json`` has it."""

from collections.abc import Sequence
from typing import Literal, Self

from gateway.schemas import Body


class FileObject(Body):
    """An uploaded file, or one that was made. Times are seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    """`batch_output` for a file of answers."""
    status: Literal["processed"] = "processed"


class FileList(Body):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    """The next files are asked for with this as `after`."""
    has_more: bool

    @classmethod
    def of(cls, data: Sequence[FileObject], *, more: bool) -> Self:
        ids = [item.id for item in data]
        return cls(data=list(data), first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=more)


class DeletedFile(Body):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchFault(Body):
    code: str
    message: str
    line: int | None
    """Of the input file, from 1."""
    param: str | None


class BatchFaults(Body):
    object: Literal["list"] = "list"
    data: list[BatchFault]


class RequestCounts(Body):
    """What is in none of the last two has not ended."""

    total: int
    """0 until the file is validated."""
    completed: int
    failed: int


class BatchObject(Body):
    """A batch. Times are seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    """The model that runs it, once the file is validated."""
    errors: BatchFaults | None
    """What is wrong with the file."""
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    """The answers, in the order of the input file; null where there are none."""
    error_file_id: str | None
    """The requests without an answer, and why; null where there are none."""
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(Body):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    """The next batches are asked for with this as `after`."""
    has_more: bool

    @classmethod
    def of(cls, data: Sequence[BatchObject], *, more: bool) -> Self:
        ids = [item.id for item in data]
        return cls(data=list(data), first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=more)

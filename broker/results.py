"""Results: small ones in the job document, others in a file that the fenced write refers to."""

import json
from collections.abc import Mapping
from typing import Any

from broker.files import FileStore
from broker.job import Job
from broker.storable import unstorable

# Far below MongoDB's 16 MB, so that a job document stays quick to read, claim and replicate.
INLINE_LIMIT = 64 * 1024


async def pack(files: FileStore, job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """What ``JobQueue.complete`` writes: the result itself or, where no document can hold it or it has more than
    INLINE_LIMIT bytes of JSON, its file's id."""
    text = json.dumps(result, ensure_ascii=False).encode()
    if len(text) <= INLINE_LIMIT and not unstorable(result):
        return {"result": dict(result)}
    return {"result_file": (await files.put(job.id, text, "application/json")).id}


async def unpack(files: FileStore, job: Job) -> Mapping[str, Any] | None:
    """The job's result, wherever it is kept; None while there is none."""
    result: Mapping[str, Any] | None = job.result
    if job.result_file is not None:
        result = json.loads(await files.get(job.result_file))
    return None if result is None else _of_today(result)


def _of_today(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Release 0.5 kept of a chat its only choice, without a list around it."""
    if "message" not in result or "choices" in result:
        return result
    choice = {key: result[key] for key in ("message", "finish_reason") if key in result}
    rest = {key: value for key, value in result.items() if key not in choice}
    return {"choices": [{"index": 0, "finish_reason": "stop", **choice}], **rest}

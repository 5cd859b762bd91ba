"""What jobs carry for their engines: small payloads in the job document, large parts in a file beside it.

A chat with pictures is of many megabytes: a document so large would be slow to claim and to replicate, and MongoDB
takes none over 16 MB.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bson import ObjectId

from broker.files import FileStore
from broker.job import Job, NewJob

# Characters of JSON of all that a job document carries for its engine.
INLINE_LIMIT = 256 * 1024
# What may be long. The rest stays in the document, where claims and fallbacks look at it.
_LONG = ("messages", "prompt", "input")


def long_parts(new: NewJob) -> bytes | None:
    """The payload's long parts as a file has them; None where they are short enough for the job's document."""
    text = json.dumps({key: new.payload[key] for key in _LONG if key in new.payload})
    return text.encode() if len(text) > INLINE_LIMIT else None


def stowed(new: NewJob, payload_file: ObjectId) -> NewJob:
    """The job with its payload's long parts in that file."""
    rest = {key: value for key, value in new.payload.items() if key not in _LONG}
    return replace(new, payload=rest, payload_file=payload_file)


async def unstow(files: FileStore, job: Job) -> Mapping[str, Any]:
    """The whole payload. Raises FileMissing."""
    if job.payload_file is None:
        return job.payload
    return {**json.loads(await files.get(job.payload_file)), **job.payload}

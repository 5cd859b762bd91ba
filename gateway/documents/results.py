"""The client's routes on what a job has come to: its result in several formats, its pages, and their files."""

import re
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from bson import ObjectId
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from broker.broker import Broker
from broker.job import Job
from broker.pages import SEARCHABLE_PDF, StoredPage
from broker.results import unpack
from gateway.context import context, json_body
from gateway.documents import overlay, page_ranges, rendering
from gateway.documents.result_formats import MEDIA_TYPES, Chunks, Document, image_name, page_body
from gateway.jobs import asked_job
from gateway.problems import Problem
from gateway.query import flag, integer
from gateway.views import file_link, for_client

# Seconds after which to ask again for what is being made.
_SOON = 1
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_NUMBER = re.compile(r"[1-9][0-9]{0,6}")
_PAGE_FILE = re.compile(r"page-0*([1-9][0-9]{0,6})[-.][a-z0-9.-]{1,40}")
_FILE_TYPES = {"jpg": "image/jpeg", "png": "image/png", "pdf": "application/pdf"}
# What is answered here was made of a stranger's document: a browser is not to guess at it, nor to let it do anything.
_HEADERS = {
    "Cache-Control": "private, no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}


class Streamed(StreamingResponse):
    """Leaves its source closed, also where the client goes away. HEAD is answered without making what GET would get."""

    body_iterator: Chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "HEAD":
            await super().__call__(scope, receive, send)
            return
        async with aclosing(self.body_iterator):
            # A generator that was never begun would not close its own source.
            await anext(self.body_iterator, b"")
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body"})

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


async def begun(chunks: Chunks) -> Chunks:
    """The same chunks, of which the first is there: what goes wrong until then is answered as any other problem."""
    first = await anext(chunks, b"")

    async def all_of_them() -> Chunks:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return all_of_them()


async def get_result(request: Request) -> Response:
    broker, job = context(request).broker, await asked_job(request)
    _check_query(request, "format", "overlay", "page")
    if flag(request, "overlay", default=False):
        return await _overlay(request, broker, job)
    if "page" in request.query_params:
        raise Problem("invalid_query", f"page goes with overlay=1; a page alone is at /api/jobs/{job.id}/pages/N.")
    wanted = request.query_params.get("format", "json")
    if wanted not in MEDIA_TYPES:
        raise Problem("invalid_query", f"format={wanted[:50]!r} is none of {', '.join(MEDIA_TYPES)}.")
    result = await _result(broker, job)
    if job.task != "ocr":
        return _plain(job, result, wanted)
    return await _document(broker, Document(job, result, broker.pages, broker.files), wanted)


def _check_query(request: Request, *known: str) -> None:
    for name in request.query_params:
        if name not in known:
            raise Problem("invalid_query", f"There is no query parameter {name[:50]!r} here.")


async def _result(broker: Broker, job: Job) -> Mapping[str, Any]:
    if not job.status.terminal:
        raise Problem(
            "job_not_finished",
            f"Job {job.id} is {job.status}; ask again when it has ended, or for its pages one by one.",
            headers={"Retry-After": str(_SOON)},
            job_status=job.status.value,
        )
    result = await unpack(broker.files, job)
    if result is None:
        error = dict(job.error) if job.error is not None else None
        why = f": {error['message'].rstrip('.')} ({error['code']})" if error is not None else ""
        message = f"Job {job.id} ended {job.status}, without a result{why}."
        raise Problem("job_without_result", message, job_status=job.status.value, error=error)
    return result


def _plain(job: Job, result: Mapping[str, Any], wanted: str) -> Response:
    if wanted != "json":
        raise Problem("format_not_available", f"Job {job.id} read no document: its result comes as format=json alone.")
    return Response(to_json(for_client(job, result)), headers=_HEADERS, media_type=MEDIA_TYPES["json"])


async def _document(broker: Broker, document: Document, wanted: str) -> Response:
    job, headers = document.job, dict(_HEADERS)
    match wanted:
        case "json":
            chunks = document.json(partial(file_link, job))
        case "markdown":
            chunks = document.markdown()
        case "text":
            chunks = document.text()
        case "html":
            chunks = document.html(embed=True)
            headers["Content-Security-Policy"] = rendering.POLICY
        case "zip":
            chunks = document.zip()
            headers |= _kept_as("attachment", f"{job.id}.zip")
        case _:
            if SEARCHABLE_PDF not in job.files:
                raise Problem("no_searchable_pdf", _how_to_get_one(job))
            chunks = broker.files.chunks(job.files[SEARCHABLE_PDF])
            headers |= _kept_as("attachment", f"{job.id}.pdf") | await _length(broker, job.files[SEARCHABLE_PDF])
    return Streamed(await begun(chunks), headers=headers, media_type=MEDIA_TYPES[wanted])


def _kept_as(disposition: str, name: str) -> dict[str, str]:
    return {"Content-Disposition": f'{disposition}; filename="{_UNSAFE.sub("_", name)}"'}


async def _length(broker: Broker, file_id: ObjectId) -> dict[str, str]:
    return {"Content-Length": str(await broker.files.size(file_id))}


def _how_to_get_one(job: Job) -> str:
    if job.payload.get("options", {}).get("searchable_pdf"):
        return f"Job {job.id} has no searchable PDF: {job.model} makes none, Tesseract does."
    return f"Job {job.id} has no searchable PDF; submit the document again with searchable_pdf=true to get one."


async def _overlay(request: Request, broker: Broker, job: Job) -> Response:
    if "format" in request.query_params:
        raise Problem("invalid_query", "overlay=1 is an SVG; leave format out.")
    number = integer(request, "page", default=1, least=1, most=9_999_999)
    page = await _page(broker, job, number)
    if image_name(number) not in page.files:
        raise Problem("file_not_found", f"There is no picture of page {number} of job {job.id}: it could not be drawn.")
    drawn = overlay.svg(page.record, await broker.files.get(page.files[image_name(number)]))
    headers = _HEADERS | {"Content-Security-Policy": overlay.POLICY}
    return Response(drawn, headers=headers, media_type="image/svg+xml")


async def get_page(request: Request) -> Response:
    broker, job = context(request).broker, await asked_job(request)
    asked = request.path_params["number"]
    page = await _page(broker, job, int(asked) if _NUMBER.fullmatch(asked) else 0)
    return json_body(page_body(page, partial(file_link, job)), headers=_HEADERS)


async def _page(broker: Broker, job: Job, number: int) -> StoredPage:
    """Raises Problem ``page_not_found`` or, where it may yet come to its end, ``page_not_finished``."""
    page = await broker.pages.get(job.pages_id, number) if number else None
    if page is not None:
        return page
    if not _may_come(job, number):
        why = f"; the job ended {job.status}" if job.status.terminal else ""
        raise Problem("page_not_found", f"Job {job.id} has no page {number or 'of that number'}{why}.")
    raise Problem(
        "page_not_finished",
        f"Page {number} of job {job.id} has not been read yet; ask again, or follow /api/jobs/{job.id}/events.",
        headers={"Retry-After": str(_SOON)},
        job_status=job.status.value,
    )


def _may_come(job: Job, number: int) -> bool:
    if job.task != "ocr" or job.status.terminal or number < 1:
        return False
    asked = job.payload.get("options", {}).get("pages")
    if asked is not None:
        return page_ranges.contains(page_ranges.parse(asked), number)
    total = None if job.progress is None else job.progress["total"]
    return total is None or number <= total


async def get_file(request: Request) -> Response:
    broker, job = context(request).broker, await asked_job(request)
    name = request.path_params["name"]
    file_id = await _file_id(broker, job, name)
    if file_id is None:
        raise Problem("file_not_found", f"Job {job.id} has no file of that name.")
    media_type = _FILE_TYPES.get(name.rpartition(".")[2], "application/octet-stream")
    disposition = "inline" if media_type.startswith("image/") else "attachment"
    headers = _HEADERS | _kept_as(disposition, name) | await _length(broker, file_id)
    return Streamed(await begun(broker.files.chunks(file_id)), headers=headers, media_type=media_type)


async def _file_id(broker: Broker, job: Job, name: str) -> ObjectId | None:
    """Names are only ever compared with those that are stored."""
    if name in job.files:
        return job.files[name]
    found = _PAGE_FILE.fullmatch(name)
    page = await broker.pages.get(job.pages_id, int(found[1])) if found else None
    return None if page is None else page.files.get(name)

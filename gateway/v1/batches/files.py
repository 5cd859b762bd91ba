"""``/v1/files``: files that clients send, above all requests for batches, and those that are made for them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal, get_args

from bson import ObjectId
from starlette.requests import Request
from starlette.responses import Response

from broker.files import FileStore, FileWriter
from broker.uploads import Upload, parse_upload_id
from gateway.arrival import admitted
from gateway.auth import principal_of
from gateway.body import body_chunks, invalid_request, too_large
from gateway.context import context, json_body
from gateway.documents.results import Streamed, begun
from gateway.jobs import whose
from gateway.multipart import Event, Part, form_events
from gateway.problems import Problem
from gateway.query import integer
from gateway.submissions import ENVELOPE, safe_name
from gateway.v1.batches.schemas import DeletedFile, FileList, FileObject
from gateway.v1.batches.work import LIMIT

Purpose = Literal["batch", "user_data"]
_PURPOSES = get_args(Purpose)
# Bytes of a field that is no file.
_LONGEST_FIELD = 1024
_HEADERS = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}


class _Form:
    """A form with a file, which goes to the store as it comes."""

    def __init__(self, store: FileStore, upload: ObjectId) -> None:
        self._store = store
        self._upload = upload
        self._fields: dict[str, bytes] = {}
        self.name: str | None = None
        self.content: ObjectId | None = None
        self.size = 0

    async def read(self, events: AsyncGenerator[Event, None]) -> None:
        """Raises Problem; then what was stored of a file is deleted, or is swept later."""
        event = await anext(events, None)
        while event is not None:
            assert isinstance(event, Part)  # each one is read to its end
            if event.filename is None:
                event = await self._read_field(event.name, events)
            else:
                event = await self._read_file(event, events)

    async def _read_field(self, name: str, events: AsyncGenerator[Event, None]) -> Event | None:
        """Returns what comes after it."""
        if name not in ("purpose", "file"):
            raise invalid_request([{"loc": name, "msg": "There is no such field here"}])
        value = b""
        while (event := await anext(events, None)) is not None and not isinstance(event, Part):
            value += event.data
            if len(value) > _LONGEST_FIELD:
                raise invalid_request([{"loc": name, "msg": f"It is longer than {_LONGEST_FIELD} bytes"}])
        self._fields[name] = value
        return event

    async def _read_file(self, part: Part, events: AsyncGenerator[Event, None]) -> Event | None:
        if part.name != "file":
            raise Problem("no_file", f"The file is in the field {part.name!r}; send it in the field 'file'.")
        if self.content is not None:
            raise Problem("several_documents", "The form has several files; send one a request.")
        self.name = safe_name(part.filename)
        async with self._store.writer(self._upload, self.name or "file") as file:
            event = await self._copy(file, events)
        self.content, self.size = file.id, file.size
        return event

    async def _copy(self, file: FileWriter, events: AsyncGenerator[Event, None]) -> Event | None:
        while (event := await anext(events, None)) is not None and not isinstance(event, Part):
            if file.size + len(event.data) > LIMIT:
                raise too_large(LIMIT)
            await file.write(event.data)
        return event

    def purpose(self) -> str:
        """Raises Problem where it, or the file, is not there."""
        if self.content is None:
            hint = " as a file, not as text (curl: -F file=@NAME)" if "file" in self._fields else ""
            raise Problem("no_file", f"The form has no file; send it in the field 'file'{hint}.")
        if self.size == 0:
            raise Problem("empty_body", "The file is empty.")
        asked = self._fields.get("purpose", b"").decode("utf-8", "replace")
        if asked not in _PURPOSES:
            known = " or ".join(repr(purpose) for purpose in _PURPOSES)
            raise invalid_request([{"loc": "purpose", "msg": f"It has to be {known}, not {asked!r}"}])
        return asked


async def create(request: Request) -> Response:
    """Raises Problem ``rate_limited``, ``payload_too_large`` and those of the form."""
    gateway, principal = context(request), principal_of(request)
    headers = await admitted(gateway, principal)
    upload = ObjectId()
    form = _Form(gateway.broker.files, upload)
    try:
        async with (
            aclosing(body_chunks(request, LIMIT + ENVELOPE, LIMIT)) as chunks,
            aclosing(form_events(request.headers.get("content-type", ""), chunks)) as events,
        ):
            await form.read(events)
        purpose = form.purpose()
    except Problem:
        if form.content is not None:
            await gateway.broker.files.delete(form.content)
        raise
    assert form.content is not None
    stored = await gateway.broker.uploads.add(
        upload, principal.subject, form.name or "file", purpose, form.size, form.content
    )
    return json_body(file_object(stored), headers=headers)


def file_object(upload: Upload) -> FileObject:
    return FileObject(
        id=upload.public_id,
        bytes=upload.size,
        created_at=int(upload.created_at.timestamp()),
        filename=upload.name,
        purpose=upload.purpose,
    )


async def listed(request: Request) -> Response:
    query = request.query_params
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise Problem("invalid_query", f"order={order!r} is neither asc nor desc.")
    uploads, more = await context(request).broker.uploads.listed(
        whose(principal_of(request)),
        purpose=query.get("purpose"),
        after=_after(query.get("after")),
        limit=integer(request, "limit", default=1000, least=1, most=10_000),
        ascending=order == "asc",
    )
    data = [file_object(upload) for upload in uploads]
    return json_body(FileList.of(data, more=more))


def _after(text: str | None) -> ObjectId | None:
    after = None if text is None else parse_upload_id(text)
    if text is not None and after is None:
        raise Problem("invalid_cursor", f"after={text!r} is no id of a file.")
    return after


async def _asked(request: Request) -> Upload:
    """Raises FileNotFound."""
    return await context(request).broker.uploads.get(request.path_params["id"], whose(principal_of(request)))


async def get(request: Request) -> Response:
    return json_body(file_object(await _asked(request)))


async def content(request: Request) -> Response:
    """Raises FileNotFound."""
    upload, store = await _asked(request), context(request).broker.files
    headers = _HEADERS | {"Content-Length": str(upload.size)}
    return Streamed(await begun(store.chunks(upload.content)), headers=headers, media_type="application/octet-stream")


async def delete(request: Request) -> Response:
    """Raises FileNotFound, FileInUse."""
    uploads, subject = context(request).broker.uploads, whose(principal_of(request))
    upload = await uploads.delete(request.path_params["id"], subject)
    return json_body(DeletedFile(id=upload.public_id))

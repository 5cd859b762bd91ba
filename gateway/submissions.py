"""Requests → submissions: what a client sent, checked, and in one form whichever of the ways in it took."""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, get_args

from starlette.datastructures import QueryParams, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from broker.job import Priority
from broker.media import sniff
from config import Settings
from config.models import Resolution
from gateway.answer_cache import Asked, asked_cache
from gateway.auth import Principal
from gateway.body import body_chunks, parse_json, read_body, too_large, validated
from gateway.data_urls import decoded
from gateway.payloads import (
    ChatRequest,
    FilePart,
    ImagePart,
    OcrFields,
    OcrOptions,
    OcrRequest,
    TextPart,
    WebhookFields,
)
from gateway.problems import Problem
from gateway.query import LONGEST
from gateway.webhooks.messages import Webhook, from_fields, from_headers

CHAT_LIMIT = 2**20
"""Bytes of a chat request's body."""

# What surrounds a document of the full size: the texts of a JSON body, the fields and headers of a form.
ENVELOPE = 2**20
_READING = OcrFields.model_fields.keys() & OcrOptions.model_fields.keys()
# What of a chat is about the job, or becomes its messages.
_NO_SAMPLING = {"model", "messages", "message", "system", "stream", *WebhookFields.model_fields}
_TYPES = "JPEG, PNG, WebP, BMP, TIFF and PDF"
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")
_WAIT = re.compile(r"[0-9]{1,6}")
_DATA_URL = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """How a job is to be queued and answered. ``wait`` in seconds; None: answer at once. ``key``: Idempotency-Key.
    ``timeout``: seconds for each attempt; None: the model's. ``webhook``: who is told of its end. ``cache``: whether an
    answer may be used again; None: as the model's entry says. ``fresh``: no earlier one is wanted."""

    client: str | None
    priority: Priority
    wait: int | None
    key: str | None = None
    timeout: float | None = None
    webhook: Webhook | None = None
    cache: Asked | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class OcrSubmission:
    """A document to be read. ``media_type`` is told from the bytes, whatever the client claimed.

    ``options``: those of ``OcrOptions`` that were given.
    """

    document: bytes = field(repr=False)
    media_type: str
    filename: str | None
    model: str | None
    prompt: str | None
    options: Mapping[str, Any]
    webhook: Webhook | None = None


@dataclass(frozen=True, slots=True)
class ChatSubmission:
    """A conversation. ``payload``: ``messages`` (role and content, both str), and of the sampling what was given.
    ``stream``: its answer is to be followed while it is generated."""

    model: str | None
    payload: dict[str, Any]
    stream: bool = False
    webhook: Webhook | None = None


def submit_options(request: Request, settings: Settings, principal: Principal) -> SubmitOptions:
    """Raises Problem ``invalid_cache``, ``invalid_client_id``, ``invalid_idempotency_key``, ``invalid_priority``,
    ``invalid_timeout``, ``invalid_wait``, ``invalid_webhook`` or ``priority_not_allowed``."""
    role = settings.auth.roles.get(principal.role)
    # A role that the configuration no longer has may ask for nothing.
    highest = Priority.LOW if role is None else Priority(role.max_priority)
    return SubmitOptions(
        client=_client(request.headers.get("x-client-id")),
        priority=priority_of(request.headers.get("x-priority"), principal.role, highest),
        wait=wait_seconds(request, settings),
        key=_idempotency_key(request.headers.get("idempotency-key")),
        timeout=_timeout(request.headers.get("x-timeout")),
        webhook=from_headers(request.headers),
        cache=asked_cache(request.headers.get("x-cache")),
        fresh=no_cache(request),
    )


def _timeout(asked: str | None) -> float | None:
    if asked is not None and not (_SECONDS.fullmatch(asked) and float(asked) >= 1):
        raise Problem("invalid_timeout", f"X-Timeout has to be a number of seconds from 1, e.g. 30, not {asked!r}.")
    return None if asked is None else float(asked)


def _idempotency_key(key: str | None) -> str | None:
    if key is not None and not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise Problem("invalid_idempotency_key", "Idempotency-Key has to be 1 to 255 printable ASCII characters.")
    return key


def _client(label: str | None) -> str | None:
    if label is None:
        return None
    if not 1 <= len(label) <= 128 or not label.isascii() or not label.isprintable():
        raise Problem("invalid_client_id", "X-Client-ID has to be 1 to 128 printable ASCII characters.")
    return label


def priority_of(asked: str | None, role: str, highest: Priority) -> Priority:
    """The priority that X-Priority says; without one, normal or the highest that the role may have."""
    if asked is None:
        return max(Priority.NORMAL, highest, key=lambda priority: priority.level)
    try:
        priority = Priority(asked.strip().lower())
    except ValueError:
        raise Problem("invalid_priority", f"X-Priority has to be high, normal or low, not {asked!r}.") from None
    if priority.level < highest.level:
        raise Problem("priority_not_allowed", f"The role {role} may ask for {highest} at most, not {priority}.")
    return priority


def wait_seconds(request: Request, settings: Settings) -> int | None:
    """From ``?wait=N`` or, in its absence, ``Prefer: wait=N`` (RFC 7240); raises Problem ``invalid_wait``."""
    asked = request.query_params.get("wait")
    if asked is None:
        asked = preference(request.headers.getlist("prefer"), "wait")
    if asked is None:
        return None
    most = int(settings.server.max_wait)
    if not _WAIT.fullmatch(asked) or int(asked) > most:
        raise Problem("invalid_wait", f"wait={asked!r} is no whole number of seconds from 0 to {most}.")
    return int(asked)


def no_cache(request: Request) -> bool:
    """Whether the client wants its document read even where the same has been read before (RFC 9111 section 5.2.1)."""
    directives = ",".join(request.headers.getlist("cache-control")).lower().split(",")
    return any(directive.strip() in ("no-cache", "no-store", "max-age=0") for directive in directives)


def preference(values: list[str], name: str) -> str | None:
    """The value of the first preference of that name (RFC 7240 section 2), whose parameters do not count."""
    for entry in ",".join(values).split(","):
        key, _, value = entry.partition(";")[0].partition("=")
        if key.strip().lower() == name:
            return value.strip().strip('"')
    return None


async def read_chat(request: Request, limit: int = CHAT_LIMIT) -> ChatSubmission:
    """The body of ``POST /api/chat``, of ``limit`` bytes at most.

    Raises Problem ``payload_too_large``, ``empty_body``, ``invalid_json`` or ``invalid_request``.
    """
    _check_query(request.query_params, {})
    chat = validated(ChatRequest, parse_json(await read_body(request, limit)))
    sampling = chat.model_dump(exclude=_NO_SAMPLING, exclude_none=True, by_alias=True)
    payload = {"messages": chat.conversation(), **sampling}
    return ChatSubmission(chat.model, payload, chat.stream, from_fields(chat))


async def read_ocr(request: Request, max_upload: int) -> OcrSubmission:
    """The body of ``POST /api/ocr`` in any of its three forms. ``max_upload``: bytes of the document.

    Raises Problem: ``invalid_resolution``, ``payload_too_large``, ``empty_body``, ``no_file``,
    ``several_documents``, ``unsupported_media_type``, ``invalid_json``, ``invalid_base64``, ``url_not_allowed``,
    ``invalid_multipart``, ``invalid_query`` or ``invalid_request``.
    """
    resolution = _resolution(request.headers.get("x-resolution"))
    match request.headers.get("content-type", "").partition(";")[0].strip().lower():
        case "application/json":
            _check_query(request.query_params, {})
            limit = max_upload * 4 // 3 + ENVELOPE
            body = await read_body(request, limit, max_upload)
            return from_json_request(validated(OcrRequest, parse_json(body)), max_upload, resolution)
        case "multipart/form-data":
            _check_query(request.query_params, {})
            return await _read_form(request, max_upload, resolution)
        case _:
            fields = _checked_fields(request.query_params, "query")
            document = await read_body(request, max_upload)
            return _submission(document, None, fields, resolution)


def _resolution(asked: str | None) -> Resolution | None:
    if asked is None:
        return None
    for known in get_args(Resolution):
        if asked.strip().lower() == known:
            return known  # type: ignore[no-any-return]
    names = ", ".join(get_args(Resolution))
    raise Problem("invalid_resolution", f"X-Resolution has to be one of {names}, not {asked!r}.")


def _check_query(query: QueryParams, known: Mapping[str, Any]) -> None:
    for name in query:
        if name != "wait" and name not in known:
            raise Problem("invalid_query", f"There is no query parameter {name!r} here.")


def _checked_fields(query: QueryParams, where: str) -> OcrFields:
    _check_query(query, OcrFields.model_fields)
    for name, value in query.items():
        if len(value) > LONGEST:
            limit = f"{name} has {len(value):,} characters, and in a URL there is room for {LONGEST:,}"
            raise Problem("invalid_query", f"{limit}; send a form or JSON.")
    return validated(OcrFields, {name: query[name] for name in query if name != "wait"}, within=(where,))


class _FormParser(MultiPartParser):
    """Starlette's parser, which takes a form that breaks off for one that is whole: this one can tell."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _read_form(request: Request, max_upload: int, resolution: Resolution | None) -> OcrSubmission:
    if request.headers.get("content-length") == "0":
        raise Problem("empty_body", "The request has no body.")
    limit = max_upload + ENVELOPE

    async def whole() -> AsyncGenerator[bytes, None]:
        async with aclosing(body_chunks(request, limit, max_upload)) as chunks:
            async for chunk in chunks:
                yield chunk
        # Raised in here, as the parser then closes what it has open.
        if not parser.ended:
            raise MultiPartException("It breaks off before its closing boundary.")

    stream = whole()
    parser = _FormParser(request.headers, stream, max_files=8, max_fields=16, max_part_size=ENVELOPE)
    # The whole body is bounded already, so nothing needs a detour over the disk.
    parser.spool_max_size = limit
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem("invalid_multipart", f"The form cannot be read: {error.message}") from error
    except UnicodeError as error:
        raise Problem("invalid_multipart", f"The form cannot be read: {error}.") from error
    finally:
        await stream.aclose()
    try:
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        texts = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        upload = _the_file(files, texts)
        fields = validated(OcrFields, texts)
        return _submission(await upload.read(), upload.filename, fields, resolution, max_upload)
    finally:
        await form.close()


def _the_file(files: list[tuple[str, UploadFile]], texts: Mapping[str, str]) -> UploadFile:
    if not files and not texts:
        raise Problem("no_file", "The form is empty; send the document as its field 'file'.")
    if not files:
        hint = " as a file, not as text (curl: -F file=@NAME)" if "file" in texts else ""
        raise Problem("no_file", f"The form has no document; send it in the field 'file'{hint}.")
    if len(files) > 1:
        raise Problem("several_documents", f"The form has {len(files)} files; send one document a request.")
    name, upload = files[0]
    if name != "file":
        raise Problem("no_file", f"The document is in the field {name!r}; send it in the field 'file'.")
    return upload


def _submission(
    document: bytes, filename: str | None, fields: OcrFields, resolution: Resolution | None, limit: int | None = None
) -> OcrSubmission:
    reading = fields.model_dump(include=_READING, exclude_none=True)
    header = {} if resolution is None else {"resolution": resolution}
    options = OcrOptions.model_validate({"languages": fields.language, **reading, **header})
    media_type = checked_media_type(document, limit)
    prompt = fields.prompt or None
    webhook = from_fields(fields)
    return OcrSubmission(document, media_type, safe_name(filename), fields.model, prompt, _given(options), webhook)


def _given(options: OcrOptions) -> dict[str, Any]:
    return options.model_dump(exclude_none=True)


def checked_media_type(document: bytes, limit: int | None = None) -> str:
    """Raises Problem ``empty_body``, ``payload_too_large`` or ``unsupported_media_type``. ``limit`` in bytes."""
    if not document:
        raise Problem("empty_body", "The document is empty.")
    if limit is not None and len(document) > limit:
        raise too_large(limit)
    media_type = sniff(document)
    if media_type is None:
        raise Problem("unsupported_media_type", f"The document is of no type that is read here: {_TYPES}.")
    return media_type


def safe_name(name: str | None) -> str | None:
    """The last component of a file name, printable and of at most 255 characters; None if nothing is left."""
    last = re.split(r"[/\\]", name or "")[-1]
    return "".join(character for character in last if character.isprintable()).strip()[-255:] or None


def from_json_request(request: OcrRequest, max_upload: int, resolution: Resolution | None) -> OcrSubmission:
    """An OpenAI-style request as a submission. ``resolution``: the header's, which goes before the body's."""
    parts = [part for message in request.messages for part in message.content]
    documents = [part for part in parts if not isinstance(part, TextPart)]
    if not documents:
        raise Problem("no_file", "The messages hold no document; send it as an image_url part with a data: URL.")
    if len(documents) > 1:
        raise Problem("several_documents", f"The messages hold {len(documents)} documents; send one a request.")
    part = documents[0]
    document = decode_data_url(_url(part), max_upload)
    told = {"max_tokens": request.max_tokens, "temperature": request.temperature, "resolution": resolution}
    return OcrSubmission(
        document=document,
        media_type=checked_media_type(document, max_upload),
        filename=safe_name(part.file.filename) if isinstance(part, FilePart) else None,
        model=request.model,
        prompt="\n".join(part.text for part in parts if isinstance(part, TextPart)) or None,
        options=_given(request.options) | {key: value for key, value in told.items() if value is not None},
        webhook=from_fields(request),
    )


def _url(part: ImagePart | FilePart) -> str:
    return part.image_url.url if isinstance(part, ImagePart) else part.file.file_data


def decode_data_url(url: str, limit: int) -> bytes:
    """The bytes in a ``data:`` URL (RFC 2397) in base64, of ``limit`` bytes at most. Line breaks may be in it.

    Raises Problem ``url_not_allowed``, ``invalid_base64`` or ``payload_too_large``.
    """
    head = _DATA_URL.match(url[:1024])
    if head is None:
        if url[:5].lower() == "data:":
            raise Problem("invalid_base64", "The data: URL has to begin like 'data:image/png;base64,'.")
        raise Problem("url_not_allowed", "Addresses are not fetched here; send the document in a data: URL.")
    if not head[2].lower().endswith(";base64"):
        raise Problem("invalid_base64", "The data: URL has to say ';base64' before its comma.")
    try:
        _, document = decoded(url[head.end() :])
    except ValueError as error:
        raise Problem("invalid_base64", "The document in the data: URL is not valid base64.") from error
    if len(document) > limit:
        raise too_large(limit)
    return document

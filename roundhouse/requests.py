"""What is asked of the gateway, as descriptions of requests that no network has seen."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

from roundhouse.errors import RoundhouseApiError
from roundhouse.wire import Request

Messages: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A question, or a conversation as OpenAI's API has it: ``{"role": …, "content": …}``."""

Source: TypeAlias = str | Path | bytes
"""A document: its path or its bytes."""

Priority: TypeAlias = Literal["high", "normal", "low"]


class Handling(TypedDict, total=False):
    """How a job is to be queued and run."""

    priority: Priority | None
    """Not above what the user's role may ask for."""
    client: str | None
    """A label for the job."""
    attempt_timeout: float | None
    """Seconds that one attempt may run; for a document, one page of it."""
    idempotency_key: str | None
    """Of the caller's own, so that his request makes one job even where his own process dies and asks again."""


class Sampling(Handling, total=False):
    """How an answer is chosen; unset: as the model does by itself."""

    system: str | None
    """A system message before the others."""
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None


class ChatOptions(Sampling, total=False):
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    response_format: Mapping[str, Any] | None
    extra: Mapping[str, Any] | None
    """Any other member that the body of ``POST /v1/chat/completions`` may have."""


class OcrOptions(Handling, total=False):
    """What the fields of ``POST /api/ocr`` say."""

    model: str | None
    pages: str | None
    text: Literal["auto", "ocr", "embedded"] | None
    instruction: Literal["document", "text", "ocr", "figure", "describe", "locate"] | None
    term: str | None
    prompt: str | None
    language: str | None
    resolution: str | None
    searchable_pdf: bool | None
    no_cache: bool | None
    """Whether to read it anew where the same has been read before."""


def headers(options: Mapping[str, Any]) -> dict[str, str]:
    """Of a submit: what ``Handling`` says, and a key by which the same request is known when it is repeated.

    Raises RoundhouseApiError for what cannot be sent in a header, as the gateway does for what it does not take.
    """
    timeout = options.get("attempt_timeout")
    told = {
        "X-Priority": options.get("priority"),
        "X-Client-ID": options.get("client"),
        "X-Timeout": None if timeout is None else f"{timeout:.3f}",
        "Idempotency-Key": options.get("idempotency_key") or uuid.uuid4().hex,
        "Cache-Control": "no-cache" if options.get("no_cache") else None,
    }
    said = {name: str(value) for name, value in told.items() if value is not None}
    for name, value in said.items():
        if not (value.isascii() and value.isprintable()):
            raise RoundhouseApiError(
                f"{name} has to be of printable ASCII characters, unlike {value!r}.", code=_REFUSED.get(name)
            )
    return said


_REFUSED = {
    "X-Priority": "invalid_priority",
    "X-Client-ID": "invalid_client_id",
    "Idempotency-Key": "invalid_idempotency_key",
}


def _given(options: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Of the options those that are set, and not about handling. Raises TypeError for what is not of this ``kind``."""
    if unknown := options.keys() - kind.__annotations__.keys():
        there_are = ", ".join(sorted(kind.__annotations__))
        raise TypeError(f"There is no option {', '.join(sorted(unknown))} here, but {there_are}.")
    asked = options.keys() - Handling.__annotations__.keys()
    return {name: value for name, value in options.items() if name in asked and value is not None}


def conversation(messages: Messages, system: str | None) -> list[Mapping[str, Any]]:
    told: list[Mapping[str, Any]] = [{"role": "system", "content": system}] if system else []
    return [*told, *([{"role": "user", "content": messages}] if isinstance(messages, str) else messages)]


def chat_submit(model: str | None, messages: Messages, options: Mapping[str, Any]) -> Request:
    sampling = _given(options, Sampling)
    body = {"messages": conversation(messages, sampling.pop("system", None)), **sampling}
    return Request("POST", "/api/chat", json=_named(model, body), headers=headers(options))


def chat_answer(model: str, messages: Messages, options: Mapping[str, Any], *, stream: bool) -> Request:
    given = _given(options, ChatOptions)
    extra = given.pop("extra", {})
    body = {"model": model, "messages": conversation(messages, given.pop("system", None)), **given, **extra}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Request("POST", "/v1/chat/completions", json=body, headers=headers(options), waits=not stream)


def ocr_submit(document: Source, options: Mapping[str, Any]) -> Request:
    given = _given(options, OcrOptions)
    if isinstance(document, bytes):
        name, data = "document", document
    else:
        path = Path(document)
        # A file's name may be of any bytes, a form's is in UTF-8.
        name, data = path.name.encode("utf-8", "replace").decode(), path.read_bytes()
    given.pop("no_cache", None)
    form = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in given.items()}
    return Request("POST", "/api/ocr", form=form, files={"file": (name, data)}, headers=headers(options))


def embeddings_submit(model: str | None, texts: str | Sequence[str], options: Mapping[str, Any]) -> Request:
    return Request("POST", "/api/embeddings", json=_embedding(model, texts, options), headers=headers(options))


def embeddings_answer(model: str, texts: str | Sequence[str], options: Mapping[str, Any]) -> Request:
    body = _embedding(model, texts, options)
    return Request("POST", "/v1/embeddings", json=body, headers=headers(options), waits=True)


def _embedding(model: str | None, texts: str | Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    return _named(model, {"input": texts if isinstance(texts, str) else list(texts), **_given(options, Handling)})


def _named(model: str | None, body: dict[str, Any]) -> dict[str, Any]:
    return body if model is None else {"model": model, **body}

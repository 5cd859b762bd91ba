"""What OpenAI has published of its API's answers, held strictly against ours.

The schema is that of its own client library, whose types are made from OpenAI's OpenAPI document: each answer has to
have every field that is required there, of its very type, and none that is unknown there but those of ``OURS``.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx
from openai.pagination import SyncPage
from openai.types import Completion, CreateEmbeddingResponse, ErrorObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, TypeAdapter


class CompletionChunk(Completion):
    """OpenAI has published no type of its own for it."""


# Fields that OpenAI does not have, added on purpose; paths without the numbers of list items.
OURS: Mapping[Any, frozenset[str]] = {
    # What a name stands for, what it does, and where it is served.
    Model: frozenset({"root", "parent", "task", "state", "served_by", "description"}),
    SyncPage[Model]: frozenset(
        f"data.{name}" for name in ("root", "parent", "task", "state", "served_by", "description")
    ),
    # vLLM's: the stop string that was met, and what a model has thought.
    ChatCompletion: frozenset({"choices.stop_reason", "choices.message.reasoning"}),
    ChatCompletionChunk: frozenset({"choices.stop_reason", "choices.delta.reasoning"}),
    Completion: frozenset({"choices.stop_reason"}),
}
_WHOLE: Mapping[str, Any] = {
    "chat/completions": ChatCompletion,
    "completions": Completion,
    "embeddings": CreateEmbeddingResponse,
    "models": SyncPage[Model],
}
_CHUNKS: Mapping[str, Any] = {"chat/completions": ChatCompletionChunk, "completions": CompletionChunk}


def unknown(value: object, path: str = "") -> set[str]:
    """The paths of all fields that the published types do not know."""
    if isinstance(value, list):
        return {found for item in value for found in unknown(item, path)}
    if not isinstance(value, BaseModel):
        return set()
    extra = {f"{path}{name}" for name in value.model_extra or ()}
    known = ((name, getattr(value, name)) for name in type(value).model_fields)
    return extra.union(*(unknown(inner, f"{path}{name}.") for name, inner in known))


def published(kind: Any, text: str | bytes) -> None:
    """Fails unless ``text`` is JSON of ``kind``, one of the published types."""
    if kind is CreateEmbeddingResponse:
        text = _with_numbers(text)
    if kind in (Completion, CompletionChunk):
        kind, text = Completion, _completion(text, whole=kind is Completion)
    found = TypeAdapter(kind).validate_json(text, strict=True)
    assert unknown(found) <= OURS.get(kind, frozenset()), f"unknown to OpenAI: {unknown(found)}"


def published_answer(url: httpx.URL, response: httpx.Response, body: bytes) -> None:
    """Fails unless ``body``, all of it or as much as was read of a stream, is what OpenAI would send from ``url``."""
    path = url.path.removeprefix("/v1/")
    if response.status_code >= 400:
        _error(json.loads(body), response.status_code)
    elif response.headers["content-type"].startswith("text/event-stream"):
        for data in _events(body.decode()):
            _event(_CHUNKS[path], data)
    else:
        published(Model if path.startswith("models/") else _WHOLE[_without_id(path)], body)


def _without_id(path: str) -> str:
    return "chat/completions" if path.startswith("chat/completions/") else path


def _events(text: str) -> Iterator[str]:
    """The data of the events that are whole."""
    for event in text.split("\n\n")[:-1]:
        lines = [line for line in event.split("\n") if line and not line.startswith((":", "id: "))]
        if lines:
            (line,) = lines
            assert line.startswith("data: "), line
            yield line.removeprefix("data: ")


def _event(kind: Any, data: str) -> None:
    if data == "[DONE]":
        return
    if data.startswith('{"error"'):
        _error(json.loads(data), 500)
    else:
        published(kind, data)


def _error(body: Any, status: int) -> None:
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    error = TypeAdapter(ErrorObject).validate_python(body["error"], strict=True)
    assert error.code, "each of ours has a code"
    assert error.type.endswith("_error")
    assert 400 <= status < 600


def _completion(text: str | bytes, *, whole: bool) -> str:
    """A completion, without the two things in which OpenAI's own differ from the published types as well.

    Each piece of a stream would be its end by those, and has null instead, but for the last. And of a prompt's first
    token, where the prompt is told again, no probability is known.
    """
    body = json.loads(text)
    for choice in body["choices"]:
        if not whole:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        for probabilities in (choice.get("logprobs") or {}).values():
            if probabilities[:1] == [None]:
                del probabilities[0]
    return json.dumps(body)


def _with_numbers(text: str | bytes) -> str:
    """Vectors in base64 are not in the published types; the client library sees to them before those do."""
    body = json.loads(text)
    for entry in body["data"]:
        if isinstance(entry["embedding"], str):
            entry["embedding"] = []
    return json.dumps(body)


class _Read(httpx.SyncByteStream):
    def __init__(self, response: httpx.Response, url: httpx.URL) -> None:
        assert isinstance(response.stream, httpx.SyncByteStream)
        self._inner, self._response, self._url = response.stream, response, url
        self._body = b""

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._inner:
            self._body += piece
            yield piece

    def close(self) -> None:
        self._inner.close()
        published_answer(self._url, self._response, self._body)


class _AsyncRead(httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response, url: httpx.URL) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._inner, self._response, self._url = response.stream, response, url
        self._body = b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            self._body += piece
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()
        published_answer(self._url, self._response, self._body)


class Checking(httpx.BaseTransport):
    """Fails a client's request when its answer, once it was read, is not as published."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        response.stream = _Read(response, request.url)
        return response

    def close(self) -> None:
        self._inner.close()


class AsyncChecking(httpx.AsyncBaseTransport):
    """As ``Checking``, of asynchronous clients."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        response.stream = _AsyncRead(response, request.url)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()

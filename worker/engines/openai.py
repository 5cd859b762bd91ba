"""Any server that speaks OpenAI's chat API: a vLLM, Ollama or llama.cpp that already runs, or a hosted model.

Asks for a stream, so that a stalled upstream is noticed, and takes ``finish_reason`` as the only proof of success:
``data: [DONE]`` alone is sent by servers that were aborted, too.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import httpx
from httpx_sse import ServerSentEvent, SSEError, aconnect_sse

from broker.errors import EngineError, EngineInputError, EngineUnavailable
from config import OpenaiSettings
from ocr.instructions import Dialect
from ocr.plain_text import well_formed
from ocr.turns import PageTurns
from worker.engines.base import Chunk, Delta, Request, Result
from worker.engines.documents import refuse_searchable_pdf
from worker.engines.vision import VisionModel, VisionRecogniser, page_options

# Our own keys in a payload that no upstream knows.
_OURS = frozenset({"simulate", "adapter"})
# Seconds between the last event of an answer and the end of its body.
_END = 0.05
_INPUT_STATUSES = frozenset({400, 404, 405, 413, 415, 422})
# What vLLM gives as the reason of an answer that it has broken off.
_BROKEN_OFF = frozenset({"abort", "error"})


class Upstream:
    """A server that speaks OpenAI's chat API. ``title`` names it in messages, ``url`` is its address up to /v1."""

    def __init__(self, title: str, url: str, client: httpx.AsyncClient) -> None:
        self.heard = 0.0
        """When the last chunk of any answer came, of ``time.monotonic()``."""
        self._title = title
        self._url = f"{url}/chat/completions"
        self._client = client

    async def close(self) -> None:
        await self._client.aclose()

    async def chat(self, model: str, payload: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Streams the answer. Raises EngineInputError for a refusal, EngineUnavailable where the server cannot be
        reached, is overloaded or breaks off, EngineError where it fails or cuts the answer off."""
        body = {key: value for key, value in payload.items() if key not in _OURS}
        body |= {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        answer = _Answer()
        try:
            async with aconnect_sse(self._client, "POST", self._url, json=body) as source:
                await self._check(source.response)
                events = source.aiter_sse()
                async for event in events:
                    self.heard = monotonic()
                    if event.data == "[DONE]":
                        await _read_on(events)
                        break
                    if delta := answer.add(_chunk(event)):
                        yield Delta(delta)
        except (httpx.TransportError, SSEError) as error:
            raise EngineUnavailable(f"{self._title}: {_reason(error)}.") from error
        yield Result(answer.result())

    async def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        message = _error_message(await response.aread()) or response.reason_phrase
        told = f"{self._title} answered {response.status_code}: {message}"
        if response.status_code in _INPUT_STATUSES:
            raise EngineInputError(told, status=response.status_code)
        if response.status_code in (401, 403):
            raise EngineInputError(f"{told} (check api_key)", code="upstream_refused_key")
        raise EngineUnavailable(told)


class OpenaiEngine:
    """Chats and reads pages. Whatever is behind it, a model that is called DeepSeek-OCR is asked as one."""

    def __init__(self, name: str, settings: OpenaiSettings) -> None:
        url = settings.base_url.rstrip("/")
        key = settings.api_key
        headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
        timeout = httpx.Timeout(settings.timeout, connect=min(10.0, settings.timeout))
        limits = httpx.Limits(max_connections=settings.max_concurrent)
        client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, trust_env=False)
        self.turns = PageTurns(settings.max_concurrent)
        self._model = settings.model or name
        self._upstream = Upstream(f"The upstream of {name} at {url}", url, client)

    async def start(self) -> None:
        """Nothing is asked of the upstream before there is a job: it may be slow to wake or charge for it."""

    async def stop(self) -> None:
        await self._upstream.close()

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        return self._upstream.chat(self._model, request.payload)

    async def recogniser(self, request: Request) -> VisionRecogniser:
        """Raises EngineInputError ``task_unsupported``."""
        refuse_searchable_pdf(request, f"The vision model {self._model}")
        dialect = Dialect.DEEPSEEK if "deepseek-ocr" in self._model.lower() else Dialect.PLAIN
        chat = partial(self._upstream.chat, self._model)
        return VisionRecogniser("openai", chat, VisionModel(dialect), page_options(request.payload))


async def _read_on(events: AsyncIterator[ServerSentEvent]) -> None:
    """To the end of the body, which follows at once: only then is the connection kept for the next request."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_END):
            async for _ in events:
                """Nothing is said after the end."""


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _chunk(event: ServerSentEvent) -> Mapping[str, Any]:
    try:
        chunk = json.loads(event.data)
    except ValueError:
        raise EngineError(f"The upstream sent what is no JSON: {event.data[:200]!r}.") from None
    if not isinstance(chunk, dict):
        raise EngineError(f"The upstream sent what is no chunk: {event.data[:200]!r}.")
    if "error" in chunk:
        raise EngineError(f"The upstream failed in mid-stream: {_message_of(chunk)}")
    return chunk


def _error_message(body: bytes) -> str:
    try:
        return _message_of(json.loads(body))
    except ValueError:
        return body[:500].decode(errors="replace")


def _message_of(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return well_formed(str(message)[:1000])


class _Answer:
    """Gathers the chunks of one answer."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._finish_reason: str | None = None
        self._usage: Mapping[str, Any] | None = None

    def add(self, chunk: Mapping[str, Any]) -> str:
        self._usage = chunk.get("usage") or self._usage
        delta = ""
        for choice in chunk.get("choices", ()):
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            delta += (choice.get("delta") or {}).get("content") or ""
        if delta:
            self._text.append(delta)
        return delta

    def result(self) -> dict[str, Any]:
        if self._finish_reason is None:
            raise EngineError("The upstream ended its answer without a finish_reason.", code="answer_cut_off")
        if self._finish_reason in _BROKEN_OFF:
            raise EngineError(f"The upstream broke its answer off ({self._finish_reason}).", code="answer_cut_off")
        result: dict[str, Any] = {
            "message": {"role": "assistant", "content": "".join(self._text)},
            "finish_reason": self._finish_reason,
        }
        return result | ({"usage": dict(self._usage)} if self._usage else {})

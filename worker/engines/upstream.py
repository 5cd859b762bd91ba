"""Asks a server that speaks OpenAI's API, and reads its answer.

Asks for a stream, so that a stalled upstream is noticed, and takes ``finish_reason`` as the only proof of success:
``data: [DONE]`` alone is sent by servers that were aborted, too.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from time import monotonic
from typing import Any

from aiohttp import ClientError, ClientResponse

from broker.errors import EngineError, EngineInputError, EngineUnavailable, UpstreamBusy
from broker.retry import asked_pause
from ocr.plain_text import well_formed
from worker.engines.access import Server
from worker.engines.answers import KINDS, Answer
from worker.engines.base import Chunk, Delta, Result
from worker.engines.dialects import Body, Tidier, model_name, refused_key, without
from worker.engines.embeddings import portions, together, vectors
from worker.engines.incoming import checked, json_of
from worker.engines.server_events import ServerEvents

# Our own keys in a payload that no upstream knows.
OURS = frozenset({"simulate", "adapter", "upstream_model", "modelKey"})
# Seconds between the last event of an answer and the end of its body.
_END = 0.05
# Bytes of a list of models; the longest that is known has some hundreds of kilobytes.
_LONGEST_LIST = 4 * 2**20
# Bytes of what is told of an error, of all pieces of an answer, and of the vectors for 2,048 texts.
_LONGEST_ERROR = 64 * 2**10
_LONGEST_ANSWER = 256 * 2**20
_LONGEST_VECTORS = 512 * 2**20
# Characters of what is told of an error that clients read.
_LONGEST_QUOTE = 1000
_INPUT_STATUSES = frozenset({400, 404, 405, 413, 415, 422})
_PATHS = {"chat": "chat/completions", "completion": "completions"}


class Upstream:
    """A ``server`` that speaks OpenAI's API. Its address is that up to /v1."""

    def __init__(self, server: Server) -> None:
        self.heard = 0.0
        """When the last chunk of any answer came, of ``time.monotonic()``."""
        self._server = server
        # {model: keys of a body that the server has refused for it}
        self._refused: dict[str, set[str]] = {}

    async def close(self) -> None:
        await self._server.close()

    async def run(self, task: str, model: str, payload: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Streams the answer. Raises EngineInputError for a refusal, EngineUnavailable where the server cannot be
        reached, is overloaded or breaks off, UpstreamTimeout where it is silent for too long, EngineError where it
        fails or cuts the answer off."""
        if task == "embedding":
            yield Result(await self._embed(model, payload))
            return
        body = self._body(model, payload) | {"stream": True, "stream_options": {"include_usage": True}}
        refused = self._refused.setdefault(model, set())
        for known in refused:
            body = without(known, body)
        left_out: set[str] = set()
        answers = False
        while True:
            try:
                async with aclosing(self._stream(task, body)) as chunks:
                    async for chunk in chunks:
                        # Not before: a refusal may have quoted the key from what this client has sent.
                        refused.update(left_out)
                        answers = True
                        yield chunk
                return
            except EngineInputError as error:
                key = refused_key(error.details.get("status"), error.message, body)
                if answers or key is None:
                    raise
                left_out.add(key)
                body = without(key, body)

    async def _stream(self, task: str, body: Body) -> AsyncGenerator[Chunk, None]:
        answer, tidier = Answer(KINDS[task]()), Tidier()
        async with (
            self._server.exchange("POST", _PATHS[task], _encoded(body)) as response,
            aclosing(self._events(response)) as events,
        ):
            room = _LONGEST_ANSWER
            async for data in events:
                if data == "[DONE]":
                    await _read_on(response)
                    break
                if (room := room - len(data)) < 0:
                    raise _too_long(_LONGEST_ANSWER)
                if news := answer.add(tidier.tidy(self._chunk(data))):
                    yield Delta(news)
        yield Result(answer.result())

    async def _events(self, response: ClientResponse) -> AsyncGenerator[str, None]:
        await self._check(response)
        if response.content_type != "text/event-stream":
            raise EngineUnavailable(f"{self._server.title} answered no stream but {response.content_type}.")
        events = ServerEvents()
        async for piece in response.content.iter_any():
            self.heard = monotonic()
            for data in events.feed(piece):
                yield data

    async def _embed(self, model: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The vectors in the order of the inputs, each as little-endian float32 in base64."""
        body = self._body(model, payload) | {"encoding_format": "float"}
        found = []
        for inputs in portions(payload["input"]):
            async with self._server.exchange("POST", "embeddings", _encoded(body | {"input": inputs})) as response:
                await self._check(response)
                content = await _read(response, _LONGEST_VECTORS)
            self.heard = monotonic()
            # There may be a hundred megabytes of numbers, and other answers do not wait for them.
            found.append(await asyncio.to_thread(vectors, content, len(inputs)))
        return together(found)

    async def models(self) -> list[str]:
        """The names that the server itself lists. Raises as ``run``."""
        async with self._server.exchange("GET", "models") as response:
            await self._check(response)
            body = await _read(response, _LONGEST_LIST)
        try:
            # An Ollama that has none says null.
            names = [entry.get("id") for entry in json_of(body)["data"] or ()]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EngineError(f"{self._server.title} answers no list of models.", code="bad_answer") from error
        return [model_name(well_formed(name), self._server.url) for name in names if isinstance(name, str)]

    def _body(self, model: str, payload: Mapping[str, Any]) -> Body:
        return {key: value for key, value in payload.items() if key not in OURS} | {"model": model}

    async def _check(self, response: ClientResponse) -> None:
        status = response.status
        if 200 <= status < 300:
            return
        head = await _head(response, _LONGEST_ERROR)
        message = self._quoted(_error_message(head) or well_formed(response.reason or ""))
        told = f"{self._server.title} answered {status}: {message}"
        raise _failure(told, status, asked_pause(response.headers.get("Retry-After")))

    def _chunk(self, data: str) -> Mapping[str, Any]:
        title = self._server.title
        try:
            chunk = json_of(data)
        except ValueError:
            told = f"{title} sent what is no JSON: {self._quoted(data)[:200]!r}."
            raise EngineError(told, code="bad_answer") from None
        if not isinstance(chunk, dict):
            raise EngineError(f"{title} sent what is no chunk: {self._quoted(data)[:200]!r}.", code="bad_answer")
        if error := chunk.get("error"):
            told = f"{title} failed in mid-stream: {self._quoted(_message_of(chunk))}"
            status = error.get("code") if isinstance(error, dict) else None
            # vLLM reads a schema only when its own status was sent: what it refuses then, it tells so.
            if isinstance(status, int) and 400 <= status < 600:
                raise _failure(told, status)
            raise EngineError(told, code="upstream_error")
        return checked(chunk)

    def _quoted(self, text: str) -> str:
        """The beginning of what the server says of a failure, without our keys."""
        return self._server.redacted(text[:_LONGEST_ERROR])[:_LONGEST_QUOTE]


def _encoded(body: Body) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


async def _read_on(response: ClientResponse) -> None:
    """To the end of the body, which follows at once: only then is the connection kept for the next request."""
    # The answer is whole: what breaks now is no loss.
    with suppress(TimeoutError, ClientError):
        async with asyncio.timeout(_END):
            async for _ in response.content.iter_any():
                """Nothing is said after the end."""


def _too_long(most: int) -> EngineError:
    return EngineError(f"The upstream's answer has more than {most:,} bytes.", code="bad_answer")


async def _head(response: ClientResponse, most: int) -> bytes:
    """The first ``most`` bytes of the body and some more, or all of it."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > most:
            break
    return bytes(body)


async def _read(response: ClientResponse, most: int) -> bytes:
    """The body. Raises EngineError ``bad_answer`` where it has more than ``most`` bytes."""
    body = await _head(response, most)
    if len(body) > most:
        raise _too_long(most)
    return body


def _failure(told: str, status: int, retry_after: float | None = None) -> EngineError:
    """What ``told`` tells of, by the status that goes with it."""
    if status in _INPUT_STATUSES:
        return EngineInputError(told, status=status)
    if status in (401, 403):
        return EngineInputError(f"{told} (check api_key)", code="upstream_refused_key")
    return UpstreamBusy(told, status=status, retry_after=retry_after)


def _error_message(body: bytes) -> str:
    try:
        return _message_of(json_of(body))
    except ValueError:
        return body.decode(errors="replace")


def _message_of(body: Any) -> str:
    if isinstance(body, list) and body:
        body = body[0]
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return well_formed(str(message))

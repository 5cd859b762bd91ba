"""``python -m tests.benchmarks.upstream PORT``: what looks like a vLLM of a set speed. No model is behind it.

Speaks OpenAI's chat API as vLLM does, whole or streamed with the usage at the end. The model ``pace-50`` says 50
tokens a second to each who asks, ``max_tokens`` of them, the same ones for the same question. On bare httptools, with
one timer for each stream, so that it does not take the processor from those whom it is to measure.
"""

import asyncio
import json
import sys
import zlib
from collections.abc import Mapping
from typing import Any, cast

import httptools
import uvloop

from broker.parent import die_with_parent
from worker.engines.simulator import word

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def model(pace: float) -> str:
    """The name of the model that says ``pace`` tokens a second."""
    return f"pace-{pace:g}"


def token(question: str, index: int) -> str:
    return " " + word(zlib.crc32(question.encode()), index)


def text(question: str, tokens: int) -> str:
    return "".join(token(question, index) for index in range(tokens))


def _event(data: str) -> bytes:
    frame = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(frame), frame)


class Answer:
    """One stream. Each token comes at its time after the question, however late the one before was."""

    def __init__(self, transport: asyncio.WriteTransport, asked: Mapping[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._question: str = asked["messages"][-1]["content"]
        self._model: str = asked["model"]
        self._tokens: int = asked["max_tokens"]
        self._pause = 1.0 / float(self._model.removeprefix("pace-"))
        self._said = 0
        self._begin = self._loop.time()
        if asked.get("stream"):
            transport.write(_HEAD)
            self._timer = self._at_the_next()
        else:
            self._timer = self._loop.call_at(self._begin + self._tokens * self._pause, self._say_all)

    def cut(self) -> None:
        self._timer.cancel()

    def _at_the_next(self) -> asyncio.TimerHandle:
        return self._loop.call_at(self._begin + (self._said + 1) * self._pause, self._say)

    def _say(self) -> None:
        content = token(self._question, self._said)
        self._said += 1
        if self._said < self._tokens:
            self._transport.write(self._chunk({"content": content}, None))
            self._timer = self._at_the_next()
        else:
            last = self._chunk({"content": content}, "length")
            self._transport.write(b"".join([last, self._usage(), _event("[DONE]"), b"0\r\n\r\n"]))

    def _say_all(self) -> None:
        message = {"role": "assistant", "content": text(self._question, self._tokens)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        usage = self._counts(self._tokens)
        common = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": self._model}
        body = json.dumps({**common, "choices": [choice], "usage": usage}).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)

    def _chunk(self, delta: Mapping[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, "token_ids": None}
        return self._event_of([choice], {})

    def _usage(self) -> bytes:
        return self._event_of([], {"usage": self._counts(self._said)})

    def _counts(self, said: int) -> dict[str, int]:
        asked = len(self._question.split())
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}

    def _event_of(self, choices: list[Mapping[str, Any]], more: Mapping[str, Any]) -> bytes:
        common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self._model}
        return _event(json.dumps({**common, "choices": choices, **more}))


class Conversation(asyncio.Protocol):
    """One connection: questions and answers in turns."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._answer: Answer | None = None
        self._body = bytearray()
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's derives from no class of asyncio

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        assert self._transport is not None
        if not self._body:  # proxies look what else there is
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return
        asked = json.loads(self._body)
        self._body.clear()
        self._answer = Answer(self._transport, asked)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None:
            self._answer.cut()


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Conversation, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(serve(int(sys.argv[1])))

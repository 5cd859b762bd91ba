"""A server that speaks OpenAI's API on a port of its own and does what it is told: answers, refuses, hangs, breaks."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.conditions import eventually
from tests.ports import free_port

Fault = Literal["hang", "drop", "stall", "error", "unfinished"]


@dataclass(frozen=True)
class Behaviour:
    """What comes of one request. ``fault``: says nothing at all, breaks the connection off after the first word, says
    nothing more after it, tells of an error then, or ends without a reason. ``gate``: is waited for after the first
    word."""

    words: Sequence[str] = ("Good ", "day")
    status: int = 200
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    gate: asyncio.Event | None = None


class Upstream:
    """``next``: what comes of the next requests, one each; then ``usual``. ``asked``: the bodies of all that came."""

    def __init__(self, models: Sequence[str] = ("theirs",)) -> None:
        self.port = free_port()
        self.models = list(models)
        self.next: deque[Behaviour] = deque()
        self.usual = Behaviour()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.queries: list[dict[str, str]] = []
        self.looks = 0
        self.headers_of_lists: dict[str, str] = {}
        self._end = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def chat(self, request: Request) -> Response:
        self.asked.append(await request.json())
        self.headers.append(dict(request.headers))
        self.queries.append(dict(request.query_params))
        behaviour = self.next.popleft() if self.next else self.usual
        if behaviour.fault == "hang":
            await self._end.wait()
        if behaviour.status != 200:
            error = {"error": {"message": behaviour.message, "type": "x", "code": None}}
            return JSONResponse(error, behaviour.status, behaviour.headers)
        return StreamingResponse(self._events(behaviour), media_type="text/event-stream", headers=behaviour.headers)

    async def _events(self, behaviour: Behaviour) -> AsyncIterator[str]:
        for number, word in enumerate(behaviour.words):
            yield _event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            if number == 0 and behaviour.gate is not None:
                await behaviour.gate.wait()
            if number == 0 and behaviour.fault == "stall":
                await self._end.wait()
            if number == 0 and behaviour.fault == "drop":
                raise ConnectionResetError("told to break off")
            if number == 0 and behaviour.fault == "error":
                yield _event({"error": {"message": behaviour.message, "type": "x", "code": None}})
        if behaviour.fault != "unfinished":
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": 1, "completion_tokens": len(behaviour.words), "total_tokens": 3}
            yield _event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    async def list(self, request: Request) -> Response:
        self.looks += 1
        listed = [{"id": name, "object": "model"} for name in self.models]
        return JSONResponse({"object": "list", "data": listed}, headers=self.headers_of_lists)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Upstream"]:
        routes = [Route("/v1/chat/completions", self.chat, methods=["POST"]), Route("/v1/models", self.list)]
        routes.append(Route("/v1/embeddings", self.chat, methods=["POST"]))
        config = uvicorn.Config(Starlette(routes=routes), port=self.port, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        try:
            await eventually(lambda: _started(server))
            yield self
        finally:
            self._end.set()
            server.should_exit = True
            await serving


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


async def _started(server: uvicorn.Server) -> bool:
    return server.started


@asynccontextmanager
async def upstreams(count: int) -> AsyncIterator[list[Upstream]]:
    """So many servers, each of which lists the model ``theirs``."""
    made = [Upstream() for _ in range(count)]
    serving = [one.serving() for one in made]
    for one in serving:
        await one.__aenter__()
    try:
        yield made
    finally:
        for one in serving:
            await one.__aexit__(None, None, None)

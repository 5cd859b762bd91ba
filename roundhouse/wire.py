"""Requests on their way. All of the client is written once, as coroutines over a ``Wire``: on the one that blocks they
never suspend, and ``run`` runs them without an event loop or a thread."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import httpx
from httpx_sse import EventSource, ServerSentEvent

T = TypeVar("T")

CONNECT = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """``repeatable``: to send it twice does no more than to send it once. ``read``: seconds of silence after which the
    connection counts as dead. ``waits``: so long a silence is to be expected, and the same is asked again."""

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    json: Any = None
    form: Mapping[str, str] | None = None
    files: Mapping[str, tuple[str, bytes]] | None = None
    headers: Mapping[str, str] | None = None
    repeatable: bool = True
    public: bool = False
    read: float = 60.0
    waits: bool = False

    def with_headers(self, **headers: str) -> "Request":
        return replace(self, headers={**(self.headers or {}), **headers})

    def built(self, client: "httpx.Client | httpx.AsyncClient", url: str, read: float, bearer: str) -> httpx.Request:
        return client.build_request(
            self.method,
            url + self.path,
            params=self.params,
            json=self.json,
            data=None if self.form is None else dict(self.form),
            files=self.files,
            headers={**(self.headers or {}), **({"Authorization": f"Bearer {bearer}"} if bearer else {})},
            timeout=httpx.Timeout(read, connect=min(CONNECT, read)),
        )


class Wire(Protocol):
    """Where the client meets the network and the clock. A response that is sent as a stream is to be closed."""

    async def send(self, request: Request, url: str, read: float, bearer: str, *, stream: bool) -> httpx.Response: ...
    async def read(self, response: httpx.Response) -> None: ...
    async def close(self, response: httpx.Response) -> None: ...
    def events(self, response: httpx.Response) -> AsyncGenerator[ServerSentEvent, None]: ...
    def chunks(self, response: httpx.Response) -> AsyncGenerator[bytes, None]: ...
    async def aside(self, work: Callable[[], T]) -> T: ...
    async def sleep(self, seconds: float) -> None: ...
    async def hang_up(self) -> None: ...


class AsyncWire:
    def __init__(self, transport: httpx.AsyncBaseTransport | None) -> None:
        self._http = httpx.AsyncClient(transport=transport, trust_env=False)

    async def send(self, request: Request, url: str, read: float, bearer: str, *, stream: bool) -> httpx.Response:
        return await self._http.send(request.built(self._http, url, read, bearer), stream=stream)

    async def read(self, response: httpx.Response) -> None:
        await response.aread()

    async def close(self, response: httpx.Response) -> None:
        await response.aclose()

    async def events(self, response: httpx.Response) -> AsyncGenerator[ServerSentEvent, None]:
        async with aclosing(EventSource(response).aiter_sse()) as events:
            async for event in events:
                yield event

    async def chunks(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        async for chunk in response.aiter_bytes():
            yield chunk

    async def aside(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, which may block."""
        return await asyncio.to_thread(work)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def hang_up(self) -> None:
        await self._http.aclose()


class BlockingWire:
    def __init__(self, transport: httpx.BaseTransport | None) -> None:
        self._http = httpx.Client(transport=transport, trust_env=False)

    async def send(self, request: Request, url: str, read: float, bearer: str, *, stream: bool) -> httpx.Response:
        return self._http.send(request.built(self._http, url, read, bearer), stream=stream)

    async def read(self, response: httpx.Response) -> None:
        response.read()

    async def close(self, response: httpx.Response) -> None:
        response.close()

    async def events(self, response: httpx.Response) -> AsyncGenerator[ServerSentEvent, None]:
        for event in EventSource(response).iter_sse():
            yield event

    async def chunks(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        for chunk in response.iter_bytes():
            yield chunk

    async def aside(self, work: Callable[[], T]) -> T:
        return work()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251

    async def hang_up(self) -> None:
        self._http.close()


def run(call: Coroutine[Any, Any, T]) -> T:
    """What ``call``, which is on a BlockingWire, returns."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    call.close()
    raise RuntimeError("a call on a blocking wire was suspended")

"""Requests on their way. All of the client is written once, as coroutines over a ``Wire``: on the one that blocks they
never suspend, and ``run`` runs them without an event loop or a thread."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import httpx
from httpx_sse import EventSource, ServerSentEvent

from roundhouse.errors import too_late

T = TypeVar("T")

CONNECT = 5.0
# As many calls may be on their way at once as the caller likes: each may have to wait for a job.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)


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

    def built(
        self, client: "httpx.Client | httpx.AsyncClient", url: str, bearer: str, deadline: float | None
    ) -> httpx.Request:
        """Raises DeadlinePassed."""
        read = self.read if deadline is None else min(self.read, deadline - time.monotonic())
        if read <= 0:
            raise too_late()
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
    """Where the client meets the network and the clock. ``deadline``: of ``monotonic()``; what takes longer, the body
    of a response included, raises DeadlinePassed. A response is to be read, which closes it, or closed.

    ``alone``: one call at a time is in it.
    """

    async def send(self, request: Request, url: str, bearer: str, deadline: float | None) -> httpx.Response: ...
    async def read(self, response: httpx.Response) -> None: ...
    async def close(self, response: httpx.Response) -> None: ...
    def events(self, response: httpx.Response) -> AsyncGenerator[ServerSentEvent, None]: ...
    def chunks(self, response: httpx.Response) -> AsyncGenerator[bytes, None]: ...
    async def aside(self, work: Callable[[], T]) -> T: ...
    async def sleep(self, seconds: float) -> None: ...
    def alone(self, deadline: float | None) -> AbstractAsyncContextManager[None]: ...
    async def hang_up(self) -> None: ...


def _options(urls: Sequence[str]) -> dict[str, Any]:
    """Of httpx. Proxies of the environment are not asked; the certificates that it names are trusted."""
    # To read them takes longer than many a call, so that who needs none does without.
    secure = any(url.startswith("https://") for url in urls)
    return {"trust_env": False, "verify": httpx.create_ssl_context() if secure else False, "limits": LIMITS}


@asynccontextmanager
async def _until(deadline: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
            yield
    except TimeoutError as error:
        raise too_late() from error


class _AsyncBody(httpx.AsyncByteStream):
    """A body that comes before the ``deadline``. Silence alone does not tell: heartbeats break it, and tell nothing."""

    def __init__(self, body: httpx.AsyncByteStream, deadline: float) -> None:
        self._body = body
        self._deadline = deadline

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = aiter(self._body)
        while True:
            async with _until(self._deadline):
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece

    async def aclose(self) -> None:
        await self._body.aclose()


class AsyncWire:
    def __init__(self, urls: Sequence[str], transport: httpx.AsyncBaseTransport | None) -> None:
        self._http = httpx.AsyncClient(transport=transport, **_options(urls))
        self._lock = asyncio.Lock()

    async def send(self, request: Request, url: str, bearer: str, deadline: float | None) -> httpx.Response:
        built = request.built(self._http, url, bearer, deadline)
        async with _until(deadline):
            response = await self._http.send(built, stream=True)
        if deadline is not None:
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = _AsyncBody(response.stream, deadline)
        return response

    async def read(self, response: httpx.Response) -> None:
        try:
            await response.aread()
        finally:
            await response.aclose()

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

    @asynccontextmanager
    async def alone(self, deadline: float | None) -> AsyncIterator[None]:
        async with _until(deadline):
            await self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    async def hang_up(self) -> None:
        await self._http.aclose()


class _Body(httpx.SyncByteStream):
    """As _AsyncBody, but the clock is looked at when something comes, be it a heartbeat."""

    def __init__(self, body: httpx.SyncByteStream, deadline: float) -> None:
        self._body = body
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            if time.monotonic() >= self._deadline:
                raise too_late()
            yield piece

    def close(self) -> None:
        self._body.close()


class BlockingWire:
    def __init__(self, urls: Sequence[str], transport: httpx.BaseTransport | None) -> None:
        self._http = httpx.Client(transport=transport, **_options(urls))
        # The caller's ``on_trouble`` may make a call of its own, while it is told of a sign-in.
        self._lock = threading.RLock()

    async def send(self, request: Request, url: str, bearer: str, deadline: float | None) -> httpx.Response:
        response = self._http.send(request.built(self._http, url, bearer, deadline), stream=True)
        if deadline is not None:
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = _Body(response.stream, deadline)
        return response

    async def read(self, response: httpx.Response) -> None:
        try:
            response.read()
        finally:
            response.close()

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

    @asynccontextmanager
    async def alone(self, deadline: float | None) -> AsyncIterator[None]:
        if not self._lock.acquire(timeout=-1 if deadline is None else max(deadline - time.monotonic(), 0.0)):
            raise too_late()
        try:
            yield
        finally:
            self._lock.release()

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

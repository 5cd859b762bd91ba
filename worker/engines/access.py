"""How a server is reached: its connections, time limits, and what goes along with each request.

On aiohttp, and nothing else of the worker is: a streamed answer takes a fifth of the processor time that it takes on
httpx, and so much of it lies before the first token.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import aiohttp
import httpx
from aiohttp import ClientResponse

from broker.errors import EngineError, UpstreamTimeout, UpstreamUnreachable

# Seconds for which a connection is kept between two requests. Less than servers do, many of them 5 s: a request on one
# that the server is just closing fails, and costs its job an attempt.
KEEP_ALIVE = 4.0
# Characters. What is shorter is no key, and may be part of any word.
_SHORTEST_SECRET = 6


@dataclass(frozen=True)
class Access:
    """``connect``: seconds for a connection. ``silence``: seconds without a byte of an answer, None for any; in so many
    more than ``connect`` the server has to have taken the request, too.
    ``socket``: of this machine, in place of the address's host. ``headers`` and ``query`` go with each request."""

    connect: float
    silence: float | None = None
    socket: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)


class Server:
    """The one at ``url``. ``title`` names it in messages."""

    def __init__(self, title: str, url: str, access: Access) -> None:
        self.title = title
        self.url = url
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """The next request opens it again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def redacted(self, text: str) -> str:
        """``text`` without the keys that go with each request: there are servers that quote them."""
        for secret in _secrets(self._access):
            text = text.replace(secret, "***")
        return text

    @asynccontextmanager
    async def exchange(self, method: str, path: str, body: bytes | None = None) -> AsyncIterator[ClientResponse]:
        """A request with ``body`` of JSON, and its answer, whatever its status. The connection is kept if that was
        read to its end. Whatever breaks meanwhile raises UpstreamUnreachable, or UpstreamTimeout for a silence."""
        response = await self._answer(method, path, body)
        try:
            async with response:
                with _told_of_a_loss(response):
                    yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._broken(error) from None

    async def _answer(self, method: str, path: str, body: bytes | None) -> ClientResponse:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        data = None if body is None else BytesIO(body)
        url, access = f"{self.url}/{path}", self._access
        try:
            # aiohttp itself gives a server that takes nothing all the time there is.
            async with asyncio.timeout(None if access.silence is None else access.connect + access.silence):
                # A redirect is an answer like others: the key is for this server alone.
                return await self._opened().request(
                    method, url, params=access.query, data=data, headers=headers, allow_redirects=False
                )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._broken(error) from None
        except ValueError:
            # Its own text quotes the header, and with it the key.
            told = f"{self.title}: the request cannot be sent (check api_key and headers)."
            raise UpstreamUnreachable(told, reached=False) from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            access = self._access
            self._session = aiohttp.ClientSession(
                connector=self._connector(),
                # Not packed: a small answer could unpack to a large one.
                headers={"User-Agent": "roundhouse", "Accept-Encoding": "identity", **access.headers},
                timeout=aiohttp.ClientTimeout(connect=access.connect, sock_read=access.silence),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _connector(self) -> aiohttp.BaseConnector:
        """For any number of connections: how many requests run at once is decided before."""
        if self._access.socket is not None:
            return aiohttp.UnixConnector(str(self._access.socket), limit=0, keepalive_timeout=KEEP_ALIVE)
        # What it trusts may be set by SSL_CERT_FILE, for servers with certificates of a company's own.
        try:
            trust = httpx.create_ssl_context() if self.url.startswith("https:") else True
        except OSError as error:
            told = f"{self.title}: the certificates to trust cannot be read (check SSL_CERT_FILE): {error}."
            raise UpstreamUnreachable(told, reached=False) from None
        return aiohttp.TCPConnector(ssl=trust, limit=0, keepalive_timeout=KEEP_ALIVE)

    def _broken(self, error: Exception) -> EngineError:
        match error:
            case aiohttp.ConnectionTimeoutError():
                return UpstreamTimeout(f"{self.title} could not be connected to in time.", reached=False)
            case TimeoutError():
                return UpstreamTimeout(f"{self.title} was silent for too long.")
        reached = not isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL)
        return UpstreamUnreachable(f"{self.title}: {self.redacted(_reason(error))}.", reached=reached)


def _secrets(access: Access) -> list[str]:
    """The longest first, as one may be part of another: a header, and what comes after its scheme («Bearer»)."""
    values = [*access.headers.values(), *(value for name, value in access.query.items() if name != "api-version")]
    values += [value.partition(" ")[2] for value in access.headers.values()]
    return sorted({value for value in values if len(value) >= _SHORTEST_SECRET}, key=len, reverse=True)


def _reason(error: Exception) -> str:
    """Without the URL, in whose query may be a key."""
    match error:
        case aiohttp.InvalidURL():
            return "its address is none"
        case aiohttp.ClientResponseError():
            return f"what it answers cannot be read: {error.message}"
        case aiohttp.ClientConnectorError():
            return str(error)
        case OSError():
            return os.strerror(error.errno) if error.errno else type(error).__name__
    return str(error) or type(error).__name__


@contextmanager
def _told_of_a_loss(response: ClientResponse) -> Iterator[None]:
    """Whoever reads the body hears it when its connection is lost, for whatever reason. aiohttp (3.14) tells nobody
    where a chunk was malformed, or where the session was closed."""

    def tell(_: object = None) -> None:
        if not response.content.is_eof() and response.content.exception() is None:
            response.content.set_exception(aiohttp.ClientPayloadError("the answer broke off"))

    connection = response.connection  # None: all of it has come
    if connection is None or connection.protocol is None:
        yield
        return
    if (lost := connection.protocol.closed) is None:
        tell()
        yield
        return
    lost.add_done_callback(tell)
    try:
        yield
    finally:
        lost.remove_done_callback(tell)

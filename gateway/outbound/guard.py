"""Requests to addresses that a client has named: none of them reaches what only this machine or its network should.

An address is checked where it is connected to. The host's name is resolved here, each address that it has is looked at,
and the connection is made to one of those, not to the name: so a name that changes its answer (DNS rebinding), or a
redirect, leads nowhere else. TLS still verifies the name. There are no proxies, cookies or passwords from the
environment, and no redirect is followed that the caller does not follow.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias
from weakref import WeakValueDictionary

import httpcore
import httpx

from config.errors import RoundhouseError
from config.outbound import OutboundSettings, as_network
from gateway.outbound.addresses import Address, Reach, as_address, plain, reach

LONGEST = 2048
"""Characters of a URL."""
# Seconds.
CONNECT_TIMEOUT = 5.0
RESOLVE_TIMEOUT = 5.0
# A submit does not wait longer for a name: what cannot be told by then is told when it is connected to.
ADMIT_TIMEOUT = 2.0
# Addresses of one name that are tried.
_MOST_ADDRESSES = 4
# Names that are looked up at once: for what is connected to, and for requests that come. Those have threads of their
# own, so that names which nobody answers for hold up no delivery. With such a name the system's resolver goes on for 10
# to 30 s, and keeps its thread, long after it was given up here: six names take the place of one. So there is room for
# six times all the images that are fetched at once, and for others. Threads are begun as they are needed, and cost next
# to nothing while they wait.
RESOLVERS = 256
ADMISSIONS = 64
_LOWEST_PORT, _HIGHEST_PORT = 1024, 65535
_PORTS = {"http": 80, "https": 443}

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*\.?")
# Whatever ends so is an address to some resolvers (2130706433, 0x7f.1, 127.1), as in the URL standard's host parser.
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\.?")

Resolve: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]
"""A host name → its addresses. Raises OSError."""


class UrlRefused(RoundhouseError):
    """An address that the configuration, or common sense, forbids to reach."""

    code = "url_refused"


class ExchangeFailed(RoundhouseError):
    """No answer could be had, or none that is as short as it has to be."""

    code: ClassVar[str] = "url_not_fetched"


@dataclass(frozen=True, slots=True)
class Answer:
    """``headers`` by their names in lower case. ``body``: as much as was asked for; ``whole``: it is all of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool


class SystemResolver:
    """Asks as any program on this machine does, in threads of its own: a slow name delays nothing else.

    However often it is asked for, it takes one thread: who comes later waits for what is under way.
    """

    def __init__(self, threads: int = RESOLVERS) -> None:
        self._threads = ThreadPoolExecutor(threads, "resolver")
        self._under_way: WeakValueDictionary[str, Future[list[tuple[Any, ...]]]] = WeakValueDictionary()

    async def __call__(self, host: str) -> Sequence[str]:
        lookup = self._under_way.get(host)
        # One that has no thread yet ends with who has asked for it: nobody else may rely on it.
        if lookup is None or not lookup.running():
            lookup = self._threads.submit(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
            self._under_way[host] = lookup
        found = await asyncio.wrap_future(lookup)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Guard:
    """What the configuration allows to be reached. ``admissions``: looks names up for ``admit``, if another is to."""

    def __init__(self, settings: OutboundSettings, resolve: Resolve, admissions: Resolve | None = None) -> None:
        self._resolve = resolve
        self._admissions = admissions or resolve
        self._hosts = frozenset(host for host in settings.allow_hosts if not host.startswith("*."))
        self._domains = tuple(host[1:] for host in settings.allow_hosts if host.startswith("*."))
        networks = {entry: as_network(entry) for entry in settings.allow_private_hosts}
        self._private_names = frozenset(entry for entry, network in networks.items() if network is None)
        self._private_networks = tuple(network for network in networks.values() if network is not None)

    def check(self, text: str) -> httpx.URL:
        """The URL, where nothing speaks against it before its name is resolved. Raises UrlRefused."""
        url = _parsed(text)
        host = _host(url)
        port = _PORTS[url.scheme] if url.port is None else url.port
        if port not in _PORTS.values() and not _LOWEST_PORT <= port <= _HIGHEST_PORT:
            raise UrlRefused(f"The port {port} is refused: it may be 80, 443, or {_LOWEST_PORT} to {_HIGHEST_PORT}.")
        address = as_address(host)
        if address is None and _ENDS_IN_NUMBER.fullmatch(host):
            raise UrlRefused(f"{host!r} is refused: an address is written like 192.0.2.1.")
        if not self._listed(host, address):
            raise UrlRefused(f"{host!r} is not among the hosts that the configuration allows (outbound.allow_hosts).")
        if address is not None:
            self._check_addresses(host, [address])
        return url

    async def addresses(self, host: str) -> Sequence[Address]:
        """What to connect to for ``host``: all its addresses have been found good. Raises UrlRefused and OSError."""
        return await self._checked(host, self._resolve)

    async def _checked(self, host: str, resolve: Resolve) -> Sequence[Address]:
        host = host.lower().removesuffix(".")
        literal = as_address(host)
        if literal is not None:
            found: Iterable[Address | None] = [literal]
        else:
            async with asyncio.timeout(RESOLVE_TIMEOUT):
                found = [as_address(text.partition("%")[0]) for text in await resolve(host)]
        known = [address for address in found if address is not None]
        if not known:
            raise OSError(f"{host!r} has no address")
        self._check_addresses(host, known)
        return known[:_MOST_ADDRESSES]

    async def admit(self, text: str) -> None:
        """Refuses now what would be refused later. A name that cannot be resolved just now is none of that."""
        url = self.check(text)
        try:
            async with asyncio.timeout(ADMIT_TIMEOUT):
                await self._checked(_host(url), self._admissions)
        except OSError:
            """It may be there when it is needed."""

    def _listed(self, host: str, address: Address | None) -> bool:
        if not self._hosts and not self._domains:
            return True
        if host in self._hosts or host.endswith(self._domains) or host in self._private_names:
            return True
        return address is not None and self._in_private_network(address)

    def _in_private_network(self, address: Address) -> bool:
        return any(plain(address) in network for network in self._private_networks)

    def _check_addresses(self, host: str, addresses: Iterable[Address]) -> None:
        """All of them: a name that has a public and a private one is a mistake or an attack."""
        for address in addresses:
            match reach(address):
                case Reach.PUBLIC:
                    continue
                case Reach.PRIVATE if host in self._private_names or self._in_private_network(address):
                    continue
                case _:
                    # Which address it is would tell a client about a network that is not his.
                    raise UrlRefused(f"{host!r} is refused: it is not, or not only, at a public address.")


def _parsed(text: str) -> httpx.URL:
    if len(text) > LONGEST:
        raise UrlRefused(f"The URL is longer than {LONGEST} characters.")
    if not text.isprintable() or any(character in ' \\"<>^`{|}' for character in text):
        raise UrlRefused("The URL has characters in it that have to be written in another way.")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise UrlRefused(f"The URL cannot be read: {error}.") from error
    if url.scheme not in _PORTS:
        raise UrlRefused("The URL has to begin with https:// or http://.")
    if url.userinfo or "@" in re.split("[/?#]", text.partition("//")[2])[0]:
        raise UrlRefused("The URL may hold no user name and no password.")
    return url


def _host(url: httpx.URL) -> str:
    """As it is resolved: in lower case, in ASCII, without the dot at its end."""
    host = url.raw_host.decode("ascii").lower().strip("[]")
    if as_address(host) is None and not _NAME.fullmatch(host):
        raise UrlRefused("The URL has no host, or one that is not written as a name or an address.")
    return host.removesuffix(".")


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that ``guard`` has found good, and to nothing else."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._guard.addresses(host)
        except OSError as error:  # TimeoutError among them
            raise httpcore.ConnectError(f"{host!r} cannot be resolved: {str(error) or 'no answer came'}") from error
        *others, last = addresses
        for address in others:
            try:
                return await self._network.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                """The next one, then."""
        return await self._network.connect_tcp(str(last), port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise UrlRefused("No URL leads to a socket of this machine.")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


class Outbound:
    """HTTP to where ``guard`` allows. ``connections``: as many at once."""

    def __init__(self, guard: Guard, connections: int) -> None:
        self.guard = guard
        self._connections = connections

    @cached_property
    def _pool(self) -> httpcore.AsyncConnectionPool:
        """Not before it is needed: all the certificates that there are take 30 ms to read."""
        return httpcore.AsyncConnectionPool(
            # What it trusts may be set by SSL_CERT_FILE, for receivers with certificates of a company's own.
            ssl_context=httpx.create_ssl_context(),
            max_connections=self._connections,
            max_keepalive_connections=min(self._connections, 20),
            keepalive_expiry=4.0,
            network_backend=_Backend(self.guard),
        )

    async def exchange(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        content: bytes | None,
        *,
        timeout: float,
        most: int,
    ) -> Answer:
        """One request and its answer, of whose body ``most`` bytes are read. ``timeout``: seconds for all of it.

        Raises UrlRefused and ExchangeFailed.
        """
        host = _host(url)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        limits = {"timeout": {"connect": CONNECT_TIMEOUT, "read": timeout, "write": timeout, "pool": timeout}}
        # Nothing comes that would have to be unpacked: a small answer would be a large one then.
        sent: list[tuple[bytes | str, bytes | str]] = [("Accept-Encoding", "identity"), *headers.items()]
        try:
            async with (
                asyncio.timeout(timeout),
                self._pool.stream(method, target, headers=sent, content=content, extensions=limits) as response,
            ):
                return await _read(response, most)
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise ExchangeFailed(f"{host} did not answer within {timeout:g} s.") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            # TLS may fail after its handshake, too: then it is an ssl.SSLError, which nothing below translates.
            raise ExchangeFailed(f"{host} could not be asked: {str(error) or type(error).__name__}.") from error

    async def close(self) -> None:
        if "_pool" in vars(self):
            await self._pool.aclose()


async def _read(response: httpcore.Response, most: int) -> Answer:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
    body = bytearray()
    async for chunk in response.aiter_stream():
        body += chunk
        if len(body) > most:
            break
    return Answer(response.status, headers, bytes(body[:most]), len(body) <= most)

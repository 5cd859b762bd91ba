"""Clients that reach for the network, caught."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@contextmanager
def loopback_only() -> Iterator[None]:
    """Fails when a client in this process has reached for another machine, even if it swallows that it got nowhere."""
    reached: list[object] = []
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def check(host: object) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in _LOOPBACK:
            reached.append(name)
            raise OSError(f"no client is to reach {name} in a test")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            check(address[0])
        connect(self, address)

    def guarded_getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        check(host)
        return getaddrinfo(host, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "LANGSMITH_TRACING"):
            patch.delenv(name, raising=False)
        yield
    assert not reached

"""Ports for the servers that a test starts by number."""

import secrets
import socket
from pathlib import Path

from broker.mongodset import PORTS, taken

# An embedded mongod draws its own from PORTS, and does not know of ours.
_ALL = sorted({*range(10_000, 65_536)} - {*PORTS})


def apart(first: int, last: int) -> list[int]:
    """Ports that the kernel gives nobody: it takes those from ``first`` to ``last`` for outgoing connections, and for
    servers that leave the choice to it. Where these are nearly all, any port."""
    return [port for port in _ALL if not first <= port <= last] or [*_ALL]


_OURS = apart(*map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()))


def free_port() -> int:
    """A TCP port of the loopback that nothing listens at, and that no other call is given while this process lives.

    A port that was merely found free can be another test's a moment later, whose server then gets the requests of
    both. So it is one that the kernel gives nobody, if there are any, and a name in its abstract namespace (unix(7))
    marks it as given: that ends with the process, however it ends.
    """
    while True:
        port = secrets.choice(_OURS)
        if not taken(port) and _marked(port):
            return port


def _marked(port: int) -> bool:
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0roundhouse-tests-port-{port}")
    except OSError:
        mark.close()
        return False
    mark.detach()  # for good
    return True

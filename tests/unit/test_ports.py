"""Two servers that tests start at once, in as many processes, never meet at one port."""

import secrets
import socket
import subprocess
import sys

import pytest

from tests import ports
from tests.ports import free_port

DRAWN = 400
DRAW = f"""
import sys
from tests.ports import free_port
print(*(free_port() for _ in range({DRAWN})), flush=True)
sys.stdin.read()
"""


def given_by_the_kernel() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_no_port_is_given_to_two_and_the_kernel_gives_none_of_them() -> None:
    pipe = subprocess.PIPE
    drawers = [subprocess.Popen([sys.executable, "-c", DRAW], stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    try:
        given: list[int] = []
        for drawer in drawers:
            assert drawer.stdout is not None
            given += map(int, drawer.stdout.readline().split())
        given += (free_port() for _ in range(DRAWN))
    finally:
        for drawer in drawers:
            drawer.communicate()
    assert len(set(given)) == len(given) == 4 * DRAWN
    assert max(given) < min(given_by_the_kernel() for _ in range(DRAWN))


def test_a_port_at_which_something_listens_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        chosen, first = secrets.randbelow, iter([taken - ports.FIRST])
        monkeypatch.setattr(secrets, "randbelow", lambda below: next(first, chosen(below)))
        assert free_port() != taken
        assert not list(first)

"""Two servers that tests start at once, in as many processes, never meet at one port."""

import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from broker.mongodset import PORTS
from tests.ports import apart, free_port

DRAWN = 400
RANGE = [int(port) for port in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()]
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
    if set(apart(*RANGE)).isdisjoint(range(RANGE[0], RANGE[1] + 1)):
        assert not set(given) & {given_by_the_kernel() for _ in range(DRAWN)}


def test_where_the_kernel_takes_all_ports_any_is_given() -> None:
    assert {9_999, 32_768, 60_999} & set(apart(32_768, 60_999)) == set()
    assert {10_000, 32_767, 61_000, 65_535} <= set(apart(32_768, 60_999))
    assert 15_000 in apart(1_024, 65_535)


def test_an_embedded_mongod_draws_none_of_them() -> None:
    assert not {*apart(*RANGE)} & {*PORTS}


def test_a_port_at_which_something_listens_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        chosen, first = secrets.choice, iter([taken])
        monkeypatch.setattr(secrets, "choice", lambda among: next(first, chosen(among)))
        assert free_port() != taken
        assert not list(first)

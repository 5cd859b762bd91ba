"""The gateways' port after a ``kill -9``: nothing that they had started may hold it in their stead."""

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.mongod import EmbeddedMongod
from gateway.supervisor import PORT_PATIENCE
from tests.system import System, kill


@pytest.mark.parametrize("command", ["gateway", "up"])
def test_the_port_is_free_again_although_mongod_which_was_started_with_it_goes_on(tmp_path: Path, command: str) -> None:
    """A mongod that inherits the listening socket keeps the port taken, and lets clients wait for an answer."""
    with System(tmp_path, None, "roundhouse") as system:
        try:
            first = system.start(command)
            system.healthy()
            mongod = EmbeddedMongod(tmp_path / "state").status().pid
            children = [child for child in psutil.Process(first.pid).children() if child.pid != mongod]
            kill(first)
            _gone, alive = psutil.wait_procs(children, timeout=30)
            assert not alive
            assert EmbeddedMongod(tmp_path / "state").status().pid == mongod
            second = system.start(command)
            system.healthy()
            assert second.poll() is None
        finally:
            system.close()
            asyncio.run(EmbeddedMongod(tmp_path / "state").stop())


def test_a_supervisor_waits_for_the_gateways_of_one_that_was_killed(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    with System(tmp_path, mongod_uri, database.name) as system:
        first = system.gateway()
        (gateway,) = psutil.Process(first.pid).children()
        gateway.suspend()
        try:
            kill(first)
            second = system.start("gateway")
            _until_said(system, "waiting up to")
        finally:
            gateway.resume()
        system.healthy()
        assert second.poll() is None


def test_a_port_that_another_program_keeps_is_given_up(tmp_path: Path, mongod_uri: str) -> None:
    with System(tmp_path, mongod_uri, "never_used") as system, socket.socket() as other:
        other.bind(("127.0.0.1", system.port))
        other.listen()
        assert system.start("gateway").wait(PORT_PATIENCE + 25) == 1
        _until_said(system, f"Cannot listen on 127.0.0.1 port {system.port}: Address already in use. Stop what uses it")


def _until_said(system: System, words: str) -> None:
    """Somebody logs ``words``."""
    deadline = time.monotonic() + 30
    while not any(words in log.read_text() for log in system.home.glob("*.log")):
        assert time.monotonic() < deadline, f"nobody said: {words}"
        time.sleep(0.05)

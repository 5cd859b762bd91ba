"""The gateways' port after a ``kill -9``: nothing that they had started may hold it in their stead."""

import asyncio
from pathlib import Path

import psutil
import pytest

from broker.mongod import EmbeddedMongod
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

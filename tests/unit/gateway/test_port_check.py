import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from broker.daemons import ProcessRecord
from gateway.commands import port_check
from tests.unit.gateway.conftest import Make


def test_a_free_port_is_well_and_stays_free(make: Make) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    settings = make(SERVER_PORT=str(number))
    assert port_check.port(settings).level == port_check.port(settings).level == "ok"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_a_taken_port_is_an_error_that_names_the_holder(make: Make, listener: socket.socket) -> None:
    number = listener.getsockname()[1]
    finding = port_check.port(make(SERVER_PORT=str(number)))
    assert finding.level == "error"
    assert f"process {os.getpid()} (" in finding.message
    assert f"export SERVER_PORT={number + 1}" in (finding.hint or "")


def test_a_port_that_the_running_system_uses_is_well(make: Make, listener: socket.socket) -> None:
    settings = make(SERVER_PORT=str(listener.getsockname()[1]))
    (settings.home / "run").mkdir(parents=True)
    ProcessRecord.current().write(settings.home / "run" / "up.json")
    finding = port_check.port(settings)
    assert finding.level == "ok"
    assert f"Roundhouse itself (process {os.getpid()})" in finding.message


def test_a_port_that_another_gateway_uses_is_warned_of(make: Make, listener: socket.socket) -> None:
    settings = make(SERVER_PORT=str(listener.getsockname()[1]))
    listener.set_inheritable(True)
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "-m", "gateway.server"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, pass_fds=[listener.fileno()], **pipes) as gateway:  # type: ignore[call-overload]
        gateway.stdout.readline()
        listener.close()
        finding = port_check.port(settings)
        gateway.communicate()
    assert finding.level == "warning"
    assert f"process {gateway.pid}" in (finding.hint or "")


def test_an_address_of_another_machine_is_an_error(make: Make) -> None:
    finding = port_check.port(make(SERVER_HOST="192.0.2.1"))
    assert finding.level == "error"
    assert "SERVER_HOST" in (finding.hint or "")


def test_beyond_the_last_port_there_is_none_to_take(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 65535)):
        finding = port_check.port(make(SERVER_PORT="65535"))
    assert "export SERVER_PORT=65534" in (finding.hint or "")

"""Processes that are started where few open files are allowed, as in a container or from a login."""

import resource
import socket
import subprocess
from contextlib import ExitStack

import psutil

from tests.system import System

FEW = 256


def soft_limit(process: psutil.Process) -> int:
    return int(process.rlimit(resource.RLIMIT_NOFILE)[0])


def serving(started: subprocess.Popen[bytes]) -> psutil.Process:
    [gateway] = psutil.Process(started.pid).children()
    return gateway


def test_more_clients_than_files_were_allowed_keep_nobody_out(system: System) -> None:
    system.prefix = ("sh", "-c", f'ulimit -S -n {FEW}; exec "$@"', "sh")
    gateway, worker = serving(system.gateway()), psutil.Process(system.start("worker").pid)
    with ExitStack() as idle:
        for _ in range(FEW + 50):
            idle.enter_context(socket.create_connection(("127.0.0.1", system.port)))
        assert system.http.get("/health").status_code == 200
        system.sign_in()
        assert system.ended(system.chat())["status"] == "completed"
    assert soft_limit(gateway) > FEW
    assert soft_limit(worker) > FEW

"""The health checks of the containers, run as the containers run them, against real processes."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import uuid4

from pymongo import MongoClient

from tests.deployments import default_config
from tests.ports import free_port
from tests.system import System, end

SCRIPT = Path(__file__).parents[3] / "deploy" / "health.py"


class Busy(BaseHTTPRequestHandler):
    """Answers 503, as a gateway does whose database is away."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b"not now")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    @classmethod
    @contextmanager
    def on(cls, port: int) -> Iterator[None]:
        with HTTPServer(("127.0.0.1", port), cls) as server, ThreadPoolExecutor(1) as thread:
            serving = thread.submit(server.serve_forever, 0.02)
            try:
                yield
            finally:
                server.shutdown()
                serving.result()


def check(system: System, which: str) -> tuple[int, str]:
    """Exit status and what was said."""
    done = subprocess.run(
        [sys.executable, SCRIPT, which],
        env=system.environ,
        cwd=system.home,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).strip()


def until(system: System, which: str, status: int) -> str:
    """What is said once the status is that."""
    deadline = time.monotonic() + 60
    while (found := check(system, which))[0] != status:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found[1]


def test_the_checks_follow_the_gateway_and_the_worker(tmp_path: Path, mongod_uri: str) -> None:
    name = f"test_{uuid4().hex}"
    with System(tmp_path, mongod_uri, name) as system:
        assert check(system, "worker")[0] == 1
        status, said = check(system, "gateway")
        assert status == 1
        assert f"does not answer on port {system.port}" in said
        system.gateway()
        worker = system.start("worker")
        assert until(system, "gateway", 0) == ""
        assert until(system, "worker", 0) == ""
        end(worker)
        assert "No worker of " in until(system, "worker", 1)
        assert check(system, "gateway") == (0, "")
    with MongoClient(mongod_uri) as client:
        client.drop_database(name)


def test_a_gateway_that_accepts_no_jobs_is_not_healthy(tmp_path: Path) -> None:
    with System(tmp_path, None, "none") as system, Busy.on(system.port):
        assert check(system, "gateway") == (1, "The gateway answers 503: not now")


def test_a_worker_is_not_healthy_while_its_database_is_away(tmp_path: Path) -> None:
    with System(tmp_path, "mongodb://127.0.0.1:1/?replicaSet=nobody&serverSelectionTimeoutMS=100", "none") as system:
        status, said = check(system, "worker")
    assert status == 1
    assert said.startswith("The database does not answer: 127.0.0.1:1: [Errno 111] ")
    assert "Topology" not in said


def test_a_port_that_only_the_configuration_names_is_the_one_that_is_asked(tmp_path: Path) -> None:
    port = free_port()
    with System(tmp_path, None, "none", default_config() | {"server": {"port": port}}) as system, Busy.on(port):
        del system.environ["SERVER_PORT"]
        assert check(system, "gateway") == (1, "The gateway answers 503: not now")


def test_a_database_uri_that_cannot_be_used_is_told_in_one_sentence(tmp_path: Path) -> None:
    with System(tmp_path, "mongodb://ann:hun/ter2@host", "none") as system:
        status, said = check(system, "worker")
    assert status == 1
    assert said.startswith("MONGODB_URI cannot be used: ")
    assert len(said.splitlines()) == 1


def test_what_is_to_be_checked_has_to_be_said(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr == "Say which: health.py gateway, or health.py worker.\n"

"""The system as real processes: gateways and workers that a test starts, kills and looks for."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from tests.deployments import PASSWORD, default_config, environment
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
_OURS = ("ROUNDHOUSE", "MONGODB_URI", "JWT_SECRET", "ADMIN_PASSWORD", "SERVER_")


class System:
    """A home, a configuration and the processes on it. ``uri`` None: with the embedded mongod."""

    def __init__(self, home: Path, uri: str | None, database: str, config: dict[str, Any] | None = None) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (home / "config.yaml").write_text(yaml.safe_dump(config or default_config(), sort_keys=False))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
        self.environ = inherited | environment(home, uri, database) | {"SERVER_PORT": str(self.port)}
        self.http = httpx.Client(base_url=self.url, timeout=60.0)
        # Put before each command, for processes that are to see another file system.
        self.prefix: tuple[str, ...] = ()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        if error is not None:
            for log in sorted(self.home.glob("*.log")):
                print(f"---- {log.name}\n{log.read_text()[-4000:]}")

    def close(self) -> None:
        """Ends every process that was started."""
        self.http.close()
        while self._processes:
            end(self._processes.pop())

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Starts ``roundhouse COMMAND`` in a process group of its own."""
        log = self.home / f"{len(self._processes)}-{command[0]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "gateway.cli", *command],
                env=self.environ,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def run(self, *command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs ``roundhouse COMMAND`` to its end."""
        return subprocess.run(
            [*self.prefix, sys.executable, "-m", "gateway.cli", *command],
            env=self.environ,
            cwd=ROOT,
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def gateway(self) -> subprocess.Popen[bytes]:
        """Starts the gateways and waits until they accept jobs."""
        process = self.start("gateway")
        self.healthy()
        return process

    def healthy(self, within: float = 60.0) -> None:
        deadline = time.monotonic() + within
        while True:
            with suppress(httpx.TransportError):
                if self.http.get("/health").status_code == 200:
                    return
            assert time.monotonic() < deadline, "the gateway did not become healthy"
            time.sleep(0.05)

    def sign_in(self) -> None:
        form = {"grant_type": "password", "username": "admin", "password": PASSWORD}
        token = self.http.post("/auth/token", data=form).json()["access_token"]
        self.http.headers["Authorization"] = f"Bearer {token}"

    def chat(self, message: str = "hello", **body: Any) -> str:
        """Submits a chat; its job's id."""
        response = self.http.post("/api/chat", json={"message": message, **body})
        assert response.status_code == 202, response.text
        return str(response.json()["request_id"])

    def job(self, job_id: str, wait: int = 0) -> dict[str, Any]:
        response = self.http.get(f"/api/jobs/{job_id}", params={"wait": wait})
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def until(self, job_id: str, *statuses: str, within: float = 60.0) -> dict[str, Any]:
        """The job once it has one of ``statuses``."""
        deadline = time.monotonic() + within
        while (job := self.job(job_id))["status"] not in statuses:
            assert time.monotonic() < deadline, f"the job stayed {job['status']}"
            time.sleep(0.05)
        return job

    def ended(self, job_id: str, within: float = 60.0) -> dict[str, Any]:
        return self.until(job_id, "completed", "failed", "timeout", "cancelled", within=within)


def kill(process: subprocess.Popen[bytes]) -> None:
    """``kill -9`` of this very process, and of nothing else."""
    process.kill()
    process.wait()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that a test started, politely at first, and its group for certain."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

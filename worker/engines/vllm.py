"""A model in a vLLM of its own: a process that this engine starts, watches, asks over a Unix socket, and ends."""

import asyncio
import math
import os
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from broker.cancellation import cancel_all
from broker.errors import (
    EngineDied,
    EngineError,
    EngineInputError,
    EngineNotRunning,
    EngineStalled,
    EngineUnavailable,
    UpstreamUnreachable,
)
from broker.mongodset import Polls
from broker.registry import DeviceState
from config import VllmSettings
from config.vllm import gpu_count, on_ray, utilization
from ocr.turns import PageTurns
from worker.engine_process import RECORD, EngineProcess, remove_start_directory, socket_in, start_directory
from worker.engine_record import recorded_pids
from worker.engines.access import Access, Server
from worker.engines.base import Chunk, Footprint, Request
from worker.engines.documents import refuse_searchable_pdf, require_poppler
from worker.engines.silence import Silence
from worker.engines.upstream import Upstream
from worker.engines.vision import VisionModel, VisionRecogniser, page_options
from worker.engines.vllm_control import CONNECT_TIMEOUT, PATIENCE, URL, Control, Patience
from worker.engines.vllm_vision import Examination
from worker.footprint import Holding
from worker.gpus import HOST, Gpus
from worker.ocr_models import Family, family
from worker.vllm_command import command, environment, weights
from worker.vllm_installation import CPU, Installation

# Seconds for an engine that is told to stop when nothing runs, to take its processes down in order.
_STOP_GRACE = 10.0
# Seconds in which the end of an engine that has failed a request shows, on a busy machine.
_DEATH_SHOWS = 5.0
# Bytes by which free memory varies with what the driver does for itself.
_SLACK = 64 * 2**20


class VllmEngine:
    """The engine of the model ``name``, with its files under ``home``, on the GPUs of ``hardware``.

    Implements ``worker.engines.base.Loadable`` and ``Reader``. With no ``gpus`` it takes the first of those that are
    visible. With Ray (``--distributed-executor-backend ray`` in ``args``) the parts of the model may be on other
    machines, whose GPUs are not ours to count: it counts for as many of this machine's as it can use at most, Ray
    chooses which, and their memory is looked at by vLLM alone.
    """

    def __init__(
        self,
        name: str,
        settings: VllmSettings,
        home: Path,
        hardware: Gpus | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self._hardware = hardware or Gpus()
        self.gpus: Sequence[str] = ()
        self.max_concurrent = settings.max_concurrent
        """Of the next start; operators may have changed it since the configuration was read."""
        self.resolution: str | None = None
        """Of the next start: the mode of a DeepSeek-OCR; None: the configured one."""
        self._modes: tuple[str, ...] | None = None
        self.turns = PageTurns(settings.max_concurrent)
        self.gpu_count = 1
        self.on_phase: Callable[[str], None] = lambda _: None
        self._name = name
        self._settings = settings
        self._has_gpu = False
        self._count(self._hardware.devices())
        self._home = home
        self._patience = patience
        self._installation = Installation(settings.python or sys.executable)
        self._directory: Path | None = None
        self._process: EngineProcess | None = None
        self._control: Control | None = None
        self._upstream: Upstream | None = None
        self._silence: Silence | None = None
        self._vision: VisionModel | None = None
        self._holding: Holding | None = None
        self._freed: Mapping[str, int] = {}
        self._asleep = False
        self._sleeps = settings.sleep
        self._stalled = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def log(self) -> Path:
        return self._home / "logs" / f"engine-{self._name.replace('/', '_')}.log"

    @property
    def address(self) -> str | None:
        return None if self._process is None or self._directory is None else str(socket_in(self._directory))

    @property
    def can_sleep(self) -> bool:
        """Not on the CPU: vLLM's sleep frees nothing there, though it can be asked for."""
        return self._sleeps and self._on_gpu()

    async def unable(self) -> str | None:
        """Looks anew each time: weights may have come meanwhile."""
        try:
            await self._check()
        except EngineUnavailable as error:
            return error.message
        except OSError as error:  # of a share that is away, say
            return f"its files cannot be looked at: {error}"
        return None

    def need(self, total: int) -> int | None:
        if self._settings.memory is not None:
            return self._settings.memory
        return math.ceil(utilization(self._settings) * total) if self._on_gpu() else None

    async def footprint(self) -> Footprint | None:
        if self._process is None or not self._process.alive or self._holding is None:
            return None
        return await asyncio.to_thread(self._holding.footprint)

    async def start(self) -> None:
        """Raises EngineUnavailable: ``no_gpu``, ``too_few_gpus``, ``resolution_unsupported``,
        ``weights_missing``, ``vllm_missing``, ``gpu_memory_short``, ``engine_start_failed``, ``engine_start_timeout``,
        and of a DeepSeek-OCR that does not read pages as it was told to ``ngram_guard_inactive``,
        ``resolution_not_set``, ``engine_probe_failed``. An engine that died is started anew."""
        await self.stop(grace=0.0)
        model = await self._check()
        self._check_mode(model)
        gpus = await self._room()
        self._directory = directory = start_directory(self._home, self._name)
        uuids, record = [gpu.uuid for gpu in gpus], directory / RECORD
        access = Access(CONNECT_TIMEOUT, socket=socket_in(directory))
        self._upstream = upstream = Upstream(Server(f"The vLLM of {self._name}", f"{URL}/v1", access))
        self._process = process = self._program(model, gpus, directory)
        try:
            self._holding = await asyncio.to_thread(Holding, self._hardware, uuids, lambda: recorded_pids(record))
            await process.start()
            await process.until_ready(self.on_phase, self._settings.start_timeout)
            examination = Examination(self._name, process.http, self._patience.move)
            self._vision = await examination.model(self._family(model), self._mode)
            await asyncio.to_thread(self._holding.changed)
        except BaseException:
            await self.stop(grace=0.0)
            raise
        self._control = Control(self._name, self._settings.task, process.http, self._patience)
        self.turns.places = self.max_concurrent
        self._stalled = False
        self._silence = silence = Silence(upstream)
        self._watch = asyncio.create_task(self._end_when_stalled(process, silence))

    def _program(self, model: Path, gpus: Sequence[DeviceState], directory: Path) -> EngineProcess:
        socket, total = socket_in(directory), min((gpu.total for gpu in gpus), default=None)
        settings = self._settings.model_copy(update={"max_concurrent": self.max_concurrent})
        reads, uuids, python = self._family(model), [gpu.uuid for gpu in gpus], self._installation.python
        # Where vLLM's processes talk to each other: what a killed one leaves behind goes with the directory.
        environ = os.environ | {"VLLM_RPC_BASE_PATH": str(socket.parent)}
        return EngineProcess(
            command(settings, self._name, model, socket, python, total=total, family=reads),
            environment(settings, environ, uuids, mode=None if reads is None else self._mode),
            socket=socket,
            log=self.log,
            record=directory / RECORD,
        )

    @property
    def _mode(self) -> str:
        return self.resolution or self._settings.resolution

    def _family(self, model: Path) -> Family | None:
        return family(model) if self._settings.task == "ocr" else None

    @property
    def modes(self) -> Collection[str]:
        if self._modes is None and (model := weights(self._settings, self._name, self._home)) is not None:
            reads = self._family(model)
            self._modes = () if reads is None else reads.modes
        return self._modes or ()

    def _check_mode(self, model: Path) -> None:
        reads = self._family(model)
        if reads is not None and self._mode not in reads.modes:
            reason = f"{self._name} reads pages in the modes {' and '.join(reads.modes)} alone, not in {self._mode}"
            raise EngineUnavailable(reason, code="resolution_unsupported")

    async def stop(self, grace: float = _STOP_GRACE) -> None:
        """Ends the engine. Requests that run may finish within ``grace`` seconds; then nothing of it is left."""
        process, self._process = self._process, None
        upstream, self._upstream = self._upstream, None
        directory, self._directory = self._directory, None
        self._control = self._holding = self._vision = self._silence = None
        if self._watch is not None:
            await cancel_all([self._watch])
        if process is not None:
            await process.stop(grace)
        if upstream is not None:
            await upstream.close()
        if directory is not None:
            remove_start_directory(directory)
        self._asleep, self._freed = False, {}

    async def until_death(self) -> str:
        """Waits until the engine that is running now has ended, and says how. Nothing of it is left then."""
        process = self._process
        assert process is not None
        await process.exited.wait()
        return process.why()

    async def healthy(self) -> bool:
        """Asleep, too."""
        return self._process is not None and await self._process.healthy()

    async def sleep(self) -> None:
        """Its weights go to main memory. Raises EngineError: ``engine_busy``, ``sleep_failed``,
        ``sleep_freed_nothing``. After the last two it is in no known state, nothing is sent to it any more, and
        ``can_sleep`` is False for good."""
        holding = self._loaded()
        if runs := 0 if self._silence is None else self._silence.runs:
            raise EngineError(f"Requests run on the vLLM of {self._name} ({runs}).", code="engine_busy")
        if self._asleep:
            return
        # From here on a request would hang.
        self._asleep = True
        await asyncio.to_thread(holding.mark)
        assert self._control is not None
        try:
            await self._control.sleep()
            self._freed = await self._freed_by_sleep(holding)
        except EngineError:
            self._sleeps = False
            raise
        await asyncio.to_thread(holding.slept)

    async def wake(self) -> None:
        """Raises EngineError: ``gpu_memory_short`` and it sleeps on, ``wake_failed`` and it has to be started anew."""
        holding = self._loaded()
        if not self._asleep:
            return
        await self._until_free(self._freed)
        await asyncio.to_thread(holding.mark)
        assert self._control is not None
        await self._control.wake()
        await asyncio.to_thread(holding.changed)
        self._asleep, self._freed = False, {}

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Raises EngineInputError for what vLLM refuses, EngineDied when the engine went while the request ran, and
        EngineStalled when it was killed because it hung."""
        return self._run(request.task, self._served(request), request.payload)

    async def recogniser(self, request: Request) -> VisionRecogniser:
        """Raises EngineNotRunning, and EngineInputError ``task_unsupported`` or ``resolution_unsupported``. Its pages
        fail as `run` does."""
        refuse_searchable_pdf(request, f"The vision model {self._name}")
        asked = request.payload.get("options", {}).get("resolution")
        if asked is not None and asked not in self.modes:
            known = " and ".join(self.modes) or "no modes to choose from"
            raise EngineInputError(f"{self._name} has {known}, not {asked}.", code="resolution_unsupported")
        if self._vision is None:
            raise EngineNotRunning(f"The vLLM of {self._name} does not run.")
        chat = partial(self._run, "chat", self._served(request))
        return VisionRecogniser("vllm", chat, self._vision, page_options(request.payload))

    async def _run(self, task: str, model: str, payload: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        process, upstream, silence = self._process, self._upstream, self._silence
        if process is None or upstream is None or silence is None or not process.alive:
            raise EngineNotRunning(f"The vLLM of {self._name} does not run.")
        if self._asleep:
            raise EngineNotRunning(f"The vLLM of {self._name} sleeps.")
        try:
            async with aclosing(silence.counted(upstream.run(task, model, payload))) as chunks:
                async for chunk in chunks:
                    yield chunk
        except EngineError as error:
            if error.permanent:
                raise
            raise await self._explained(process, error) from error

    def _served(self, request: Request) -> str:
        """The LoRA adapter that the request asks for, which vLLM serves under a name of its own, or the model."""
        adapter = request.payload.get("adapter")
        return adapter if isinstance(adapter, str) and adapter in self._settings.lora else self._name

    async def _explained(self, process: EngineProcess, error: EngineError) -> EngineError:
        """The death of the engine, where that is what became of the request."""
        with suppress(TimeoutError):
            await asyncio.wait_for(process.exited.wait(), _DEATH_SHOWS)
        if process.exited.is_set() and isinstance(error, UpstreamUnreachable) and not error.reached:
            # It was going down already and has never heard of this request, which is not to blame.
            return EngineNotRunning(f"The vLLM of {self._name} does not run.")
        if self._stalled:
            limit = self._settings.stall_timeout
            message = f"The vLLM of {self._name} hung: no token came for {limit:g} s, and it was killed."
            return EngineStalled(message)
        if process.exited.is_set():
            message = f"The vLLM of {self._name} died while the request ran: {process.why()}."
            return EngineDied(message)
        return error

    async def _end_when_stalled(self, process: EngineProcess, silence: Silence) -> None:
        await silence.lasts(self._settings.stall_timeout)
        if process.alive:
            self._stalled = True
            await process.kill()

    async def _check(self) -> Path:
        """The directory of the weights. Raises EngineUnavailable with what is missing on this machine."""
        settings, name = self._settings, self._name
        if settings.task == "ocr":
            require_poppler()
        devices = await asyncio.to_thread(self._hardware.devices)
        self._count(devices)
        if settings.python is None and not devices:
            raise EngineUnavailable(self._hardware.why_none, code="no_gpu")
        model = weights(settings, name, self._home)
        if model is None:
            reason = f"weights missing: roundhouse pull {name}, or set `model` to a local path"
            raise EngineUnavailable(reason, code="weights_missing")
        if (await self._installation.build()).endswith(CPU):
            return model
        if not devices:
            raise EngineUnavailable(self._hardware.why_none, code="no_gpu")
        if len(devices) < self.gpu_count:
            reason = f"it needs {self.gpu_count} GPUs, and this machine has {len(devices)}"
            raise EngineUnavailable(reason, code="too_few_gpus")
        return model

    def _count(self, visible: Sequence[DeviceState]) -> None:
        self._has_gpu = bool(visible)
        self.gpu_count = gpu_count(self._settings) if visible else 1
        if on_ray(self._settings):
            self.gpu_count = max(1, min(self.gpu_count, len(visible)))

    def _on_gpu(self) -> bool:
        """As far as is known: before it has been looked for, vLLM is taken for one that uses the GPUs there are."""
        return self._has_gpu and not self._installation.known.endswith(CPU)

    async def _room(self) -> list[DeviceState]:
        """The GPUs to start on, which have room for it; none where it uses none. Raises EngineUnavailable."""
        if not self._on_gpu():
            return []
        devices = {device.uuid: device for device in await asyncio.to_thread(self._hardware.devices)}
        chosen = [gpu for gpu in self.gpus if not gpu.startswith(HOST)] or list(devices)[: self.gpu_count]
        if gone := [gpu for gpu in chosen if gpu not in devices]:
            raise EngineUnavailable(f"GPU {gone[0]} is not there any more", code="no_gpu")
        if not on_ray(self._settings):
            await self._until_free({gpu: self.need(devices[gpu].total) or 0 for gpu in chosen})
        return [devices[gpu] for gpu in chosen]

    async def _until_free(self, needed: Mapping[str, int]) -> None:
        """``needed``: bytes by uuid. What has just been let go of may take a moment to show."""
        short: list[DeviceState] = []
        async for _ in Polls(self._patience.settle):
            devices = await asyncio.to_thread(self._hardware.devices) if needed else []
            short = [gpu for gpu in devices if gpu.uuid in needed and gpu.free + _SLACK < needed[gpu.uuid]]
            if not short:
                return
        gpu = short[0]
        told = f"{self._name} needs {_gib(needed[gpu.uuid])} on GPU {gpu.uuid}, and {_gib(gpu.free)} of its"
        reason = f"{told} {_gib(gpu.total)} are free: other engines or programs hold the rest."
        raise EngineUnavailable(reason, code="gpu_memory_short")

    def _loaded(self) -> Holding:
        if self._process is None or self._upstream is None or self._holding is None or not self._process.alive:
            raise EngineNotRunning(f"The vLLM of {self._name} does not run.")
        return self._holding

    async def _freed_by_sleep(self, holding: Holding) -> Mapping[str, int]:
        """Bytes by uuid. vLLM has shipped sleeps that freed nothing."""
        held, freed = sum(holding.at_mark.values()), 0
        if not holding.at_mark:
            return {}
        async for _ in Polls(self._patience.settle):
            found = await asyncio.to_thread(holding.freed)
            freed = sum(found.values())
            if 2 * freed >= max(1, held):
                return found
        told = f"The vLLM of {self._name} sleeps, but of the {_gib(held)} that it held on its GPUs"
        raise EngineError(f"{told} it freed only {_gib(max(0, freed))}.", code="sleep_freed_nothing")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"

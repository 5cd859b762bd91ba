"""From a model's entry in the configuration to its engine."""

import shutil
from collections.abc import AsyncGenerator, Collection
from pathlib import Path
from typing import assert_never

from broker.errors import EngineUnavailable
from config import (
    OpenaiSettings,
    Settings,
    SimulatorSettings,
    TesseractSettings,
    VllmSettings,
)
from worker.engines.base import Chunk, Engine, Request
from worker.engines.openai import OpenaiEngine
from worker.engines.simulator import Simulator
from worker.engines.tesseract import TesseractEngine


def build_engines(settings: Settings, only: Collection[str] | None = None) -> dict[str, Engine]:
    """An engine for each configured model, or for those named in ``only``."""
    names = [name for name in settings.models if only is None or name in only]
    return {name: _engine(settings, name) for name in names}


def _engine(settings: Settings, name: str) -> Engine:
    model = settings.models[name]
    match model:
        case TesseractSettings():
            return TesseractEngine(model)
        case OpenaiSettings():
            return OpenaiEngine(name, model)
        case SimulatorSettings():
            return Simulator(model)
        case VllmSettings():
            return Unserved(_why_no_vllm(name, model, settings.home))
        case _:
            assert_never(model)


class Unserved:
    """A model that this worker cannot serve: it says why and is never given a job."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def start(self) -> None:
        raise EngineUnavailable(self._reason)

    async def stop(self) -> None:
        """It never started."""

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise EngineUnavailable(self._reason)


def _why_no_vllm(name: str, model: VllmSettings, home: Path) -> str:
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA GPU on this machine"
    if not (Path(model.model or name).expanduser().is_dir() or (home / "models" / name).is_dir()):
        return f"weights missing: roundhouse pull {name}, or set `model` to a local path"
    return "this version serves no vLLM models yet; point an `openai` entry at a running vLLM server"

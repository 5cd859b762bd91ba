"""From a model's entry in the configuration to its engine."""

from collections.abc import Collection
from typing import assert_never

from config import (
    OpenaiSettings,
    RapidocrSettings,
    Settings,
    SimulatorSettings,
    TesseractSettings,
    VllmSettings,
)
from worker.engines.base import Engine
from worker.engines.openai import OpenaiEngine
from worker.engines.rapidocr import RapidocrEngine
from worker.engines.simulator import LoadableSimulator, Simulator
from worker.engines.tesseract import TesseractEngine
from worker.engines.vllm import VllmEngine
from worker.gpus import Gpus


def build_engines(settings: Settings, only: Collection[str] | None = None) -> dict[str, Engine]:
    """An engine for each configured model, or for those named in ``only``."""
    names = [name for name in settings.models if only is None or name in only]
    gpus = Gpus()
    return {name: _engine(settings, name, gpus) for name in names}


def _engine(settings: Settings, name: str, gpus: Gpus) -> Engine:
    model = settings.models[name]
    match model:
        case TesseractSettings():
            return TesseractEngine(model)
        case RapidocrSettings():
            return RapidocrEngine(model)
        case OpenaiSettings():
            return OpenaiEngine(name, model)
        case SimulatorSettings():
            return Simulator(model) if model.memory is None else LoadableSimulator(model)
        case VllmSettings():
            return VllmEngine(name, model, settings.home, gpus)
        case _:
            assert_never(model)

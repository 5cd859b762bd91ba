"""Where the real vLLM is. VLLM_PYTHON names the interpreter that has it; quickstart.sh sets it."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from config import VllmSettings
from worker.engines.vllm import VllmEngine

# The ordinary run of all tests has no vLLM and passes these by.
collect_ignore_glob = [] if os.environ.get("VLLM_PYTHON") else ["test_*.py"]
_HERE = Path(__file__).parent
# A prompt that has it kills the engine.
POISON = "<poison>"


@pytest.fixture(scope="session")
def python() -> str:
    return os.environ["VLLM_PYTHON"]


@pytest.fixture(scope="session")
def tiny(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny Llama."""
    return made_by(python, "make_tiny_llama.py", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_ocr(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny DeepSeek-OCR without weights."""
    return made_by(python, "make_tiny_deepseek_ocr.py", tmp_path_factory.mktemp("tiny-ocr"))


def made_by(python: str, program: str, directory: Path, *words: str) -> Path:
    environ = os.environ | {"PYTHONPATH": str(_HERE)}
    subprocess.run([python, _HERE / program, directory, *words], check=True, capture_output=True, env=environ)
    return directory


def entry_of(python: str, model: Path, **options: Any) -> dict[str, Any]:
    """An entry of the configuration that runs on the CPU, quickly loaded, with the habits of ``habits.py``.

    An ``env`` among the options is added to its own.
    """
    entry: dict[str, Any] = {
        "task": "chat",
        "engine": "vllm",
        "model": str(model),
        "python": python,
        "dtype": "bfloat16",
        "max_model_len": 32768,
        "args": ["--enforce-eager", "--logits-processors", "habits:Habits"],
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(_HERE), "TINY_POISON": POISON},
        # A start takes half a minute, and on a machine that is busy with other things some minutes.
        "start_timeout": 600.0,
    }
    return entry | options | {"env": entry["env"] | options.get("env", {})}


def ocr_entry_of(python: str, model: Path, **options: Any) -> dict[str, Any]:
    """An entry for a tiny DeepSeek-OCR, whose weights vLLM makes up and which writes what it is told by ``scribe``."""
    entry: dict[str, Any] = {
        "task": "ocr",
        "engine": "vllm",
        "model": str(model),
        "python": python,
        "dtype": "bfloat16",
        "max_concurrent": 4,
        "args": ["--enforce-eager", "--load-format", "dummy"],
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE / "plugin")])},
        "start_timeout": 600.0,
    }
    return entry | options


def settings_of(python: str, model: Path, **options: Any) -> VllmSettings:
    return VllmSettings.model_validate(entry_of(python, model, **options))


def engine_of(python: str, model: Path, home: Path, **options: Any) -> VllmEngine:
    return VllmEngine("tiny", settings_of(python, model, **options), home)

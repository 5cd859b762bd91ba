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
_MAKE = Path(__file__).with_name("make_tiny_llama.py")


@pytest.fixture(scope="session")
def python() -> str:
    return os.environ["VLLM_PYTHON"]


@pytest.fixture(scope="session")
def tiny(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny Llama."""
    directory = tmp_path_factory.mktemp("tiny")
    subprocess.run([python, _MAKE, directory], check=True, capture_output=True)
    return directory


def settings_of(python: str, model: Path, **options: Any) -> VllmSettings:
    """Of an entry that runs on the CPU, quickly loaded."""
    entry: dict[str, Any] = {
        "task": "chat",
        "engine": "vllm",
        "model": str(model),
        "python": python,
        "dtype": "bfloat16",
        "max_model_len": 32768,
        "args": ["--enforce-eager"],
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
        "start_timeout": 300.0,
    }
    return VllmSettings.model_validate(entry | options)


def engine_of(python: str, model: Path, home: Path, **options: Any) -> VllmEngine:
    return VllmEngine("tiny", settings_of(python, model, **options), home)

"""What a vLLM entry says of its weights and its GPUs, the user's own flags in ``args`` included. Pure."""

from itertools import pairwise
from pathlib import Path

from config.models import VllmSettings

# The default of vLLM 0.32 for --gpu-memory-utilization (vllm/config/cache.py).
DEFAULT_UTILIZATION = 0.92


def weight_places(settings: VllmSettings, name: str, home: Path) -> tuple[Path, Path]:
    """The directories in which the weights may lie, the first of them that is there counts: the user's own, and that
    of ``roundhouse pull``."""
    return Path(settings.model or name).expanduser().absolute(), home / "models" / name


def flag(settings: VllmSettings, *names: str) -> str | None:
    """The value of a flag in the user's own ``args``, under any of its names; the last one wins, as with vLLM."""
    found = None
    for word, following in pairwise([*settings.args, ""]):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in names:
            found = value if equals else following or None
    return found


def utilization(settings: VllmSettings) -> float:
    """Share of a GPU's memory that vLLM takes, unless ``memory`` says how much."""
    told = _number(flag(settings, "--gpu-memory-utilization", "--device-memory-utilization"))
    return told or settings.gpu_memory_utilization or DEFAULT_UTILIZATION


def gpu_count(settings: VllmSettings) -> int:
    """GPUs in all, of this machine or, with Ray, of several."""
    tensor = _number(flag(settings, "--tensor-parallel-size", "-tp")) or settings.tensor_parallel_size
    pipeline = _number(flag(settings, "--pipeline-parallel-size", "-pp")) or settings.pipeline_parallel_size
    return int(tensor * pipeline)


def on_ray(settings: VllmSettings) -> bool:
    """Whether Ray places the engine's parts, on this machine and others."""
    return flag(settings, "--distributed-executor-backend") == "ray"


def _number(value: str | None) -> float | None:
    """None for what is none: vLLM will say so when it is started with it."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None

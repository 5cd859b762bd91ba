"""From a model's entry in the configuration to the command line and environment of its vLLM. Pure, but for looking
whether a directory is there."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from config import VllmSettings
from config.vllm import on_ray, weight_places
from worker.ocr_models import FLAGS as OCR_FLAGS
from worker.ocr_models import Family, mode_environment

# What only Roundhouse itself has to know.
_SECRETS = ("ROUNDHOUSE", "MONGODB_URI", "JWT_SECRET", "ADMIN_PASSWORD", "SERVER_")
# The flags of vLLM for the keys that are handed on as they are.
_FLAGS: Mapping[str, str] = {
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "max_model_len": "--max-model-len",
    "tensor_parallel_size": "--tensor-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "dtype": "--dtype",
    "quantization": "--quantization",
}


def weights(settings: VllmSettings, name: str, home: Path) -> Path | None:
    """The directory with the weights: the user's, or that of ``roundhouse pull``. None when there is none."""
    return next((place for place in weight_places(settings, name, home) if place.is_dir()), None)


def command(
    settings: VllmSettings,
    name: str,
    model: Path,
    socket: Path,
    python: str,
    *,
    total: int | None = None,
    family: Family | None = None,
) -> list[str]:
    """vLLM's OpenAI server on the Unix socket ``socket``, which serves ``model`` as ``name``.

    ``total``: bytes of the smallest GPU that it is to use; None: it uses none. ``family``: of the model, where it is to
    read pages. The user's own ``args`` come last, so that they win.
    """
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name]
    words += ["--uds", str(socket), "--max-num-seqs", str(settings.max_concurrent)]
    # No attempt runs longer, so that a SIGTERM from elsewhere costs none its answer.
    words += ["--shutdown-timeout", str(math.ceil(settings.timeout))]
    # A line for each request would make the log grow without end.
    words += ["--disable-uvicorn-access-log"]
    for key, option in _FLAGS.items():
        if (value := getattr(settings, key)) is not None:
            words += [option, str(value)]
    if settings.task == "embedding":
        # Models for chats give vectors, too, and are then ones for nothing else.
        words += ["--runner", "pooling"]
    if total is not None:
        words += _on_gpu(settings, total)
    if settings.lora:
        paths = {adapter: Path(path).expanduser().absolute() for adapter, path in settings.lora.items()}
        words += ["--enable-lora", "--lora-modules", *(f"{adapter}={path}" for adapter, path in paths.items())]
    if family is not None:
        words += OCR_FLAGS
    return [*words, *settings.args]


def _on_gpu(settings: VllmSettings, total: int) -> list[str]:
    words = ["--enable-sleep-mode"] if settings.sleep else []
    if settings.memory is not None and settings.gpu_memory_utilization is None:
        # Rounded down: the engine is to take no more than was set apart for it.
        share = math.floor(min(1.0, settings.memory / total) * 10_000) / 10_000
        words += ["--gpu-memory-utilization", f"{share:.4f}"]
    return words


def environment(
    settings: VllmSettings, environ: Mapping[str, str], gpus: Sequence[str] = (), mode: str | None = None
) -> dict[str, str]:
    """``environ`` without Roundhouse's secrets, with what vLLM needs; the user's own ``env`` wins.

    ``gpus``: ids as CUDA_VISIBLE_DEVICES takes them; none: whatever is visible already, and so with Ray, which hands
    the GPUs out itself. ``mode``: the resolution mode of a DeepSeek-OCR.
    """
    kept = {key: value for key, value in environ.items() if not key.startswith(_SECRETS)}
    ours = {
        # The weights are on this machine: nothing is to be asked of a hub that may be away or have changed.
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # For sleep and wake. Whoever can reach the socket may do so: the directory is its owner's alone.
        "VLLM_SERVER_DEV_MODE": "1",
    }
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus and not on_ray(settings) else {}
    found = kept | ours | visible | settings.env
    return found if mode is None else found | mode_environment(mode, found)

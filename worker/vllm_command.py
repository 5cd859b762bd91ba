"""From a model's entry in the configuration to the command line and environment of its vLLM. Pure, but for looking
whether a directory is there."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from config import VllmSettings

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
    places = (Path(settings.model or name).expanduser().absolute(), home / "models" / name)
    return next((place for place in places if place.is_dir()), None)


def command(settings: VllmSettings, name: str, model: Path, socket: Path, python: str) -> list[str]:
    """vLLM's OpenAI server on the Unix socket ``socket``, which serves ``model`` as ``name``.

    The user's own ``args`` come last, so that they win.
    """
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name]
    words += ["--uds", str(socket), "--max-num-seqs", str(settings.max_concurrent)]
    # No attempt runs longer, so that a SIGTERM from elsewhere costs none its answer.
    words += ["--shutdown-timeout", str(math.ceil(settings.timeout))]
    # A line for each request would make the log grow without end.
    words += ["--disable-uvicorn-access-log"]
    for key, flag in _FLAGS.items():
        if (value := getattr(settings, key)) is not None:
            words += [flag, str(value)]
    if settings.lora:
        paths = {adapter: Path(path).expanduser().absolute() for adapter, path in settings.lora.items()}
        words += ["--enable-lora", "--lora-modules", *(f"{adapter}={path}" for adapter, path in paths.items())]
    return [*words, *settings.args]


def environment(settings: VllmSettings, environ: Mapping[str, str], gpus: Sequence[str] = ()) -> dict[str, str]:
    """``environ`` without Roundhouse's secrets, with what vLLM needs; the user's own ``env`` wins.

    ``gpus``: ids as CUDA_VISIBLE_DEVICES takes them; none: whatever is visible already.
    """
    kept = {key: value for key, value in environ.items() if not key.startswith(_SECRETS)}
    ours = {
        # The weights are on this machine: nothing is to be asked of a hub that may be away or have changed.
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # For sleep and wake. Whoever can reach the socket may do so: the directory is its owner's alone.
        "VLLM_SERVER_DEV_MODE": "1",
    }
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    return kept | ours | visible | settings.env

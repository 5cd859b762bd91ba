"""Which of the configuration's vLLM models fit this machine's GPUs, and why: ``python -m gateway.commands.model_fit``.

Asked by quickstart.sh, with what ``nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits`` prints on
standard input. All but ``main`` and ``weights_on_disk`` is pure. The examples that ``config.yaml`` has in its comments
are judged as well. 1 GB is 1024**3 bytes here, as in the configuration.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from config import Settings, VllmSettings, load_settings
from config.errors import ConfigError
from config.vllm import gpu_count, on_ray, utilization, weight_places

GB = 2**30
# On each GPU beside weights and cache: the CUDA context, activations of the first batches, CUDA graphs.
OVERHEAD = 2 * GB
# Of the weights, for the cache of a model whose shape is not known here.
_CACHE_SHARE = 0.15
# The tasks that workers of this release run on vLLM.
TASKS = ("chat", "ocr")


@dataclass(frozen=True, slots=True)
class Shape:
    """``weights``: bytes as published. ``cache``: bytes of a token in the KV cache, 2 x layers x KV heads x head size x
    2 bytes. ``context``: tokens. As their makers publish them."""

    weights: int
    cache: int
    context: int


SHAPES: Mapping[str, Shape] = {
    "deepseek-ai/DeepSeek-OCR": Shape(6_670_000_000, 2 * 12 * 10 * 128 * 2, 8_192),
    "Qwen/Qwen3-4B": Shape(8_050_000_000, 2 * 36 * 8 * 128 * 2, 40_960),
    "Qwen/Qwen3-8B": Shape(16_390_000_000, 2 * 36 * 8 * 128 * 2, 40_960),
    "Qwen/Qwen3-14B": Shape(29_540_000_000, 2 * 40 * 8 * 128 * 2, 40_960),
    "Qwen/Qwen3-32B": Shape(65_530_000_000, 2 * 64 * 8 * 128 * 2, 40_960),
    "Qwen/Qwen3-32B-FP8": Shape(34_300_000_000, 2 * 64 * 8 * 128 * 2, 40_960),
    "openai/gpt-oss-20b": Shape(13_800_000_000, 2 * 24 * 8 * 64 * 2, 131_072),
    "openai/gpt-oss-120b": Shape(65_300_000_000, 2 * 36 * 8 * 64 * 2, 131_072),
    "meta-llama/Llama-3.3-70B-Instruct": Shape(141_100_000_000, 2 * 80 * 8 * 128 * 2, 131_072),
}
# Bytes of a parameter by what names say; the scales of the small ones are counted in.
_SIZES = (
    (re.compile(r"fp8|int8|w8a8|8bit", re.IGNORECASE), 1.05),
    (re.compile(r"awq|gptq|int4|w4a16|4bit|bnb|bitsandbytes|mxfp4|nvfp4|fp4", re.IGNORECASE), 0.6),
)
# The first is that of all parameters, also in 30B-A3B.
_PARAMETERS = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Need:
    """``bytes`` on each of ``gpus`` GPUs. ``estimated``: nobody has said or measured it."""

    bytes: int
    gpus: int
    estimated: bool

    def __str__(self) -> str:
        about, where = "about " if self.estimated else "", f"each of {self.gpus} GPUs" if self.gpus > 1 else "a GPU"
        return f"needs {about}{_gb(self.bytes)} on {where}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``why``: whether it fits, and the reason."""

    name: str
    need: Need | None
    fits: bool
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}" if self.need is None else f"{self.name}: {self.need}: {self.why}"


def gpu_memory(listing: str) -> list[int]:
    """Bytes of each GPU, from nvidia-smi's MiB; one that does not tell its own ("[N/A]") is left out."""
    return [int(line) * 2**20 for line in map(str.strip, listing.splitlines()) if line.isdecimal()]


def need(name: str, entry: VllmSettings, on_disk: int | None = None) -> Need | None:
    """``on_disk``: bytes of its weights, where they are there. None: nothing tells how large the model is."""
    gpus = gpu_count(entry)
    if entry.memory is not None:
        return Need(entry.memory, gpus, estimated=False)
    source = entry.model or name
    shape = SHAPES.get(source)
    weights = on_disk or _published(source, shape, entry)
    if weights is None:
        return None
    # vLLM does not start where the cache has no room for one request of full length.
    tokens = entry.max_model_len or (shape.context if shape else 0)
    cache = shape.cache * tokens if shape else int(weights * _CACHE_SHARE)
    return Need((weights + cache) // gpus + OVERHEAD, gpus, estimated=True)


def _published(source: str, shape: Shape | None, entry: VllmSettings) -> int | None:
    """Bytes of the weights as vLLM will hold them."""
    if shape is not None and entry.quantization is None:
        return shape.weights
    found = _PARAMETERS.search(source.rpartition("/")[2])
    if found is None:
        return shape.weights if shape else None
    parameters = float(found[1]) * (1e9 if found[2] in "bB" else 1e6)
    told = f"{source} {entry.quantization or ''}"
    plain = 4.0 if entry.dtype in ("float", "float32") else 2.0
    return int(parameters * next((size for pattern, size in _SIZES if pattern.search(told)), plain))


def judge(name: str, entry: VllmSettings, gpus: Sequence[int], on_disk: int | None = None) -> Verdict:
    """``gpus``: bytes of each of the machine's."""
    needed = need(name, entry, on_disk)
    if entry.task not in TASKS:
        return Verdict(name, needed, False, f"left out, as this release runs no {entry.task} models on vLLM yet")
    if needed is None:
        return Verdict(name, None, False, "left out, as neither its name nor `memory` in its entry tells its size")
    if on_ray(entry):
        return Verdict(name, needed, False, "left out, as Ray spreads it over several machines")
    if needed.gpus > len(gpus):
        return Verdict(name, needed, False, f"does not fit, as this machine has {len(gpus)}")
    total = sorted(gpus, reverse=True)[needed.gpus - 1]
    # `memory` is all that the engine takes; an estimate is what it must have of the share that it takes.
    share = 1.0 if entry.memory is not None else utilization(entry)
    allowed = int(total * share)
    limit = f"{_gb(total)}" if share == 1.0 else f"the {_gb(allowed)} that vLLM takes of {_gb(total)}"
    fits = needed.bytes <= allowed
    return Verdict(name, needed, fits, f"fits into {limit}" if fits else f"does not fit into {limit}")


def examples(text: str) -> dict[str, VllmSettings]:
    """The vLLM models that stand in the comments of a configuration's ``models``, as ``  # name: …`` and below."""
    found = {}
    for block in _blocks(text.partition("\nmodels:\n")[2].splitlines()):
        try:
            [(name, entry)] = yaml.safe_load(block).items()
            found[str(name)] = VllmSettings.model_validate(entry)
        except (yaml.YAMLError, ValidationError):
            # Another engine's, or prose: a comment may say what it likes.
            continue
    return found


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    block: list[str] = []
    for line in [*lines, ""]:
        if block and line.startswith("  #   "):
            block.append(line[4:])
            continue
        if block:
            yield "\n".join(block)
        if line and not line.startswith((" ", "#")):
            return  # the next section
        block = [line[4:]] if re.match(r"  # [A-Za-z0-9][A-Za-z0-9._/-]*:( |$)", line) else []


def _gb(size: int) -> str:
    return f"{size / GB:.1f} GB"


def weights_on_disk(entry: VllmSettings, name: str, home: Path) -> int | None:
    """Bytes; None where they are not there. What `roundhouse pull` fetched lies under the name."""
    for directory in weight_places(entry, name, home):
        for kind in ("*.safetensors", "*.bin"):
            if size := sum(file.stat().st_size for file in directory.glob(kind)):
                return size
    return None


def report(settings: Settings, gpus: Sequence[int], shown: Mapping[str, VllmSettings]) -> Iterator[str]:
    """A line for each model, and what to type next. ``shown``: the examples."""
    if not gpus:
        yield "nvidia-smi does not tell how much memory the GPUs have, so it cannot be told which models fit."
        return
    yield f"This machine's GPUs have {', '.join(map(_gb, gpus))}. The models of {settings.config_path.name} for vLLM:"
    entries = {name: entry for name, entry in settings.models.items() if isinstance(entry, VllmSettings)}
    there = {name: weights_on_disk(entry, name, settings.home) for name, entry in entries.items()}
    chosen = [judge(name, entry, gpus, there[name]) for name, entry in entries.items()]
    offered = [judge(name, entry, gpus) for name, entry in shown.items() if name not in settings.models]
    for verdict in chosen:
        yield f"  {verdict}"
    for verdict in offered:
        yield f"  {verdict} (an example)"
    for verdict in chosen:
        if verdict.fits and not there[verdict.name]:
            yield f"Get the weights of {verdict.name}: .venv/bin/roundhouse pull {verdict.name}"
    if names := [verdict.name for verdict in offered if verdict.fits]:
        file = settings.config_path.name
        yield f"To have an example ({', '.join(names)}), take away the # before its lines in {file}, and pull it."


def main() -> int:
    try:
        settings = load_settings()
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 1
    shown = examples(settings.config_path.read_text(encoding="utf-8-sig"))
    for line in report(settings, gpu_memory(sys.stdin.read()), shown):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())

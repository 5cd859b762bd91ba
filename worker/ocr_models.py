"""What is known of DeepSeek-OCR and its successor beforehand: how vLLM has to be started for them, and how many tokens
a picture takes."""

import json
import math
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from worker.vllm_plugin import roundhouse_ocr_mode as plugin
from worker.vllm_plugin.roundhouse_ocr_mode import MODES

PLUGIN = Path(plugin.__file__).parent
GUARD = "vllm.model_executor.models.deepseek_ocr:NGramPerReqLogitsProcessor"
# No page is asked for twice, so that caches of prefixes and pictures would only take memory.
FLAGS = ("--logits-processors", GUARD, "--no-enable-prefix-caching", "--mm-processor-cache-gb", "0")
# Tiles of a page in gundam mode, at least and at most.
_TILES = (2, 6)
# Pixels of the page, each way, that become one token.
_PIXELS = 64


class Family(StrEnum):
    """By the name of the architecture in the model's ``config.json``."""

    DEEPSEEK_OCR = "DeepseekOCRForCausalLM"
    DEEPSEEK_OCR_2 = "DeepseekOCR2ForCausalLM"

    @property
    def modes(self) -> tuple[str, ...]:
        """In which it can run. The second was trained for one size of the whole page, with or without tiles."""
        return tuple(MODES) if self is Family.DEEPSEEK_OCR else ("base", "gundam")


def family(model: Path) -> Family | None:
    """Of the model in the directory ``model``; None for one of another kind."""
    try:
        config = json.loads((model / "config.json").read_bytes())
        names = set(config["architectures"])
    except (OSError, ValueError, KeyError, TypeError):
        # vLLM will say what is wrong with it.
        return None
    return next((found for found in Family if found.value in names), None)


def mode_environment(mode: str, environ: Mapping[str, str]) -> dict[str, str]:
    """For ``environ`` of a vLLM, so that it runs in ``mode``."""
    paths = [str(PLUGIN), *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    found = {plugin.MODE_VARIABLE: mode, "PYTHONPATH": os.pathsep.join(paths)}
    if (plugins := environ.get("VLLM_PLUGINS")) is not None:
        found["VLLM_PLUGINS"] = ",".join(filter(None, [plugins, plugin.NAME]))
    return found


def image_tokens(model: Family, mode: str, width: int, height: int) -> int:
    """Of the prompt, for a picture of so many pixels: as ``get_num_image_tokens`` of vLLM's two models. One more than
    their papers say, for the end of the picture, and with the first model one for each row of the grid."""
    sizes = MODES[mode]
    row_ends = model is Family.DEEPSEEK_OCR
    tile = sizes.image_size if model is Family.DEEPSEEK_OCR else 768
    side = math.ceil(sizes.base_size / _PIXELS)
    tokens = side * (side + row_ends) + 1
    if sizes.crops and (width > tile or height > tile):
        columns, rows = _tiles(width, height, tile)
        side = math.ceil(tile / _PIXELS)
        tokens += rows * side * (columns * side + row_ends)
    return tokens


def _tiles(width: int, height: int, size: int) -> tuple[int, int]:
    """The grid whose proportions are nearest to the picture's; of two that are equally near the later one, where the
    picture has more than half of its pixels."""
    least, most = _TILES
    pairs = {(i, j) for n in range(least, most + 1) for i in range(1, n + 1) for j in range(1, n + 1)}
    grids = sorted((pair for pair in pairs if least <= pair[0] * pair[1] <= most), key=lambda pair: pair[0] * pair[1])
    best, nearest = (1, 1), math.inf
    for columns, rows in grids:
        distance = abs(width / height - columns / rows)
        if distance < nearest:
            best, nearest = (columns, rows), distance
        elif distance == nearest and width * height > size * size * columns * rows / 2:
            best = (columns, rows)
    return best

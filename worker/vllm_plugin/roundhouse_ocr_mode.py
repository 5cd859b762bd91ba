"""Sets the resolution mode of DeepSeek-OCR for the whole of a vLLM, which itself knows only gundam (0.32).

Runs in each process of vLLM, before a model is loaded, where MODE_VARIABLE names the mode. vLLM has the mode in
constants of ``vllm.transformers_utils.processors.deepseek_ocr``, in the defaults of its processor's methods, and in the
names that the models' modules import from there. Imports vLLM only when it is called, and nothing else of Roundhouse.
"""

import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from functools import wraps
from typing import Any

MODE_VARIABLE = "ROUNDHOUSE_OCR_MODE"
NAME = "roundhouse_ocr_mode"


@dataclass(frozen=True)
class Mode:
    """`base_size`: side of the square in which the model sees the whole page, in pixels. `image_size`: that of the
    tiles into which it is cut with `crops`, else the same."""

    base_size: int
    image_size: int
    crops: bool


# Of DeepSeek-OCR's README and of its config.py.
MODES = {
    "tiny": Mode(512, 512, False),
    "small": Mode(640, 640, False),
    "base": Mode(1024, 1024, False),
    "large": Mode(1280, 1280, False),
    "gundam": Mode(1024, 640, True),
}
# DeepSeek-OCR stretches a page to these squares; into larger ones it is put with its own proportions. vLLM stretches it
# in each mode without tiles.
_LARGEST_STRETCHED = 640

_PROCESSORS = "vllm.transformers_utils.processors.deepseek_ocr"
# Each takes the constants over when it is imported. The second has an IMAGE_SIZE of its own, for its tiles.
_MODELS = {
    "vllm.model_executor.models.deepseek_ocr": ("BASE_SIZE", "IMAGE_SIZE", "CROP_MODE"),
    "vllm.model_executor.models.deepseek_ocr2": ("BASE_SIZE", "CROP_MODE"),
    "vllm.model_executor.models.unlimited_ocr": ("BASE_SIZE", "IMAGE_SIZE", "CROP_MODE"),
}
_METHODS = ("__init__", "process_one", "__call__")
_PARAMETERS = {"base_size": "BASE_SIZE", "image_size": "IMAGE_SIZE", "crop_mode": "CROP_MODE"}


class ModeNotSet(Exception):
    """This vLLM is not as it has to be for its mode to be set."""


def register() -> None:
    """The entry point. An error ends the vLLM with it; one in importing this module would only be logged."""
    name = os.environ.get(MODE_VARIABLE)
    if name is None:
        return
    if name not in MODES:
        raise ModeNotSet(f"{MODE_VARIABLE} is {name!r}; it has to be one of {', '.join(MODES)}.")
    try:
        set_mode(MODES[name])
    except (AttributeError, ImportError) as error:
        told = "Roundhouse cannot set the resolution mode of DeepSeek-OCR in this release of vLLM"
        raise ModeNotSet(f"{told}: {error}. Install the release that Roundhouse pins.") from error


def set_mode(mode: Mode) -> None:
    processors = importlib.import_module(_PROCESSORS)
    constants = {"BASE_SIZE": mode.base_size, "IMAGE_SIZE": mode.image_size, "CROP_MODE": mode.crops}
    _set(processors, constants)
    for module, names in _MODELS.items():
        if module in sys.modules:
            _set(sys.modules[module], {constant: constants[constant] for constant in names})
    processor = processors.DeepseekOCRProcessor
    values = {parameter: constants[constant] for parameter, constant in _PARAMETERS.items()}
    found: set[str] = set()
    for method in _METHODS:
        found |= _set_defaults(getattr(processor, method), values)
    if missing := values.keys() - found:
        raise AttributeError(f"{processor.__name__} has no parameter {sorted(missing)[0]}")
    if not mode.crops and mode.base_size > _LARGEST_STRETCHED:
        _keep_proportions(processor)


def _set(module: Any, constants: dict[str, Any]) -> None:
    for name, value in constants.items():
        if not isinstance(getattr(module, name), type(value)):
            raise AttributeError(f"{name} of {module.__name__} is no {type(value).__name__}")
        setattr(module, name, value)


def _set_defaults(function: Any, values: dict[str, Any]) -> set[str]:
    """The names of the parameters that it has. A default is computed once, when the function is made."""
    parameters = inspect.signature(function).parameters
    with_default = [p for p in parameters.values() if p.default is not p.empty]
    plain = [p for p in with_default if p.kind is not p.KEYWORD_ONLY]
    named = [p for p in with_default if p.kind is p.KEYWORD_ONLY]
    function.__defaults__ = tuple(values.get(p.name, p.default) for p in plain) or None
    function.__kwdefaults__ = {p.name: values.get(p.name, p.default) for p in named} or None
    return values.keys() & {p.name for p in with_default}


def _keep_proportions(processor: Any) -> None:
    """Puts each picture into its square before vLLM stretches it to just that square."""
    plain = processor.tokenize_with_images
    if getattr(plain, NAME, False):
        return
    if not {"images", "cropping"} <= inspect.signature(plain).parameters.keys():
        raise AttributeError(f"{processor.__name__}.tokenize_with_images takes other parameters")
    pad = importlib.import_module("PIL.ImageOps").pad

    @wraps(plain)
    def tokenize_with_images(self: Any, *args: Any, **words: Any) -> Any:
        bound = inspect.signature(plain).bind(self, *args, **words)
        # Its tiles, if it has any, are of a size of their own.
        self.image_size = self.base_size
        grey = tuple(int(share * 255) for share in self.image_transform.mean)
        square = (self.base_size, self.base_size)
        bound.arguments["images"] = [pad(image, square, color=grey) for image in bound.arguments["images"]]
        return plain(*bound.args, **bound.kwargs)

    setattr(tokenize_with_images, NAME, True)
    processor.tokenize_with_images = tokenize_with_images

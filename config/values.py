"""How single values are written: durations, sizes, and text whose type the key decides."""

import math
import re
from typing import Annotated, Final

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# As in most server software, MB means 1024 * 1024 here; MiB is understood as the same.
_BYTES: Final = {"b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NUMBER: Final = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
DURATION_PATTERN: Final = rf"^{_NUMBER} ?(ms|s|m|h|d)?$"
SIZE_PATTERN: Final = rf"^{_NUMBER} ?([KkMmGg][Ii]?)?[Bb]?$"


class Raw(str):
    """Text from the environment. The key that takes it decides whether it is text, a number or a list."""


def parse_duration(value: object) -> object:
    """Turn ``"30s"``, ``"5m"``, ``"2h"``, ``"15d"``, ``"500ms"`` or a number into seconds.

    Other types are handed on, for the field's own type check to refuse.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("duration", "expected a finite number of seconds")
    if not isinstance(value, str):
        return value
    match = re.fullmatch(rf"({_NUMBER}) ?(ms|s|m|h|d)?", value.strip(), re.ASCII)
    if match is None:
        raise PydanticCustomError("duration", "expected a duration: seconds as a number, or 30s, 5m, 2h, 15d")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def parse_size(value: object) -> object:
    """Turn ``"10MB"`` (10 * 1024 * 1024), ``"512KB"``, ``"1GB"`` or a whole number into bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(rf"({_NUMBER}) ?((?:[kmg]i?)?b)?", value.strip(), re.ASCII | re.IGNORECASE)
    size = float(match[1]) * _BYTES[(match[2] or "b").lower()] if match else 0.5
    if not size.is_integer():
        raise PydanticCustomError("size", "expected a size: bytes as a whole number, or 512KB, 10MB, 1GB")
    return int(size)


Seconds = Annotated[
    float,
    Field(gt=0, le=10 * 365 * 86400),
    BeforeValidator(parse_duration, json_schema_input_type=float | Annotated[str, Field(pattern=DURATION_PATTERN)]),
]
"""A duration in seconds, more than zero and at most ten years."""

Bytes = Annotated[
    int,
    Field(gt=0, le=2**40),
    BeforeValidator(parse_size, json_schema_input_type=int | Annotated[str, Field(pattern=SIZE_PATTERN)]),
]
"""A size in bytes, more than zero and at most one tebibyte."""


def _whole_number_as_text(value: object) -> object:
    # `args: [--max-num-seqs, 16]` and `env: {OMP_NUM_THREADS: 4}` are what people write.
    return str(value) if type(value) is int else value


Word = Annotated[str, BeforeValidator(_whole_number_as_text, json_schema_input_type=str | int)]
"""Text that may be written as a whole number."""

"""The root of the error tree. The tree goes on in ``broker/errors.py`` and ``ocr/errors.py``.

RoundhouseError                     internal_error
└── ConfigError                     config_invalid
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeAlias

# Read-only containers, so that a caller may pass a list[str] where a list of JSON is meant.
JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


class RoundhouseError(Exception):
    """Every error that Roundhouse raises on purpose.

    ``code`` is stable and snake_case: clients and tests may depend on it. ``message`` is one sentence that
    names the thing and what to do about it; ``details`` are facts for machines, fit for a JSON body.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, **details: JSON) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class ConfigError(RoundhouseError):
    """The configuration cannot be used. ``details["problems"]`` lists every problem, one line each."""

    code = "config_invalid"

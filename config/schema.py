"""The JSON schema of config.yaml, for editors. ``config/schema.json`` is its printed form."""

import json
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema

from config.settings import ConfigFile

SCHEMA_FILE: Final = Path(__file__).with_name("schema.json")
_REFERENCE: Final = {"type": "string", "pattern": r"\$\{env:[^}:]+(:-[^}]*)?\}"}
_CONSTRAINTS: Final = (
    "type",
    "enum",
    "pattern",
    "minLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
)


class _Untitled(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # a title such as "Max Waiting" says no more than the key


def schema_text() -> str:
    """The schema as it stands in ``config/schema.json``."""
    schema = ConfigFile.model_json_schema(schema_generator=_Untitled)
    _allow_references(schema)
    top = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Roundhouse configuration"}
    return json.dumps(top | {k: v for k, v in schema.items() if k != "title"}, indent=2) + "\n"


def _allow_references(schema: dict[str, Any]) -> None:
    """Let every value that is not free text be ``${env:NAME}`` as well, as the loader does."""
    for section in [schema, *schema.get("$defs", {}).values()]:
        for key, value in section.get("properties", {}).items():
            if "$ref" not in value:
                section["properties"][key] = _or_reference(value)


def _or_reference(value: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in value:
        return value | {"anyOf": [*value["anyOf"], _REFERENCE]}
    own = {key: value[key] for key in _CONSTRAINTS if key in value}
    if own.get("type") not in ("integer", "number", "boolean", "string") or own == {"type": "string"}:
        return value
    rest = {key: item for key, item in value.items() if key not in own}
    return {"anyOf": [own, _REFERENCE]} | rest

"""What pydantic found → sentences about keys of the file. The values themselves are never quoted."""

from collections.abc import Mapping
from typing import Any, Final, get_args

from pydantic_core import ErrorDetails

from config.consistency import Finding, Path, did_you_mean
from config.models import ModelEntry, ModelSettings
from config.settings import ConfigFile
from config.shape import item_of, map_value, members, section_of
from config.values import Raw

ENGINES: Final = tuple(
    engine for entry in members(ModelEntry) for engine in get_args(entry.model_fields["engine"].annotation)
)
# What llama-swap, LiteLLM, vLLM and OpenAI's clients call our keys.
_ELSEWHERE: Final = {
    "api_base": "base_url",
    "proxy": "base_url",
    "concurrencylimit": "max_concurrent",
    "max_parallel_requests": "max_concurrent",
    "num_retries": "max_retries",
    "request_timeout": "timeout",
    "mode": "task",
    "model_list": "models",
    "cmd": "args",
    "served_model_name": "aliases",
}
_EXPECTED: Final = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_KINDS: Final = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}
_BOUNDS: Final = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_PATTERNS: Final = {
    "base_url": "expected an http:// or https:// address without credentials (a key goes in api_key)",
    "headers": "expected the name of an HTTP header",
    "uri": "expected an address that starts with mongodb:// or mongodb+srv://",
    "database": "expected letters, digits, - and _, at most 63 of them",
    "languages": "expected one of Tesseract's language codes, such as eng or chi_sim",
}


def explain(error: ErrorDetails, data: object) -> Finding:
    """The path of the key (without pydantic's own parts) and one clause that says what is wrong."""
    path = _path_in_file(error["loc"])
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "union_tag_not_found":
        return (*path, "engine"), f"missing: one of {', '.join(ENGINES)}"
    if kind == "union_tag_invalid":
        engine = value.get("engine") if isinstance(value, Mapping) else None
        hint = did_you_mean(engine, list(ENGINES)) if isinstance(engine, str) else ""
        return (*path, "engine"), f"unknown engine{hint}: one of {', '.join(ENGINES)}"
    if kind == "extra_forbidden":
        return path, _unknown_key(path, data)
    if kind == "missing":
        return path, "missing"
    if kind == "literal_error":
        return path, _literal(path, context, value, data)
    if kind in _EXPECTED:
        return path, f"expected {_EXPECTED[kind]}, got {_kind_of(value)}"
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return path, f"must be {words} {context[bound]:g}"
    if kind in ("string_too_short", "too_short"):
        return path, "may not be empty"
    if kind == "string_pattern_mismatch":
        return path, _pattern(path)
    return path, error["msg"]


def _path_in_file(loc: tuple[int | str, ...]) -> Path:
    path = [part for part in loc if part != "[key]"]
    if len(path) > 2 and path[0] == "models" and path[2] in ENGINES:
        del path[2]  # pydantic names the member of the union
    return tuple(path)


def _kind_of(value: object) -> str:
    if isinstance(value, Raw):
        return "text"
    return _KINDS.get(type(value), "nothing")


def _unknown_key(path: Path, data: object) -> str:
    key, here = str(path[-1]), data
    annotation: Any = ConfigFile
    for part in path[:-1]:
        section = section_of(annotation, here)
        annotation = section.model_fields[str(part)].annotation if section else item_of(annotation)
        here = _item(here, part)
    in_model = len(path) == 3 and path[0] == "models"
    section = section_of(annotation, here) or (ModelSettings if in_model else None)
    names = list(section.model_fields) if section else []
    elsewhere = _ELSEWHERE.get(key.lower().replace("-", "_"))
    if elsewhere in names:
        return f"unknown key (here it is called {elsewhere})"
    owners = engines_with(key)
    if in_model and owners:
        return f"unknown key for this engine (it belongs to {' and '.join(owners)})"
    return f"unknown key{did_you_mean(key, names)}"


def _item(here: object, part: int | str) -> object:
    if isinstance(here, list) and isinstance(part, int):
        return here[part]
    return here.get(part) if isinstance(here, Mapping) else None


def engines_with(key: str) -> list[str]:
    """The engines whose model entries may have this key."""
    values: Any = map_value(ConfigFile.model_fields["models"].annotation)
    sections = [(engine, section_of(values, {"engine": engine})) for engine in ENGINES]
    return [engine for engine, section in sections if section and key in section.model_fields]


def _literal(path: Path, context: Mapping[str, Any], value: object, data: object) -> str:
    models = data.get("models") if isinstance(data, Mapping) else None
    entry = models.get(path[1]) if isinstance(models, Mapping) and path[0] == "models" else None
    if path[-1] == "task" and isinstance(entry, Mapping) and entry.get("engine") == "tesseract":
        return "the engine tesseract does only the task ocr"
    expected = str(context["expected"]).replace("'", "")
    hint = did_you_mean(value, expected.replace(" or ", ", ").split(", ")) if isinstance(value, str) else ""
    return f"expected {expected}{hint}"


def _pattern(path: Path) -> str:
    for part in reversed(path):
        if part in _PATTERNS:
            return _PATTERNS[str(part)]
    return "expected a name: letters, digits and . _ : / @ + -, starting with a letter or digit, at most 128"

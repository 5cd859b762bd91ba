"""Checks over several sections at once, on plain data, so that they also run when single keys are wrong."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TypeAlias

# Keys of models that read documents, which engines have that do not only that.
READERS_KEYS = ("dpi", "max_pages", "page_retries", "max_page_error_rate", "resolution")

Path: TypeAlias = tuple[str | int, ...]
Finding: TypeAlias = tuple[Path, str]


def did_you_mean(name: str, candidates: list[str]) -> str:
    """`` (did you mean x?)``, or nothing where no candidate is close."""
    close = get_close_matches(name, candidates, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _mapping(data: object, key: str) -> Mapping[str, object]:
    value = data.get(key) if isinstance(data, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _texts(data: object, key: str) -> list[tuple[int, str]]:
    value = data.get(key) if isinstance(data, Mapping) else None
    items = value if isinstance(value, list) else []
    return [(index, str(item)) for index, item in enumerate(items) if isinstance(item, str)]


def inconsistencies(data: Mapping[str, object]) -> list[Finding]:
    """Aliases and adapters that collide, defaults that name no fitting model, exempt roles that do not exist, and what
    is said of documents in the entry of a model that reads none.

    ``data`` is the file as plain mappings and lists; whatever has the wrong type is passed over.
    """
    models = _mapping(data, "models")
    found = _alias_collisions(models), _readers_keys(models), _wrong_defaults(data, models), _unknown_roles(data)
    return [finding for findings in found for finding in findings]


def _alias_collisions(models: Mapping[str, object]) -> Iterator[Finding]:
    taken: dict[str, str] = {}
    for path, alias in _further_names(models):
        name = str(path[1])
        if alias in models:
            yield path, f"{alias!r} is already the name of a model"
        elif alias in taken:
            yield path, f"{alias!r} is already another name of {taken[alias]}"
        else:
            taken[alias] = name


def _further_names(models: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
    """What requests may say in place of the models' names: aliases, and LoRA adapters."""
    for name, entry in models.items():
        for index, alias in _texts(entry, "aliases"):
            yield ("models", name, "aliases", index), alias
        for adapter in _mapping(entry, "lora"):
            yield ("models", name, "lora", adapter), adapter


def _readers_keys(models: Mapping[str, object]) -> Iterator[Finding]:
    for name, entry in models.items():
        if isinstance(entry, Mapping) and entry.get("task") in ("chat", "embedding"):
            for key in READERS_KEYS:
                if key in entry and entry.get("engine") in ("openai", "vllm"):
                    yield ("models", name, key), "only a model whose task is ocr reads documents"


def _wrong_defaults(data: Mapping[str, object], models: Mapping[str, object]) -> Iterator[Finding]:
    aliases = {alias: name for name, entry in models.items() for _, alias in _texts(entry, "aliases")}
    for task in ("ocr", "chat"):
        for index, name in _texts(_mapping(data, "defaults"), task):
            path: Path = ("defaults", task, index)
            entry = models.get(name)
            actual = entry.get("task") if isinstance(entry, Mapping) else None
            if name in aliases and name not in models:
                yield path, f"{name!r} is an alias: write the model's name, {aliases[name]}"
            elif name not in models:
                yield path, f"there is no model {name!r}{did_you_mean(name, list(models))}"
            elif actual in ("chat", "ocr", "embedding") and actual != task:
                yield path, f"the task of {name!r} is {actual}, not {task}"


def _unknown_roles(data: Mapping[str, object]) -> Iterator[Finding]:
    roles = [*_mapping(_mapping(data, "auth"), "roles"), "admin", "service", "user"]
    for index, role in _texts(_mapping(data, "rate_limit"), "exempt_roles"):
        if role not in roles:
            yield (
                ("rate_limit", "exempt_roles", index),
                f"there is no role {role!r} in auth.roles{did_you_mean(role, roles)}",
            )

"""Checks over several sections at once, on plain data, so that they also run when single keys are wrong."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TypeAlias

from config.fallbacks import loop

# Keys of models that read documents, which engines have that do not only that.
READERS_KEYS = ("dpi", "max_pages", "page_retries", "max_page_error_rate", "resolution")
# Of an entry with one upstream. Where there are several, each has its own: a key must not go to another's server.
_OF_ONE_UPSTREAM = ("base_url", "api_key", "headers", "query")

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
    """Aliases and adapters that collide, defaults and fallbacks that name no fitting model, exempt roles that do not
    exist, upstreams without an address or with keys that count for nothing, and what is said of documents in the entry
    of a model that reads none.

    ``data`` is the file as plain mappings and lists; whatever has the wrong type is passed over.
    """
    models = _mapping(data, "models")
    found = (
        _alias_collisions(models),
        _readers_keys(models),
        _wrong_upstreams(models),
        _wrong_fallbacks(models),
        _wrong_defaults(data, models),
        _unknown_roles(data),
    )
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
        elif isinstance(entry, Mapping) and entry.get("task") == "ocr" and entry.get("cache") is not None:
            yield ("models", name, "cache"), "what was read before is used again without it"


def _wrong_upstreams(models: Mapping[str, object]) -> Iterator[Finding]:
    for name, entry in models.items():
        if not isinstance(entry, Mapping) or entry.get("engine") != "openai":
            continue
        path: Path = ("models", name)
        backends = entry.get("backends")
        if not backends:
            yield from _key_twice(path, entry)
            if entry.get("base_url") is None:
                yield (*path, "base_url"), "missing"
            if "balance" in entry:
                yield (*path, "balance"), "chooses among backends, and there are none"
            continue
        for key in _OF_ONE_UPSTREAM:
            if entry.get(key):
                yield (*path, key), "goes into each of the backends, where there are some"
        yield from _wrong_backends(path, entry)


def _wrong_backends(entry_path: Path, entry: Mapping[object, object]) -> Iterator[Finding]:
    backends = entry["backends"]
    seen: set[str] = set()
    for index, backend in enumerate(backends if isinstance(backends, list) else []):
        if not isinstance(backend, Mapping):
            continue
        path: Path = (*entry_path, "backends", index)
        yield from _key_twice(path, backend)
        if "weight" in backend and entry.get("balance") != "weight":
            yield (*path, "weight"), "counts only with balance: weight"
        called = backend.get("name")
        if isinstance(called, str) and called in seen:
            yield (*path, "name"), f"another backend is already called {called!r}"
        elif isinstance(called, str):
            seen.add(called)


def _key_twice(path: Path, server: Mapping[object, object]) -> Iterator[Finding]:
    """Of an entry, or one of its backends."""
    for header in _mapping(server, "headers"):
        if server.get("api_key") is not None and str(header).lower() == "authorization":
            yield (*path, "headers", header), "api_key goes in this header: give one of them"


def _wrong_fallbacks(models: Mapping[str, object]) -> Iterator[Finding]:
    aliases = {alias: name for (_, name, *_), alias in _further_names(models)}

    def given(name: str) -> list[str]:
        return [text for _, text in _texts(models.get(name), "fallbacks")]

    for name, entry in models.items():
        task = entry.get("task") if isinstance(entry, Mapping) else None
        for index, other in _texts(entry, "fallbacks"):
            path: Path = ("models", name, "fallbacks", index)
            target = models.get(other)
            its = target.get("task") if isinstance(target, Mapping) else None
            if other == name:
                yield path, "a model cannot stand in for itself"
            elif other not in models and other in aliases:
                yield path, f"{other!r} is an alias: write the model's name, {aliases[other]}"
            elif other not in models:
                yield path, f"there is no model {other!r}{did_you_mean(other, list(models))}"
            elif isinstance(its, str) and isinstance(task, str) and its != task:
                yield path, f"the task of {other!r} is {its}, not {task}"
        way = loop(name, given)
        # Told of once: of the first model on the way.
        if way is not None and len(way) > 2 and name == min(way, key=list(models).index):
            yield ("models", name, "fallbacks"), f"go in a circle: {' → '.join(way)}"


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

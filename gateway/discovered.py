"""Models that no configuration names: those that upstreams list themselves, where an entry allows them."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from broker.registry import Worker
from config import OpenaiSettings, Settings
from gateway.problems import Problem


def entry_for(settings: Settings, task: str, asked: str, workers: Sequence[Worker]) -> str | None:
    """The entry whose upstream serves the model ``asked``; None where none does.

    Raises Problem ``model_not_allowed``, ``model_ambiguous``.
    """
    serving = [name for name, names in _listed(settings, task, workers) if asked in names]
    allowed = [name for name in serving if _allows(settings, name, asked)]
    if len(allowed) > 1:
        told = f"{asked} is served by {' and by '.join(allowed)}: name one of these, or configure a model for it."
        raise Problem("model_ambiguous", told, model=asked, models=[*allowed])
    if serving and not allowed:
        raise Problem("model_not_allowed", f"{asked} is not among the allowed_models here.", model=asked)
    return allowed[0] if allowed else None


def discovered(settings: Settings, workers: Sequence[Worker]) -> dict[str, str]:
    """{name: its entry} of all that may be asked for besides what is configured, in order."""
    found: dict[str, list[str]] = {}
    for entry, names in _listed(settings, None, workers):
        for name in names:
            if settings.resolve(name) is None and _allows(settings, entry, name):
                found.setdefault(name, []).append(entry)
    # What several serve needs a name of its own.
    return {name: entries[0] for name, entries in sorted(found.items()) if len(entries) == 1}


def _listed(settings: Settings, task: str | None, workers: Sequence[Worker]) -> Iterator[tuple[str, set[str]]]:
    for name, entry in settings.models.items():
        if isinstance(entry, OpenaiSettings) and entry.allowed_models is not None and task in (None, entry.task):
            states = [state for worker in workers if (state := worker.models.get(name))]
            yield name, {known for state in states for known in state.listed}


def _allows(settings: Settings, entry: str, name: str) -> bool:
    patterns = getattr(settings.models[entry], "allowed_models", None) or ()
    return any(fnmatchcase(name, pattern) for pattern in patterns)

"""Which requests may be answered by an earlier answer, and what their answers say of that."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from broker.job import Job, NewJob
from broker.reuse import HOW_IT_RUNS, fingerprint
from config import Settings
from gateway.problems import Problem

Asked: TypeAlias = Literal["on", "off"]
# Documents have a way of their own, see ``gateway.submit``.
_TASKS = frozenset({"chat", "completion", "embedding"})


def asked_cache(header: str | None) -> Asked | None:
    """What X-Cache says. Raises Problem ``invalid_cache``."""
    match None if header is None else header.strip().lower():
        case None:
            return None
        case "on":
            return "on"
        case "off":
            return "off"
        case _:
            raise Problem("invalid_cache", f"X-Cache has to be on or off, not {header!r}.")


def may_be_answered(settings: Settings, task: str, asked: Asked | None, *, fresh: bool) -> bool:
    """Whether a request may be answered without a place in the queue, as far as is known before its body is read.
    ``fresh``: the client wants no earlier answer."""
    if fresh or asked == "off" or task not in _TASKS:
        return False
    return asked == "on" or any(entry.cache is not None and entry.task == task for entry in settings.models.values())


def cached(settings: Settings, new: NewJob, asked: Asked | None, *, fresh: bool) -> NewJob:
    """The job as it is to be submitted: where its answer may be used again, it says what that depends on."""
    if not _wanted(settings, new, asked):
        return new
    entry = settings.models[new.model].model_dump(mode="json", exclude=set(HOW_IT_RUNS))
    digest = fingerprint(b"", new.model, {"entry": entry, "task": new.task}, new.payload)
    return replace(new, fingerprint=digest, reuse=not fresh)


def _wanted(settings: Settings, new: NewJob, asked: Asked | None) -> bool:
    if new.task not in _TASKS or asked == "off":
        return False
    if asked == "on":
        return True
    cache = settings.models[new.model].cache
    # What is drawn at random is not expected to be the same each time.
    certain = new.task == "embedding" or new.payload.get("temperature") == 0
    return cache is not None and (certain or cache.any_temperature)


def cache_headers(job: Job) -> Mapping[str, str]:
    """Whether an earlier answer was used, where one might have been."""
    if job.fingerprint is None or job.task not in _TASKS:
        return {}
    return {"X-Cache": "miss" if job.pages_of is None else "hit"}

"""``roundhouse pull``: a GPU model's weights, from the Hugging Face hub into the state directory."""

import fcntl
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx

from broker.naming import named
from config import Settings, VllmSettings
from config.errors import RoundhouseError
from config.vllm import weight_places

# Old releases of huggingface_hub raise what requests raises, which is an OSError; new ones what httpx raises.
_FAULTS = (OSError, ValueError, httpx.HTTPError)


class PullFailed(RoundhouseError):
    """The weights cannot be had. What was downloaded is kept, and the next attempt goes on from there."""

    code = "pull_failed"


class NoWeightsNeeded(RoundhouseError):
    """The model's engine loads no weights that Roundhouse could fetch."""

    code = "no_weights_needed"


class GpuExtraMissing(RoundhouseError):
    """huggingface_hub, which comes with the extra ``gpu``, is not installed."""

    code = "gpu_extra_missing"


def pull_weights(settings: Settings, model: str) -> Path:
    """The directory with the weights of ``model`` (a name or an alias), downloaded if they are not there yet.

    Raises ModelNotFound, NoWeightsNeeded, GpuExtraMissing and PullFailed.
    """
    name = named(settings, model)
    entry = settings.models[name]
    if not isinstance(entry, VllmSettings):
        raise NoWeightsNeeded(f"{name} runs on the engine {entry.engine}, which needs no weights: nothing to pull.")
    source = entry.model or name
    places = weight_places(entry, name, settings.home)
    for there in places:
        if there.is_dir():
            click.echo(f"roundhouse: the weights of {name} are there already, nothing is downloaded.", err=True)
            return there
    if source.startswith(("/", "./", "../", "~")):
        raise PullFailed(f"The model {name} is to be read from {source}, which is no directory; mend its `model`.")
    _download(settings.home, name, source)
    return places[-1]


def _download(home: Path, name: str, source: str) -> None:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise GpuExtraMissing(
            f"To pull weights takes the extra `gpu` ({error}): run `./quickstart.sh` on a machine with an NVIDIA GPU, "
            "or type `python -m pip install -e '.[gpu]'` in Roundhouse's virtual environment."
        ) from error
    # No name of a model begins with a dot, so the second can never be the first of another model.
    target, partial = home / "models" / name, home / "models" / ".partial" / name
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(name, partial):
            if not target.is_dir():
                _fetch(hub, source, partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                partial.rename(target)
    except _FAULTS as error:
        raise PullFailed(f"The weights of {name} ({source}) cannot be had: {_reason(error)}.") from error


def _fetch(hub: Any, source: str, partial: Path) -> None:
    """Where the hub cannot be reached, snapshot_download() may return what an earlier attempt left as if it were
    whole; so the list of files is asked for first, and each of them looked for afterwards."""
    listed = hub.HfApi().model_info(source)
    hub.snapshot_download(source, revision=listed.sha, local_dir=partial)
    missing = [file.rfilename for file in listed.siblings if not (partial / file.rfilename).is_file()]
    if missing:
        raise OSError(f"{len(missing)} of {len(listed.siblings)} files are missing, {missing[0]} among them")


@contextmanager
def _alone(name: str, partial: Path) -> Iterator[None]:
    """The kernel drops the lock with its holder."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullFailed(f"Another process is pulling {name} just now; wait for it.") from None
        yield
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    """One line. By the names of huggingface_hub's classes, which have moved between its modules."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return "its owner has to grant access; ask for it on the model's page and set HF_TOKEN to your token"
    if "RepositoryNotFoundError" in kinds:
        return "the hub has no such repository, or it is private and HF_TOKEN has to be set"
    if "OfflineModeIsEnabled" in kinds:
        return "HF_HUB_OFFLINE is set, which forbids it; unset it"
    if kinds & {"LocalEntryNotFoundError", "ConnectError", "ConnectTimeout", "ConnectionError"}:
        return "the hub cannot be reached; try again (what is downloaded is kept), or set `model` to a local path"
    told = str(error).strip() or type(error).__name__
    return told.splitlines()[0].rstrip(".")

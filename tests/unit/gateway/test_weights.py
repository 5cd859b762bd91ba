"""No model hub can be reached from tests, so a module with the few names that are used stands in for its client."""

import fcntl
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import httpx
import pytest

from broker.errors import ModelNotFound
from config import Settings, load_settings
from gateway.commands.weights import GpuExtraMissing, NoWeightsNeeded, PullFailed, pull_weights

REVISION = "0123456789abcdef0123456789abcdef01234567"


class HfHubHTTPError(OSError): ...


class RepositoryNotFoundError(HfHubHTTPError): ...


class GatedRepoError(RepositoryNotFoundError): ...


class LocalEntryNotFoundError(FileNotFoundError): ...


class OfflineModeIsEnabled(ConnectionError): ...


@dataclass
class Hub:
    """A hub with one repository. ``fails_at``: the file before which the connection breaks."""

    files: dict[str, str] = field(default_factory=lambda: {"config.json": "{}", "weights/1.safetensors": "heavy"})
    refusal: Exception | None = None
    fails_at: str | None = None
    sent: list[str] = field(default_factory=list)

    def model_info(self, repo_id: str) -> SimpleNamespace:
        if self.refusal:
            raise self.refusal
        assert repo_id == "acme/reader"
        return SimpleNamespace(sha=REVISION, siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot_download(self, repo_id: str, *, revision: str, local_dir: Path) -> str:
        assert (repo_id, revision) == ("acme/reader", REVISION)
        for name, content in self.files.items():
            if name == self.fails_at:
                # As the real one does: a directory with something in it is returned for want of better.
                return str(local_dir)
            if not (local_dir / name).exists():
                (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
                (local_dir / name).write_text(content)
                self.sent.append(name)
        return str(local_dir)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub, module = Hub(), ModuleType("huggingface_hub")
    module.HfApi = lambda: hub  # type: ignore[attr-defined]
    module.snapshot_download = hub.snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return hub


Make = Callable[[str], Settings]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def _make(model: str) -> Settings:
        file = tmp_path / "config.yaml"
        file.write_text(
            "models:\n"
            f"  reader: {{task: ocr, engine: vllm, model: {model}, aliases: [r]}}\n"
            "  tesseract: {task: ocr, engine: tesseract}\n"
        )
        return load_settings(file, {"ROUNDHOUSE_HOME": str(tmp_path / "home")})

    return _make


def content(directory: Path) -> dict[str, str]:
    return {str(f.relative_to(directory)): f.read_text() for f in directory.rglob("*") if f.is_file()}


@pytest.mark.parametrize("name", ["reader", "r"])
def test_the_weights_are_downloaded_to_where_the_worker_looks_for_them(hub: Hub, make: Make, name: str) -> None:
    settings = make("acme/reader")
    directory = pull_weights(settings, name)
    assert directory == settings.home / "models" / "reader"
    assert content(directory) == hub.files
    assert settings.home.stat().st_mode & 0o077 == 0


def test_weights_that_are_there_are_not_downloaded_again(
    hub: Hub, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make("acme/reader")
    first = pull_weights(settings, "reader")
    hub.refusal = AssertionError("the hub was asked again")
    assert pull_weights(settings, "reader") == first
    assert "already" in capsys.readouterr().err


def test_a_broken_download_goes_on_where_it_stopped_and_is_never_taken_for_whole(hub: Hub, make: Make) -> None:
    settings = make("acme/reader")
    hub.fails_at = "weights/1.safetensors"
    with pytest.raises(PullFailed, match=r"1 of 2 files are missing, weights/1\.safetensors among them"):
        pull_weights(settings, "reader")
    assert not (settings.home / "models" / "reader").exists()

    hub.fails_at = None
    assert content(pull_weights(settings, "reader")) == hub.files
    assert hub.sent == ["config.json", "weights/1.safetensors"]
    assert not (settings.home / "models" / ".partial" / "reader").exists()


def test_a_local_path_is_used_as_it_is(tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert pull_weights(make(str(tmp_path / "mine")), "reader") == tmp_path / "mine"
    assert "already" in capsys.readouterr().err


def test_a_local_path_that_is_not_there_is_not_looked_for_on_the_hub(hub: Hub, tmp_path: Path, make: Make) -> None:
    with pytest.raises(PullFailed, match="is no directory"):
        pull_weights(make(str(tmp_path / "mine")), "reader")


def test_a_model_of_an_engine_without_weights_is_refused(make: Make) -> None:
    with pytest.raises(NoWeightsNeeded, match="engine tesseract") as caught:
        pull_weights(make("acme/reader"), "tesseract")
    assert caught.value.code == "no_weights_needed"


def test_an_unknown_model_is_refused(make: Make) -> None:
    with pytest.raises(ModelNotFound):
        pull_weights(make("acme/reader"), "writer")


def test_without_the_extra_the_error_says_what_to_type(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # the import system's way to say «not there»
    with pytest.raises(GpuExtraMissing, match=r"\./quickstart\.sh") as caught:
        pull_weights(make("acme/reader"), "reader")
    assert caught.value.code == "gpu_extra_missing"


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (RepositoryNotFoundError("404"), "no such repository"),
        (GatedRepoError("403"), "grant access"),
        (LocalEntryNotFoundError("An error happened"), "cannot be reached"),
        (httpx.ConnectError("refused"), "cannot be reached"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (HfHubHTTPError("500 Server Error for url\nInternal Error"), "500 Server Error for url"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("Repo id must be in the form 'namespace/name'."), "Repo id must be"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(hub: Hub, make: Make, refusal: Exception, reason: str) -> None:
    hub.refusal = refusal
    with pytest.raises(PullFailed, match=reason) as caught:
        pull_weights(make("acme/reader"), "reader")
    assert caught.value.code == "pull_failed"
    assert "\n" not in caught.value.message


def test_two_processes_do_not_pull_one_model_at_once(hub: Hub, make: Make) -> None:
    settings = make("acme/reader")
    partial = settings.home / "models" / ".partial" / "reader"
    partial.mkdir(parents=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(PullFailed, match="Another process"):
            pull_weights(settings, "reader")
    finally:
        os.close(descriptor)
    assert hub.sent == []

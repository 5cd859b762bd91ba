from collections.abc import Callable
from pathlib import Path

import pytest

from config import ConfigError, Settings, load_settings

Load = Callable[..., Settings]
Refusal = Callable[..., list[str]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Write the text to config.yaml in an empty working directory and load it with these variables."""
    monkeypatch.chdir(tmp_path)

    def _load(text: str, **environ: str) -> Settings:
        file = tmp_path / "config.yaml"
        file.write_text(text, encoding="utf-8")
        return load_settings(file, environ)

    return _load


@pytest.fixture
def refusal(load: Load) -> Refusal:
    """The problems that loading the text reports."""

    def _refusal(text: str, **environ: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, **environ)
        problems = caught.value.details["problems"]
        assert isinstance(problems, list)
        assert caught.value.message == "\n".join(problems)
        return problems

    return _refusal

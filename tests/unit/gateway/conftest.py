"""Settings as the checks of `roundhouse doctor` are given them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from config import Settings, load_settings

CONFIG = "models: {tesseract: {task: ocr, engine: tesseract}}\n"
Make = Callable[..., Settings]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def _make(config: str = CONFIG, **environ: str) -> Settings:
        (tmp_path / "config.yaml").write_text(config)
        return load_settings(tmp_path / "config.yaml", {"ROUNDHOUSE_HOME": str(tmp_path / "home"), **environ})

    return _make

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest

Offspring: TypeAlias = Callable[[], list[psutil.Process]]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only place for temporary files; each test must leave it empty."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    assert names(directory) == []


@pytest.fixture(autouse=True)
def offspring() -> Iterator[Offspring]:
    """The living processes that the test has started, and their own; none may outlive it."""
    others = set(psutil.Process().children(recursive=True))

    def started() -> list[psutil.Process]:
        return [process for process in psutil.Process().children(recursive=True) if process not in others]

    yield started
    assert started() == []

"""The state directory: nobody but its owner has business in it."""

from pathlib import Path


def private_directory(home: Path, name: str) -> Path:
    """``home/name``, made with the home itself where they are not there yet, each for its owner alone."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = home / name
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory

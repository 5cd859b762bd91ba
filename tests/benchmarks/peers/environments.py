"""A virtual environment for each set of peers that can live together, made from an extra of pyproject.toml.

They ask for different releases of the Redis client, so one environment cannot have them all.
"""

import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent.parent
PYPROJECT = ROOT / "pyproject.toml"


def cache() -> Path:
    """What is installed for benchmarks is kept here from run to run."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "roundhouse-benchmarks"


def environment(extra: str) -> Path:
    """The ``bin`` of the environment with ``extra`` in it; made anew when the extra has changed."""
    wanted: list[str] = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"][extra]
    name = hashlib.sha256(repr((sys.version_info[:2], sorted(wanted))).encode()).hexdigest()[:12]
    place = cache() / f"{extra}-{name}"
    done = place / "complete"
    if not done.exists():
        print(f"installing {', '.join(wanted)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        subprocess.run([place / "bin/python", "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.touch()
    return place / "bin"


def node_modules(package: Path) -> Path:
    """A directory with the node modules that ``package`` (a package.json) asks for."""
    name = hashlib.sha256(package.read_bytes()).hexdigest()[:12]
    place = cache() / f"node-{name}"
    done = place / "complete"
    if not done.exists():
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_bytes(package.read_bytes())
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=place, check=True)
        done.touch()
    return place / "node_modules"

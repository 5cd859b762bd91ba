"""What ``roundhouse doctor`` finds: a verdict, and what to type about it."""

import os
import shutil
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]
# What a machine may be there for alone.
Service = Literal["gateway", "worker"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``message`` is one sentence; ``hint`` says what to type where something is amiss."""

    level: Level
    name: str
    message: str
    hint: str | None = None


def install(*packages: str) -> str:
    if shutil.which("apt-get") is None:
        return f"Install what Debian calls {' and '.join(packages)} by your system's package manager."
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install {' '.join(packages)}"


def first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else "it says nothing"

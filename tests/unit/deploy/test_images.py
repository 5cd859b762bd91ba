"""The Dockerfiles: who runs what in them, and what can come into them. They are built by hand, see deploy/README.md."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from gateway.cli import main

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
# File, and the stages in it that become images.
IMAGES = [("Dockerfile.gateway", "worker"), ("Dockerfile.gateway", "gateway"), ("Dockerfile.worker", "")]

Instruction = tuple[str, str]


def instructions(file: str) -> list[Instruction]:
    text = re.sub(r"\\\n(\s*#.*\n)*", " ", (DEPLOY / file).read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def stages(file: str) -> dict[str, list[Instruction]]:
    """Each with what it inherits from the stage that it begins from."""
    found: dict[str, list[Instruction]] = {}
    name = ""
    for instruction in instructions(file):
        if instruction[0] == "FROM":
            base, _, name = instruction[1].partition(" AS ")
            found[name] = list(found.get(base, []))
        elif name or found:
            found[name].append(instruction)
    return found


def last(stage: list[Instruction], word: str) -> str:
    return next(value for key, value in reversed(stage) if key == word)


@pytest.mark.parametrize(("file", "stage"), IMAGES)
def test_an_image_runs_as_nobody_in_particular_under_an_init(file: str, stage: str) -> None:
    built = stages(file)[stage]
    assert last(built, "USER") == "10001:10001"
    assert json.loads(last(built, "ENTRYPOINT")) == ["tini", "--", "roundhouse"]


@pytest.mark.parametrize(("file", "stage"), IMAGES)
def test_what_an_image_runs_is_a_command_of_roundhouse(file: str, stage: str) -> None:
    (command,) = json.loads(last(stages(file)[stage], "CMD"))
    assert command in main.commands


@pytest.mark.parametrize(("file", "stage"), IMAGES)
def test_an_image_looks_after_its_own_health(file: str, stage: str) -> None:
    check = json.loads(last(stages(file)[stage], "HEALTHCHECK").partition("CMD ")[2])
    assert check[:2] == ["python", "/opt/roundhouse/deploy/health.py"]
    assert check[2:] == [json.loads(last(stages(file)[stage], "CMD"))[0]]


def test_the_gateway_is_what_is_built_when_no_target_is_named() -> None:
    assert list(stages("Dockerfile.gateway"))[-1] == "gateway"
    assert ("ENV", "SERVER_HOST=0.0.0.0") in stages("Dockerfile.gateway")["gateway"]


@pytest.mark.parametrize("file", ["Dockerfile.gateway", "Dockerfile.worker"])
def test_every_worker_can_draw_the_pages_of_a_pdf(file: str) -> None:
    (worker,) = [built for built in stages(file).values() if ("CMD", '["worker"]') in built]
    assert any(key == "RUN" and "poppler-utils" in value.split() for key, value in worker)


@pytest.mark.parametrize(("file", "stage"), IMAGES)
def test_everybody_may_read_what_is_copied_out_of_the_repository(file: str, stage: str) -> None:
    built = stages(file)[stage]
    copies = [n for n, (key, value) in enumerate(built) if key == "COPY" and "--from" not in value]
    (opening,) = [n for n, (key, value) in enumerate(built) if key == "RUN" and value.startswith("chmod -R a+rX ")]
    targets = {built[n][1].split()[-1] for n in copies}
    assert set(built[opening][1].split()[3:]) == {target.rpartition("/")[0] for target in targets}
    assert opening > max(copies)


def test_the_gateway_has_no_gpu_code() -> None:
    text = " ".join(f"{key} {value}" for key, value in instructions("Dockerfile.gateway"))
    assert "requirements-gpu" not in text
    assert "cuda" not in text
    assert not re.search(r"^(torch|vllm|transformers)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize("file", ["Dockerfile.gateway", "Dockerfile.worker"])
def test_every_package_of_python_is_installed_by_its_hash(file: str) -> None:
    installs = [value for key, value in instructions(file) if key == "RUN" and "pip install" in value]
    assert len(installs) == 2
    assert "--require-hashes -r requirements" in installs[0]
    assert "--no-build-isolation --no-deps ." in installs[1]


@pytest.mark.parametrize("file", ["Dockerfile.gateway", "Dockerfile.worker"])
def test_no_secret_is_in_a_layer(file: str) -> None:
    for key, value in instructions(file):
        if key in ("ENV", "ARG"):
            assert not re.search("SECRET|PASSWORD|TOKEN|MONGODB_URI", value)
        if key in ("COPY", "ADD"):
            assert not value.startswith((". ", "deploy "))


@pytest.mark.parametrize("file", ["Dockerfile.gateway", "Dockerfile.worker"])
def test_what_is_copied_is_there_and_nothing_else_is_sent_to_the_builder(file: str) -> None:
    first, *allowed = [
        line
        for line in (DEPLOY / f"{file}.dockerignore").read_text().splitlines()
        if line and not line.startswith(("#", "**/"))
    ]
    assert first == "*"
    named = {line.removeprefix("!") for line in allowed}
    copied = {
        source
        for key, value in instructions(file)
        if key == "COPY" and "--from" not in value
        for source in value.split()[:-1]
    }
    assert named == copied
    assert all((ROOT / source).exists() for source in copied)
    assert not any(fnmatch(secret, pattern) for secret in (".env", "deploy/.env", ".roundhouse/x") for pattern in named)

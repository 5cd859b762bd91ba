import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from config import Settings
from gateway.commands import machine_check
from gateway.commands.finding import Finding
from tests.unit.gateway.conftest import Make


def test_an_old_python_and_another_system_are_errors() -> None:
    assert machine_check.python_version((3, 11)).level == "ok"
    assert machine_check.python_version((3, 10)).level == "error"
    assert machine_check.operating_system("Linux").level == "ok"
    assert machine_check.operating_system("Darwin").level == "error"


def test_tools_that_no_model_needs_are_only_warned_of(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = make("models: {s: {task: chat, engine: simulator}}")
    assert [finding.level for finding in machine_check.document_tools(settings)] == ["warning", "warning"]


@pytest.fixture
def tessdata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory in which Tesseract looks for its languages."""
    directory = tmp_path / "tessdata"
    directory.mkdir()
    monkeypatch.setenv("TESSDATA_PREFIX", str(directory))
    return directory


def tesseract(settings: Settings) -> Finding:
    return next(finding for finding in machine_check.document_tools(settings) if finding.name == "tesseract")


def test_a_tesseract_without_languages_is_an_error(make: Make, tessdata: Path) -> None:
    finding = tesseract(make())
    assert finding.level == "error"
    assert "lacks the language eng" in finding.message
    assert "apt-get install tesseract-ocr-eng" in (finding.hint or "") or shutil.which("apt-get") is None


def test_a_tesseract_without_osd_reads_but_is_warned_of(make: Make, tessdata: Path) -> None:
    (tessdata / "eng.traineddata").touch()
    finding = tesseract(make())
    assert finding.level == "warning"
    assert "reads eng, but" in finding.message
    assert "tesseract-ocr-osd" in (finding.hint or "")


def test_a_language_of_the_configuration_that_is_not_installed_is_an_error(make: Make, tessdata: Path) -> None:
    for name in ("eng", "osd"):
        (tessdata / f"{name}.traineddata").touch()
    assert tesseract(make()).level == "ok"
    finding = tesseract(make("models: {t: {task: ocr, engine: tesseract, languages: [eng, chi_sim]}}"))
    assert finding.level == "error"
    assert "lacks the language chi_sim" in finding.message
    assert "tesseract-ocr-chi-sim" in (finding.hint or "")


def test_gpus_are_named_and_counted() -> None:
    listing = "".join(
        f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: GPU-0{n}c1d2e3-0000-0000-0000-000000000000)\n"
        "  MIG 1g.10gb     Device  0: (UUID: MIG-00000000-0000-0000-0000-000000000000)\n"
        for n in range(2)
    )
    finding = machine_check.gpu_finding((0, listing + "GPU 2: NVIDIA T4 (UUID: GPU-1)\n"))
    assert (finding.level, finding.message) == ("ok", "GPUs: 2 NVIDIA H100 80GB HBM3, 1 NVIDIA T4.")


def test_a_driver_that_fails_is_warned_of() -> None:
    words = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    finding = machine_check.gpu_finding((9, f"{words} Make sure\n"))
    assert finding.level == "warning"
    assert words in finding.message


@pytest.mark.parametrize(
    "entry",
    [
        "{task: ocr, engine: vllm}",
        "{task: ocr, engine: rapidocr}",
        "{task: ocr, engine: openai, base_url: 'http://127.0.0.1:1/v1'}",
    ],
)
def test_every_model_that_reads_documents_needs_poppler_and_only_tesseracts_need_tesseract(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {finding.name: finding.level for finding in machine_check.document_tools(make(f"models: {{m: {entry}}}"))}
    assert found == {"tesseract": "warning", "poppler": "error"}


def program(directory: Path, name: str, *lines: str) -> None:
    (directory / name).write_text("\n".join(("#!/bin/sh", *lines)))
    (directory / name).chmod(0o755)


@pytest.fixture
def bin_of_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on the path of a machine with a GPU, and without Python's headers."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program(directory, "nvidia-smi", "echo 'GPU 0: NVIDIA T4 (UUID: GPU-1)'")
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return directory


VLLM = "models: {v: {task: chat, engine: vllm}}"


def test_what_vllm_compiles_with_is_warned_of_where_it_lacks(make: Make, tmp_path: Path, bin_of_gpus: Path) -> None:
    _, finding = machine_check.gpus(make(VLLM))
    assert (finding.level, finding.name) == ("warning", "compiler")
    assert "lacks a C compiler and Python's headers" in finding.message
    assert "gcc" in (finding.hint or "")
    assert "-dev" in (finding.hint or "")
    program(bin_of_gpus, "gcc")
    _, finding = machine_check.gpus(make(VLLM))
    assert "lacks Python's headers" in finding.message
    (tmp_path / "Python.h").touch()
    assert [finding.level for finding in machine_check.gpus(make(VLLM))] == ["ok", "ok"]


def test_only_vllm_on_gpus_compiles_and_only_with_the_headers_of_its_own_python(make: Make, bin_of_gpus: Path) -> None:
    assert [finding.name for finding in machine_check.gpus(make())] == ["gpu"]
    _, finding = machine_check.gpus(make(VLLM.replace("vllm", "vllm, python: /opt/vllm/bin/python")))
    assert "headers" not in finding.message
    (bin_of_gpus / "nvidia-smi").unlink()
    assert [finding.name for finding in machine_check.gpus(make(VLLM))] == ["gpu"]


def test_a_program_that_hangs_has_failed_also_where_nothing_can_kill_it(
    make: Make, bin_of_gpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging: list[subprocess.Popen[str]] = []
    program(bin_of_gpus, "nvidia-smi", "exec /bin/sleep 30")
    monkeypatch.setattr(machine_check, "TOOL_PATIENCE", 0.2)
    # As it is with one that waits in the kernel for a driver.
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: hanging.append(process))
    begun = time.monotonic()
    (finding,) = machine_check.gpus(make())
    assert time.monotonic() - begun < 15
    assert finding.level == "warning"
    assert "no answer within" in finding.message
    for process in hanging:
        process.terminate()
        process.communicate()

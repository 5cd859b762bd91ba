"""The machine: Python, the system, and the programs that are run."""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from config import Settings, TesseractSettings, VllmSettings
from gateway.commands.finding import Finding, Level, first_line, install

OLDEST_PYTHON = (3, 11)
# Seconds.
TOOL_PATIENCE = 10.0
_LAST_WORDS = 1.0
_OSD = "osd"


def python_version(version: tuple[int, int]) -> Finding:
    shown, oldest = ".".join(map(str, version)), ".".join(map(str, OLDEST_PYTHON))
    if version < OLDEST_PYTHON:
        hint = f"Install Python {oldest} or newer, delete .venv and run ./quickstart.sh again."
        return Finding("error", "python", f"Python {shown} is too old, {oldest} is needed.", hint)
    return Finding("ok", "python", f"Python {shown}.")


def operating_system(system: str) -> Finding:
    if system != "Linux":
        hint = "Run it on Linux: in a container, a virtual machine, or WSL 2."
        return Finding("error", "platform", f"Roundhouse runs on Linux, and this is {system or 'unknown'}.", hint)
    return Finding("ok", "platform", f"Linux {platform.release()} on {platform.machine()}.")


def document_tools(settings: Settings | None) -> Iterator[Finding]:
    """Tesseract and poppler; errors where a model of the configuration needs them."""
    readers = [] if settings is None else [entry for entry in settings.models.values() if entry.task == "ocr"]
    tesseracts = [entry for entry in readers if isinstance(entry, TesseractSettings)]
    languages = {language for entry in tesseracts for language in entry.languages or ()}
    yield _tesseract(languages, "error" if tesseracts or settings is None else "warning")
    yield _poppler("error" if readers or settings is None else "warning")


def _tesseract(needed: set[str], lacking: Level) -> Finding:
    version, listed = _answer("tesseract", "--version"), _answer("tesseract", "--list-langs")
    if version is None or listed is None:
        return Finding(
            lacking, "tesseract", "Tesseract is not installed.", install("tesseract-ocr", "tesseract-ocr-osd")
        )
    if listed.returncode:
        reason = first_line(listed.stderr or listed.stdout)
        return Finding(lacking, "tesseract", f"Tesseract does not work: {reason}.", install("tesseract-ocr"))
    name = first_line(version.stdout or version.stderr).capitalize()
    return languages_finding(name, installed_languages(listed.stdout), needed, lacking)


def installed_languages(listing: str) -> list[str]:
    """The names in what ``tesseract --list-langs`` prints: below a heading, one on each line."""
    return [line.strip() for line in listing.splitlines()[1:] if line.strip()]


def languages_finding(tesseract: str, installed: Sequence[str], needed: set[str], lacking: Level) -> Finding:
    reads = [language for language in installed if language not in (_OSD, "equ")]
    missing = sorted(needed - set(installed)) or ([] if reads else ["eng"])
    if missing:
        message = f"{tesseract} lacks the language {', '.join(missing)}."
        return Finding(lacking, "tesseract", message, install(*map(_package, missing)))
    shown = f"{', '.join(reads[:12])}{' and more' if len(reads) > 12 else ''}"
    if _OSD not in installed:
        message = f"{tesseract} reads {shown}, but cannot detect scripts and turned pages, for osd is missing."
        return Finding("warning", "tesseract", message, install("tesseract-ocr-osd"))
    return Finding("ok", "tesseract", f"{tesseract} reads {shown}; `tesseract-ocr-LANGUAGE` packages add languages.")


def _package(language: str) -> str:
    """Debian's package with a language; those of whole scripts (script/Latin) are named by no rule."""
    return "tesseract-ocr-all" if "/" in language else f"tesseract-ocr-{language.lower().replace('_', '-')}"


def _poppler(lacking: Level) -> Finding:
    answer = _answer("pdftoppm", "-v")
    if answer is None or shutil.which("pdfinfo") is None:
        return Finding(
            lacking, "poppler", "Poppler, which draws PDF pages, is not installed.", install("poppler-utils")
        )
    version = re.search(r"version (\S+)", answer.stderr + answer.stdout)
    if version is None:
        reason = first_line(answer.stderr or answer.stdout)
        return Finding(lacking, "poppler", f"pdftoppm does not work: {reason}.", install("poppler-utils"))
    return Finding("ok", "poppler", f"Poppler {version[1]} draws PDF pages.")


def gpus(settings: Settings | None) -> Iterator[Finding]:
    """The GPUs and, where vLLM is to run on them, what it compiles with."""
    answer = _answer("nvidia-smi", "-L")
    yield gpu_finding(None if answer is None else (answer.returncode, answer.stdout + answer.stderr))
    models = {} if settings is None else settings.models
    engines = [entry for entry in models.values() if isinstance(entry, VllmSettings)]
    if answer is not None and engines:
        yield _compiler(engines)


def gpu_finding(answer: tuple[int, str] | None) -> Finding:
    """``answer``: exit status and output of ``nvidia-smi -L``; None where there is no such program."""
    if answer is None:
        return Finding("ok", "gpu", "There is no NVIDIA GPU, so engines that run on the CPU are used.")
    status, output = answer
    names = re.findall(r"^GPU \d+: (.+?)(?: \(UUID: .*)?$", output, re.MULTILINE)
    if status or not names:
        message = f"nvidia-smi finds no GPU: {first_line(output)}."
        return Finding("warning", "gpu", message, "Type `nvidia-smi` and mend the driver, often by a reboot.")
    kinds = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
    return Finding("ok", "gpu", f"GPUs: {kinds}.")


def _compiler(engines: Sequence[VllmSettings]) -> Finding:
    """Triton, which vLLM compiles with at its start, looks for these."""
    lacking = {}
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        lacking["a C compiler"] = "gcc"
    # Where another interpreter has its headers, only that one knows.
    ours = any(entry.python is None for entry in engines)
    if ours and not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        lacking["Python's headers"] = f"python{'.'.join(map(str, sys.version_info[:2]))}-dev"
    if lacking:
        message = f"vLLM compiles when it starts on a GPU, and lacks {' and '.join(lacking)}."
        return Finding("warning", "compiler", message, install(*lacking.values()))
    return Finding("ok", "compiler", "There is what vLLM compiles with.")


def _answer(*command: str) -> subprocess.CompletedProcess[str] | None:
    """What a program says, or None where it is not installed. A program that hangs has failed."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace"
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return subprocess.CompletedProcess(command, 126, "", f"{error}")
    try:
        output, errors = process.communicate(timeout=TOOL_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        # One that waits in the kernel, for a GPU that hangs, ends only with that, and is left behind.
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_LAST_WORDS)
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {TOOL_PATIENCE:.0f} s")
    return subprocess.CompletedProcess(command, process.returncode, output, errors)

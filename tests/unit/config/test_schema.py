import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config import load_settings
from config.__main__ import main
from config.schema import SCHEMA_FILE, schema_text

ROOT = Path(__file__).resolve().parents[3]


def test_the_schema_in_the_repository_is_current() -> None:
    assert SCHEMA_FILE.read_text() == schema_text(), "run: python -m config > config/schema.json"


def test_the_schema_describes_every_key() -> None:
    schema: dict[str, Any] = json.loads(schema_text())
    for section in schema["$defs"].values():
        assert section["additionalProperties"] is False
        assert all("description" in value or "$ref" in value for value in section["properties"].values())


def test_the_schema_lets_a_reference_stand_for_a_number() -> None:
    schema: dict[str, Any] = json.loads(schema_text())
    port = schema["$defs"]["ServerSettings"]["properties"]["port"]
    assert port["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 65535}
    assert "env:" in port["anyOf"][1]["pattern"]
    assert port["default"] == 8080


def test_the_module_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == schema_text()


def test_check_says_ok_or_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("server: {port: 1}\n")
    command = [sys.executable, "-m", "config", "check", str(file)]
    environ = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
    file.write_text("a: 1\nb: 2\n")
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{file}:1: a: unknown key\n{file}:2: b: unknown key\n"


def test_the_shipped_file_is_good_and_says_what_the_code_does_by_default() -> None:
    settings = load_settings(ROOT / "config.yaml", {})
    assert {name: (m.task, m.engine) for name, m in settings.models.items()} == {
        "tesseract": ("ocr", "tesseract"),
        "deepseek-ocr": ("ocr", "vllm"),
        "simulator": ("chat", "simulator"),
    }
    assert settings.defaults.ocr == ["deepseek-ocr", "tesseract"]
    assert settings.defaults.chat == ["simulator"]


def uncommented(text: str) -> str:
    """The shipped file with every example switched on."""
    lines = text.partition("\nserver:\n")[2].splitlines()
    kept = []
    for line in lines:
        bare = line.lstrip()
        is_key = line.startswith("  ") and bare.startswith("# ") and not bare[2:3].isupper()
        kept.append(line.replace("# ", "", 1) if is_key else line)
    return "server:\n" + "\n".join(kept) + "\n"


def test_what_the_shipped_file_shows_in_comments_is_good_too(tmp_path: Path) -> None:
    shipped = load_settings(ROOT / "config.yaml", {})
    file = tmp_path / "config.yaml"
    file.write_text(uncommented((ROOT / "config.yaml").read_text()))
    shown = load_settings(file, {"MONGO": "mongodb://h", "OPENAI_API_KEY": "k"})
    gpu_models = {"qwen3-4b", "gpt-oss-20b", "qwen3-14b", "qwen3-32b", "llama-70b", "qwen"}
    assert set(shown.models) == {*shipped.models, "openai", "llama-elsewhere", "rapidocr", *gpu_models}
    # The sections' comments claim to be the defaults.
    for section in ("server", "queue", "auth", "rate_limit", "history", "auto_switch"):
        assert getattr(shown, section) == getattr(shipped, section), section
    assert shown.models["simulator"] == shipped.models["simulator"]

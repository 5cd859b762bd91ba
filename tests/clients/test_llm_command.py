"""The command line ``llm``, as a process, which finds us in its list of further models."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.clients.conftest import Site

Llm = Callable[..., "subprocess.CompletedProcess[str]"]


def write_models(directory: Path, url: str, key: str, *names: str, **more: object) -> None:
    """The files of a user of ``llm`` who has the models ``names``, as its documentation says."""
    directory.mkdir()
    models = [
        {"model_id": f"my-{name}", "model_name": name, "api_base": url, "api_key_name": "mine", **more}
        for name in names
    ]
    (directory / "extra-openai-models.yaml").write_text(yaml.safe_dump(models))
    (directory / "keys.json").write_text(f'{{"mine": "{key}"}}')


def run_llm(home: Path, *words: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """``llm WORDS`` of a user whose home is ``home``; whatever is not on this machine is out of its reach."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI", "LLM_"))}
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    environ = kept | nowhere | {"NO_PROXY": "127.0.0.1", "HOME": str(home), "LLM_USER_PATH": str(home / "llm")}
    command = [Path(sys.executable).with_name("llm"), *words]
    return subprocess.run(command, env=environ, input=text, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def llm(site: Site, tmp_path: Path) -> Llm:
    write_models(tmp_path / "llm", site.url, site.key, "sim", "gpt-none")
    return lambda *words, **more: run_llm(tmp_path, *words, **more)


def test_a_prompt_is_answered_as_a_stream_and_whole(llm: Llm) -> None:
    streamed = llm("-m", "my-sim", "hello there")
    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stdout.startswith("[simulator] ")
    whole = llm("-m", "my-sim", "--no-stream", "hello there")
    assert whole.stdout == streamed.stdout


def test_options_and_a_system_prompt_are_taken_and_a_conversation_goes_on(llm: Llm) -> None:
    options = ("-o", "max_tokens", "3", "-o", "temperature", "0.5", "-o", "seed", "1", "-o", "stop", "x")
    first = llm("-m", "my-sim", "-s", "You are brief.", *options, text="hello")
    assert len(first.stdout.split()) == 4, first.stderr
    second = llm("-c", "and on")
    assert second.stdout.startswith("[simulator] "), second.stderr


def test_a_model_that_is_not_there_is_told(llm: Llm) -> None:
    failed = llm("-m", "my-gpt-none", "hello")
    assert failed.returncode == 1
    assert "There is no model 'gpt-none' in the configuration." in failed.stderr

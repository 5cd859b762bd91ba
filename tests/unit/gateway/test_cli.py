"""What users see of `roundhouse` where something is wrong around it: one line, and no traceback."""

import os
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner, Result

from gateway import cli

# A byte that is no UTF-8, as Python has it in arguments, names of files and variables.
BROKEN = os.fsdecode(b"\xff")
PASSWORD = "correct-horse-battery"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no gateway runs; it has a document."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("server: {port: 9}\n")
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-1.7\n")
    monkeypatch.setenv("ROUNDHOUSE_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("ROUNDHOUSE_HOME", str(tmp_path / "state"))
    for name in ("URL", "TOKEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"ROUNDHOUSE_{name}", raising=False)
    monkeypatch.delenv("ADMIN_PASSWORD", raising=False)


def roundhouse(*command: str, **environ: str) -> Result:
    return CliRunner().invoke(cli.main, command, env=environ)


def failed(result: Result, status: int = 1) -> str:
    """Its last line, which alone says what is wrong."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status
    lines = result.stderr.splitlines()
    # Before the line of a usage error, click says how to ask for help.
    assert status == 2 or len(lines) == 1
    return lines[-1]


@pytest.mark.parametrize("token", [None, "t"])
@pytest.mark.parametrize(
    "url",
    [
        "localhost:8080",
        "http://",
        "http://[::1",
        "http://localhost:port",
        "http://localhost:99999",
        "http://one..two",
        f"http://{BROKEN}",
        f"http://one/{BROKEN}",
        "http://one,",
        ",",
    ],
)
def test_what_is_no_url_is_said_with_what_one_is_like(url: str, token: str | None) -> None:
    told = {"ROUNDHOUSE_PASSWORD": "p"} if token is None else {"ROUNDHOUSE_TOKEN": token}
    said = failed(roundhouse("jobs", ROUNDHOUSE_URL=url, **told))
    assert "ROUNDHOUSE_URL" in said
    assert "http://localhost:8080" in said
    assert said.endswith("(config_invalid)")


def test_a_url_that_is_empty_says_as_little_as_none() -> None:
    for told in ({"ROUNDHOUSE_TOKEN": "t"}, {"ROUNDHOUSE_TOKEN": ""}, {"ADMIN_PASSWORD": PASSWORD}):
        said = failed(roundhouse("jobs", ROUNDHOUSE_URL="", **told))
        assert "No gateway answers at http://127.0.0.1:9 " in said


@pytest.mark.parametrize("token", ["tökén", "two\nlines", BROKEN])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token: str) -> None:
    for url in ("", "http://127.0.0.1:9"):
        said = failed(roundhouse("jobs", ROUNDHOUSE_URL=url, ROUNDHOUSE_TOKEN=token))
        assert "ROUNDHOUSE_TOKEN" in said
        assert token not in said


@pytest.mark.parametrize("name", ["ROUNDHOUSE_USER", "ROUNDHOUSE_PASSWORD"])
def test_names_and_passwords_in_another_encoding_are_refused(name: str) -> None:
    told = {"ROUNDHOUSE_USER": "u", "ROUNDHOUSE_PASSWORD": "p"} | {name: BROKEN}
    said = failed(roundhouse("jobs", ROUNDHOUSE_URL="http://127.0.0.1:9", **told))
    assert f"{name} is not in UTF-8" in said


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (("submit", "scan.pdf", "--term", BROKEN), "--term"),
        (("submit", "scan.pdf", "--client-id", BROKEN), "--client-id"),
        (("chat", "simulator", "--system", BROKEN), "--system"),
        (("queue", BROKEN), "MODEL"),
        (("jobs", "--model", BROKEN), "--model"),
        (("models", "start", BROKEN), "NAME"),
    ],
)
def test_arguments_in_another_encoding_are_refused(command: tuple[str, ...], where: str) -> None:
    said = failed(roundhouse(*command, ADMIN_PASSWORD=PASSWORD), 2)
    assert f"'{where}'" in said
    assert "UTF-8" in said


def test_a_document_may_have_any_name(tmp_path: Path) -> None:
    name = f"B{BROKEN}ro.pdf"
    (tmp_path / name).write_bytes(b"%PDF-1.7\n")
    assert "No gateway answers" in failed(roundhouse("submit", name, ROUNDHOUSE_TOKEN="t"))


def test_a_password_of_another_user_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    # Root, as whom tests may run, could read any file.
    opened = Path.open

    def denied(path: Path, *args: Any, **options: Any) -> IO[Any]:
        if path.name == "admin_password":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", denied)
    said = failed(roundhouse("jobs"))
    assert "Only its owner may read" in said
    assert "ROUNDHOUSE_USER and ROUNDHOUSE_PASSWORD" in said


def test_trouble_with_a_file_is_one_line_and_a_broken_pipe_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: OSError) -> Result:
        def client() -> None:
            raise error

        monkeypatch.setattr(cli, "client", client)
        return roundhouse("jobs")

    full = OSError(28, "No space left on device", "out.txt")
    assert failed(fails(full)) == "roundhouse: out.txt: No space left on device"
    assert failed(fails(OSError(5, "Input/output error"))) == "roundhouse: Input/output error"
    assert failed(fails(TimeoutError())) == "roundhouse: TimeoutError"
    broken = fails(BrokenPipeError(32, "Broken pipe"))
    assert (broken.exit_code, broken.stderr) == (1, "")

"""What no child could start with ends the command that would start them, in one line."""

from pathlib import Path

import pytest

from tests.system import System

URI = "mongodb://ann:hun/ter2@host"


@pytest.mark.parametrize("command", ["gateway", "up", "worker", "user add bob"])
def test_a_database_uri_that_cannot_be_used_ends_each_command_in_one_line(tmp_path: Path, command: str) -> None:
    with System(tmp_path, URI, "none") as system:
        done = system.run(*command.split())
    assert done.returncode == 1
    *before, line = done.stderr.splitlines()
    assert before == (
        [f"Roundhouse starts on {system.url}; stop it by Ctrl-C (twice to hurry)."] if command == "up" else []
    )
    assert "MONGODB_URI cannot be used: " in line
    assert "hun" not in line


@pytest.mark.parametrize("command", ["gateway", "up"])
def test_a_kept_secret_that_will_not_do_ends_the_gateways_in_one_line(tmp_path: Path, command: str) -> None:
    with System(tmp_path, "mongodb://127.0.0.1:1/", "none") as system:
        del system.environ["JWT_SECRET"]
        kept = tmp_path / "state" / "secrets" / "jwt_secret"
        kept.parent.mkdir(parents=True)
        kept.touch(mode=0o600)
        done = system.run(command)
    assert done.returncode == 1
    assert f"{kept} is empty; delete it" in done.stderr.splitlines()[-1]

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
@pytest.mark.parametrize(
    ("name", "secret", "fault"),
    [("jwt_secret", "", "is empty; delete it"), ("admin_password", "abc", "is shorter than 8 characters; delete it")],
)
def test_a_kept_secret_that_will_not_do_ends_the_gateways_in_one_line(
    tmp_path: Path, command: str, name: str, secret: str, fault: str
) -> None:
    with System(tmp_path, "mongodb://127.0.0.1:1/", "none") as system:
        del system.environ[name.upper()]
        kept = tmp_path / "state" / "secrets" / name
        kept.parent.mkdir(parents=True)
        kept.touch(mode=0o600)
        kept.write_text(secret)
        done = system.run(command)
    assert done.returncode == 1
    assert f"{kept} {fault}" in done.stderr.splitlines()[-1]


def test_an_embedded_mongod_that_cannot_be_started_ends_the_gateways_in_one_line(tmp_path: Path) -> None:
    with System(tmp_path, None, "none") as system:
        damaged = tmp_path / "state" / "mongod" / "mongod.json"
        damaged.parent.mkdir(parents=True)
        damaged.write_text("{")
        done = system.run("gateway")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{damaged} is damaged" in line


def test_a_database_that_is_away_is_told_of_in_short(tmp_path: Path) -> None:
    with System(tmp_path, "mongodb://127.0.0.1:1/", "none") as system:
        done = system.run("user", "add", "bob")
    assert done.returncode == 1
    assert done.stderr.startswith("roundhouse: The database does not answer: 127.0.0.1:1: [Errno 111] ")
    assert "Topology" not in done.stderr

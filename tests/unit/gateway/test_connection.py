"""Which gateway a command asks, and as whom."""

from pathlib import Path

import pytest

from config.errors import ConfigError
from gateway.commands.connection import access

OWN = "http://127.0.0.1:8099"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose gateway is at OWN, with the administrator's password kept there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("server: {port: 8099}\n")
    monkeypatch.setenv("ROUNDHOUSE_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("ROUNDHOUSE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("ADMIN_PASSWORD", "this machine's")
    for name in ("URL", "TOKEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"ROUNDHOUSE_{name}", raising=False)


@pytest.mark.parametrize("url", [None, "", OWN, f"{OWN}/"])
def test_this_machines_gateway_is_asked_as_its_administrator(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if url is not None:
        monkeypatch.setenv("ROUNDHOUSE_URL", url)
    found = access()
    assert (list(found.urls), found.username, found.password) == ([OWN], "admin", "this machine's")


@pytest.mark.parametrize("urls", ["https://elsewhere", f"{OWN},https://elsewhere", "http://127.0.0.1:8098"])
@pytest.mark.parametrize("user", [None, "ada"])
def test_no_other_gateway_is_told_this_machines_password(
    urls: str, user: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUNDHOUSE_URL", urls)
    if user is not None:
        monkeypatch.setenv("ROUNDHOUSE_USER", user)
    with pytest.raises(ConfigError, match="ROUNDHOUSE_TOKEN, or ROUNDHOUSE_USER and ROUNDHOUSE_PASSWORD"):
        access()


def test_another_gateway_is_asked_by_what_is_said_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDHOUSE_URL", "https://one, https://two/")
    monkeypatch.setenv("ROUNDHOUSE_PASSWORD", "theirs")
    found = access()
    assert (list(found.urls), found.username, found.password) == (["https://one", "https://two"], "admin", "theirs")
    monkeypatch.setenv("ROUNDHOUSE_USER", "ada")
    assert (access().username, access().password) == ("ada", "theirs")
    monkeypatch.setenv("ROUNDHOUSE_TOKEN", "t")
    assert access().token == "t"

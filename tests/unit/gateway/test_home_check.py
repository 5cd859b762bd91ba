import subprocess
from pathlib import Path

import pytest

from config import Settings
from gateway.commands import home_check
from gateway.commands.finding import Finding, Service
from tests.unit.gateway.conftest import Make


def directory(settings: Settings, only: Service | None = None) -> Finding:
    return next(home_check.state_directory(settings, only))


def test_a_state_directory_is_private(make: Make, tmp_path: Path) -> None:
    settings = make(ROUNDHOUSE_HOME=str(home := tmp_path / "state of mine"))
    home.mkdir(mode=0o700)
    assert directory(settings).level == "ok"
    home.chmod(0o755)
    finding = directory(settings)
    assert (finding.level, finding.hint) == ("warning", f"chmod 700 '{home}'")


def test_a_state_directory_that_cannot_be_is_an_error(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for home in (file, file / "home", Path("/proc/roundhouse")):
        findings = list(home_check.state_directory(make(ROUNDHOUSE_HOME=str(home)), None))
        assert [finding.level for finding in findings] == ["error"]
        assert "ROUNDHOUSE_HOME" in (findings[0].hint or "")


def test_little_room_is_warned_of_and_less_is_an_error(tmp_path: Path) -> None:
    sizes = {5 * 10**9: "ok", 5 * 10**9 - 1: "warning", 10**9: "warning", 10**9 - 1: "error", 0: "error"}
    assert {size: home_check.disk_finding(tmp_path, size).level for size in sizes} == sizes


def keep(settings: Settings, name: str, secret: bytes) -> Path:
    path = settings.home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(secret)
    path.chmod(0o600)
    return path


def test_secrets_that_others_may_read_are_an_error_that_the_hint_mends(make: Make) -> None:
    settings = make()
    assert home_check.secrets(settings, None).level == "ok"
    for name in ("secrets/jwt_secret", "secrets/admin_password", "mongod/mongod.json"):
        keep(settings, name, b"x" * 32).chmod(0o640)
    finding = home_check.secrets(settings, None)
    assert finding.level == "error"
    subprocess.run(["sh", "-c", finding.hint or ""], check=True)
    assert home_check.secrets(settings, None) == Finding("ok", "secrets", "All 3 are readable by their owner alone.")


@pytest.mark.parametrize(
    ("name", "secret", "fault"),
    [
        ("jwt_secret", b"\n", "is empty"),
        ("admin_password", b"", "is empty"),
        ("jwt_secret", b"x" * 31, "shorter than 32 bytes"),
        ("admin_password", b"admin", "shorter than 8 characters"),
        ("admin_password", "ü".encode() * 7, "shorter than 8 characters"),
        ("admin_password", b"x" * 1025, "longer than 1024 characters"),
        ("admin_password", b"\xff" * 32, "not in UTF-8"),
        ("jwt_secret", b"\xff" * 32, "not in UTF-8"),
    ],
)
def test_a_kept_secret_that_the_gateway_would_refuse_is_an_error_that_the_hint_mends(
    make: Make, name: str, secret: bytes, fault: str
) -> None:
    settings = make()
    path = keep(settings, f"secrets/{name}", secret)
    finding = home_check.secrets(settings, "gateway")
    assert finding.level == "error"
    assert str(path) in finding.message
    assert fault in finding.message
    assert home_check.secrets(settings, "worker").level == "ok"
    assert home_check.secrets(make(**{name.upper(): "correct-horse-battery-staple-correct"}), None).level == "ok"
    subprocess.run(["sh", "-c", finding.hint or ""], check=True)
    assert home_check.secrets(settings, None).level == "ok"


GIVEN = {"JWT_SECRET": "x" * 32, "ADMIN_PASSWORD": "correct-horse-battery"}
URI = {"MONGODB_URI": "mongodb://127.0.0.1:1/"}


def test_a_state_directory_that_nothing_has_to_be_kept_in_may_be_read_only(make: Make) -> None:
    def level(only: Service | None, environ: dict[str, str]) -> str:
        return directory(make(ROUNDHOUSE_HOME="/proc/roundhouse", **environ), only).level

    assert level(None, URI | GIVEN) == level("gateway", URI | GIVEN) == level("worker", URI) == "warning"
    assert level(None, GIVEN) == level("gateway", URI) == level("worker", {}) == "error"

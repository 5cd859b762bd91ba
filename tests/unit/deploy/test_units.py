"""The systemd units. `systemd-analyze verify` and `security` are run by hand, see deploy/README.md."""

import re
from pathlib import Path

import pytest

from config import load_settings
from gateway.cli import main
from gateway.supervisor import GRACE
from worker.worker import HAND_BACK, LAST_CLAIM, UNHEARD

ROOT = Path(__file__).parents[3]
UNITS = ROOT / "deploy" / "systemd"
DRAIN = load_settings(ROOT / "config.yaml", {}).queue.drain_timeout
SERVICES = ["gateway", "worker"]


def settings(unit: str) -> dict[str, list[str]]:
    """The values of each key of [Service], in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (UNITS / f"roundhouse-{unit}.service").read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("unit", SERVICES)
def test_the_main_process_alone_is_asked_to_end_and_has_time_to_drain(unit: str) -> None:
    found = settings(unit)
    assert found["KillMode"] == ["mixed"]
    # SIGTERM, systemd's default.
    assert "KillSignal" not in found
    most = {"gateway": DRAIN + GRACE, "worker": DRAIN + LAST_CLAIM + UNHEARD + HAND_BACK}
    assert float(found["TimeoutStopSec"][0]) > most[unit]


@pytest.mark.parametrize("unit", SERVICES)
def test_what_is_started_is_a_command_of_roundhouse(unit: str) -> None:
    program, command = settings(unit)["ExecStart"][0].split()
    assert program == "/opt/roundhouse/.venv/bin/roundhouse"
    assert command == unit
    assert command in main.commands


@pytest.mark.parametrize("unit", SERVICES)
def test_each_service_has_a_user_and_a_state_directory_of_its_own(unit: str) -> None:
    found = settings(unit)
    user = f"roundhouse-{unit}"
    assert found["User"] == found["Group"] == found["StateDirectory"] == [user]
    assert found["StateDirectoryMode"] == ["0700"]
    assert re.search(rf"^u {user} -", (UNITS / "roundhouse.sysusers").read_text(), re.MULTILINE)
    assert f"ROUNDHOUSE_HOME=/var/lib/{user}" in found["Environment"][0]
    assert found["EnvironmentFile"] == [f"/etc/roundhouse/{unit}.env"]


@pytest.mark.parametrize("unit", SERVICES)
def test_no_service_can_gain_rights_or_write_outside_its_own_directories(unit: str) -> None:
    found = settings(unit)
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["ProtectSystem"] == ["strict"]
    assert found["ProtectHome"] == ["yes"]
    assert found["SystemCallFilter"][0] == "@system-service"


def test_the_worker_can_use_its_gpus_and_compile() -> None:
    found = settings("worker")
    assert found["DevicePolicy"] == ["closed"]
    assert found["DeviceAllow"] == ["char-nvidia* rw"]
    assert any(line.startswith("PATH=/usr/local/cuda/bin:") for line in found["Environment"])
    assert found.keys().isdisjoint({"PrivateDevices", "PrivateUsers", "MemoryDenyWriteExecute"})
    assert {"PrivateDevices", "PrivateUsers", "MemoryDenyWriteExecute"} <= settings("gateway").keys()

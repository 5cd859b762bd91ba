"""compose.yaml keeps what deploy/README.md says of it. Its syntax is checked by `docker compose config`, by hand."""

import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from config import load_settings
from gateway.supervisor import GRACE
from worker.worker import HAND_BACK, LAST_CLAIM, UNHEARD

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LASTING = sorted(SERVICES.keys() - {"mongodb-init"})
OURS = ["gateway", "worker", "worker-gpu"]
# Without a value for each of these compose refuses the whole file, whichever service it is to start.
DEMANDED = set(re.findall(r"\$\{([A-Z_]+):\?", (DEPLOY / "compose.yaml").read_text()))
DRAIN = load_settings(ROOT / "config.yaml", {}).queue.drain_timeout


def seconds(value: str) -> float:
    return float(value.removesuffix("s"))


def interpolations(value: object) -> list[str]:
    return re.findall(r"\$\{([A-Z_]+)", str(value))


def test_the_services_are_those_that_the_readme_names() -> None:
    assert set(SERVICES) == {"mongodb", "mongodb-init", "gateway", "worker", "worker-gpu"}
    assert SERVICES["mongodb"]["image"] == "mongo:8"
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    assert [name for name in SERVICES if "profiles" in SERVICES[name]] == ["worker-gpu"]


@pytest.mark.parametrize("name", LASTING)
def test_every_service_that_lasts_is_restarted_and_has_a_health_check_in_exec_form(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    assert seconds(check["timeout"]) <= seconds(check["interval"])
    assert "start_period" in check


@pytest.mark.parametrize("name", LASTING)
def test_every_service_that_lasts_may_have_a_file_for_each_client(name: str) -> None:
    assert SERVICES[name]["ulimits"]["nofile"] >= 65536


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_service_may_do_more_than_it_has_to(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "cap_add" not in service
    assert "privileged" not in service


def test_only_the_gateway_is_published_and_that_on_loopback() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["gateway"]
    assert SERVICES["gateway"]["ports"] == ["${ROUNDHOUSE_ADDRESS:-127.0.0.1:8080}:8080"]
    assert SERVICES["mongodb"]["networks"] == ["database"]
    assert COMPOSE["networks"]["database"] == {"internal": True}


def test_what_is_told_to_stop_has_longer_than_its_drain_takes() -> None:
    # A gateway's supervisor kills its processes after that; a worker has handed everything back before.
    assert seconds(SERVICES["gateway"]["stop_grace_period"]) > DRAIN + GRACE
    for name in ("worker", "worker-gpu"):
        assert seconds(SERVICES[name]["stop_grace_period"]) > DRAIN + LAST_CLAIM + UNHEARD + HAND_BACK
    assert seconds(SERVICES["mongodb"]["stop_grace_period"]) >= 60


@pytest.mark.parametrize("name", OURS)
def test_nobody_starts_before_the_account_in_the_database_is_there(name: str) -> None:
    assert SERVICES[name]["depends_on"]["mongodb-init"] == {"condition": "service_completed_successfully"}


def test_the_account_is_made_over_mongods_own_loopback() -> None:
    once = SERVICES["mongodb-init"]
    assert once["network_mode"] == "service:mongodb"
    assert once["restart"] == "no"
    assert once["image"] == SERVICES["gateway"]["image"]
    assert once["environment"]["MONGODB_MEMBER"] == f"{SERVICES['mongodb']['hostname']}:27017"
    assert "@mongodb:27017/" in SERVICES["gateway"]["environment"]["MONGODB_URI"]


def test_each_service_gets_the_secrets_that_it_needs_and_no_others() -> None:
    given = {name: set(interpolations(service.get("environment", {}))) for name, service in SERVICES.items()}
    assert given == {
        "mongodb": set(),
        "mongodb-init": {"MONGODB_ROOT_PASSWORD", "MONGODB_PASSWORD"},
        "gateway": {"MONGODB_URI", "MONGODB_PASSWORD", "JWT_SECRET", "ADMIN_PASSWORD"},
        "worker": {"MONGODB_URI", "MONGODB_PASSWORD"},
        "worker-gpu": {"MONGODB_URI", "MONGODB_PASSWORD", "HF_TOKEN"},
    }


def test_gpus_shared_memory_and_models_are_the_gpu_workers_alone() -> None:
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", "all", ["gpu"])
    assert SERVICES["worker-gpu"]["shm_size"] == "8gb"
    assert "models:/var/lib/roundhouse/models" in SERVICES["worker-gpu"]["volumes"]
    assert not any("deploy" in SERVICES[name] for name in ("gateway", "worker", "mongodb"))


@pytest.mark.parametrize("name", OURS)
def test_records_of_processes_are_never_shared_between_containers(name: str) -> None:
    assert any(mount.startswith("/var/lib/roundhouse/run:") for mount in SERVICES[name]["tmpfs"])
    assert not any(volume.split(":")[1] == "/var/lib/roundhouse" for volume in SERVICES[name]["volumes"])


def test_every_volume_that_is_named_is_declared_and_every_file_that_is_mounted_is_there() -> None:
    sources = {volume.rpartition(":/")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    files = {source for source in sources if source.startswith(("./", "../", "$"))}
    assert sources - files == set(COMPOSE["volumes"])
    assert {"./mongod.sh", "${ROUNDHOUSE_CONFIG_FILE:-../config.yaml}"} == files
    assert (DEPLOY / "mongod.sh").is_file()
    for service in SERVICES.values():
        if build := service.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def new_env(file: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", DEPLOY / "new-env.sh", file], capture_output=True, text=True, timeout=30, check=False
    )


def test_the_secrets_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "env"
    made = new_env(file)
    assert (made.returncode, made.stdout) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    secrets = dict(line.split("=") for line in text.splitlines())
    assert set(secrets) == DEMANDED
    assert all(re.fullmatch("[0-9a-f]{64}", secret) for secret in secrets.values())
    assert len(set(secrets.values())) == len(secrets)
    again = new_env(file)
    assert again.returncode == 0
    assert "nothing is changed" in again.stderr
    assert file.read_text() == text


@pytest.mark.parametrize("end", ["\n", ""])
def test_secrets_are_added_to_what_is_there_already_and_change_none_of_it(tmp_path: Path, end: str) -> None:
    file = tmp_path / "env"
    mine = f"MONGODB_URI=mongodb://elsewhere\nMONGODB_PASSWORD=\nexport JWT_SECRET = mine{end}"
    file.write_text(mine)
    file.chmod(0o644)
    assert new_env(file).returncode == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert text.startswith(mine)
    added = text.removeprefix(mine).split()
    # JWT_SECRET is there; of two lines compose takes the last.
    assert {line.split("=")[0] for line in added} == DEMANDED - {"JWT_SECRET"}
    assert all(re.fullmatch("[A-Z_]+=[0-9a-f]{64}", line) for line in added)


@pytest.mark.parametrize(("value", "is_there"), [('""', False), ("''", False), ('"mine"', True), ("'mine'", True)])
def test_a_secret_in_quotes_is_there_where_there_is_something_in_them(
    tmp_path: Path, value: str, is_there: bool
) -> None:
    file = tmp_path / "env"
    file.write_text(mine := f"JWT_SECRET={value}\n")
    assert new_env(file).returncode == 0
    assert ("JWT_SECRET=" in file.read_text().removeprefix(mine)) is not is_there


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    refused = new_env(tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == f"new-env.sh: {tmp_path} cannot be written; nothing is changed.\n"

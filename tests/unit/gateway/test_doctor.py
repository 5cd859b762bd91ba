import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.uri_parser import parse_uri

from broker.daemons import ProcessRecord
from broker.mongodpath import find_mongod
from broker.mongodset import Polls
from config import Settings, load_settings
from gateway.commands import doctor
from gateway.commands.doctor import Finding, examine

CONFIG = "models: {tesseract: {task: ocr, engine: tesseract}}\n"
Make = Callable[..., Settings]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def _make(config: str = CONFIG, **environ: str) -> Settings:
        (tmp_path / "config.yaml").write_text(config)
        return load_settings(tmp_path / "config.yaml", {"ROUNDHOUSE_HOME": str(tmp_path / "home"), **environ})

    return _make


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine as `examine` sees it, with a home and a port of its own; the path of its config.yaml."""
    for name in os.environ:
        if name.startswith(("ROUNDHOUSE", "SERVER_", "MONGODB_URI", "JWT_SECRET", "ADMIN_PASSWORD")):
            monkeypatch.delenv(name)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    monkeypatch.setenv("ROUNDHOUSE_CONFIG", str(config))
    monkeypatch.setenv("ROUNDHOUSE_HOME", str(tmp_path / "home"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("SERVER_PORT", str(probe.getsockname()[1]))
    return config


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


# --- all of it


def test_a_machine_that_runs_these_tests_has_no_errors(machine: Path) -> None:
    found = by_name(examine())
    assert [finding for finding in found.values() if finding.level == "error"] == []
    names = "configuration python platform tesseract poppler gpu secrets database port disk"
    assert {*names.split(), "state directory"} == set(found)
    assert all(finding.hint for finding in found.values() if finding.level != "ok")
    assert not (machine.parent / "home").exists()


def test_every_problem_of_the_configuration_is_a_finding_and_the_machine_is_looked_at_all_the_same(
    machine: Path,
) -> None:
    machine.write_text("server: {prot: 1}\nqueue: {lease: soon}\n")
    findings = examine()
    problems = [finding.message for finding in findings if finding.name == "configuration"]
    assert len(problems) == 2
    assert "server.prot" in problems[0]
    assert {"python", "tesseract", "gpu"} < set(by_name(findings))
    assert {"database", "port"}.isdisjoint(by_name(findings))


def test_nothing_on_path_is_an_error_for_each_tool_and_no_exception(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = by_name(examine())
    assert found["tesseract"].level == found["poppler"].level == "error"
    assert "tesseract-ocr" in (found["tesseract"].hint or "")
    assert found["gpu"] == Finding("ok", "gpu", "There is no NVIDIA GPU, so engines that run on the CPU are used.")


# --- the machine


def test_an_old_python_and_another_system_are_errors() -> None:
    assert doctor.python_version((3, 11)).level == "ok"
    assert doctor.python_version((3, 10)).level == "error"
    assert doctor.operating_system("Linux").level == "ok"
    assert doctor.operating_system("Darwin").level == "error"


def test_tools_that_no_model_needs_are_only_warned_of(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = make("models: {s: {task: chat, engine: simulator}}")
    assert [finding.level for finding in doctor.document_tools(settings)] == ["warning", "warning"]


@pytest.fixture
def tessdata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory in which Tesseract looks for its languages."""
    directory = tmp_path / "tessdata"
    directory.mkdir()
    monkeypatch.setenv("TESSDATA_PREFIX", str(directory))
    return directory


def tesseract(settings: Settings) -> Finding:
    return next(finding for finding in doctor.document_tools(settings) if finding.name == "tesseract")


def test_a_tesseract_without_languages_is_an_error(make: Make, tessdata: Path) -> None:
    finding = tesseract(make())
    assert finding.level == "error"
    assert "lacks the language eng" in finding.message
    assert "apt-get install tesseract-ocr-eng" in (finding.hint or "") or shutil.which("apt-get") is None


def test_a_tesseract_without_osd_reads_but_is_warned_of(make: Make, tessdata: Path) -> None:
    (tessdata / "eng.traineddata").touch()
    finding = tesseract(make())
    assert finding.level == "warning"
    assert "reads eng, but" in finding.message
    assert "tesseract-ocr-osd" in (finding.hint or "")


def test_a_language_of_the_configuration_that_is_not_installed_is_an_error(make: Make, tessdata: Path) -> None:
    for name in ("eng", "osd"):
        (tessdata / f"{name}.traineddata").touch()
    assert tesseract(make()).level == "ok"
    finding = tesseract(make("models: {t: {task: ocr, engine: tesseract, languages: [eng, chi_sim]}}"))
    assert finding.level == "error"
    assert "lacks the language chi_sim" in finding.message
    assert "tesseract-ocr-chi-sim" in (finding.hint or "")


def test_gpus_are_named_and_counted() -> None:
    listing = "".join(
        f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: GPU-0{n}c1d2e3-0000-0000-0000-000000000000)\n"
        "  MIG 1g.10gb     Device  0: (UUID: MIG-00000000-0000-0000-0000-000000000000)\n"
        for n in range(2)
    )
    finding = doctor.gpu_finding((0, listing + "GPU 2: NVIDIA T4 (UUID: GPU-1)\n"))
    assert (finding.level, finding.message) == ("ok", "GPUs: 2 NVIDIA H100 80GB HBM3, 1 NVIDIA T4.")


def test_a_driver_that_fails_is_warned_of() -> None:
    words = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    finding = doctor.gpu_finding((9, f"{words} Make sure\n"))
    assert finding.level == "warning"
    assert words in finding.message


# --- the state directory


def test_a_state_directory_is_private(tmp_path: Path) -> None:
    home = tmp_path / "state of mine"
    home.mkdir(mode=0o700)
    assert next(doctor.state_directory(home)).level == "ok"
    home.chmod(0o755)
    finding = next(doctor.state_directory(home))
    assert (finding.level, finding.hint) == ("warning", f"chmod 700 '{home}'")


def test_a_state_directory_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for home in (file, file / "home", Path("/proc/roundhouse")):
        findings = list(doctor.state_directory(home))
        assert [finding.level for finding in findings] == ["error"]
        assert "ROUNDHOUSE_HOME" in (findings[0].hint or "")


def test_little_room_is_warned_of_and_less_is_an_error(tmp_path: Path) -> None:
    sizes = {5 * 10**9: "ok", 5 * 10**9 - 1: "warning", 10**9: "warning", 10**9 - 1: "error", 0: "error"}
    assert {size: doctor.disk_finding(tmp_path, size).level for size in sizes} == sizes


def test_secrets_that_others_may_read_are_an_error_that_the_hint_mends(tmp_path: Path) -> None:
    assert doctor.secrets(tmp_path).level == "ok"
    for name in ("secrets/jwt_secret", "secrets/admin_password", "mongod/mongod.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o640)
    finding = doctor.secrets(tmp_path)
    assert finding.level == "error"
    subprocess.run(["sh", "-c", finding.hint or ""], check=True)
    assert doctor.secrets(tmp_path) == Finding("ok", "secrets", "All 3 are readable by their owner alone.")


# --- the database


def test_the_embedded_mongod_is_warned_of(make: Make) -> None:
    finding = doctor.database(make())
    assert finding.level == "warning"
    assert f"{find_mongod()} is not running" in finding.message
    assert "MONGODB_URI=" in (finding.hint or "")


def test_damaged_files_of_the_embedded_mongod_are_an_error(make: Make) -> None:
    settings = make()
    (settings.home / "mongod").mkdir(parents=True)
    (settings.home / "mongod" / "mongod.json").write_text("{")
    finding = doctor.database(settings)
    assert finding.level == "error"
    assert "is damaged" in finding.message


def test_a_primary_of_a_replica_set_is_well(make: Make, mongod_uri: str) -> None:
    finding = doctor.database(make(MONGODB_URI=mongod_uri))
    assert finding.level == "ok"
    assert "replica set roundhouse, primary 127.0.0.1:" in finding.message


def test_a_wrong_password_is_an_error_and_is_not_shown(make: Make, mongod_uri: str) -> None:
    (host, port), *_ = parse_uri(mongod_uri)["nodelist"]
    finding = doctor.database(make(MONGODB_URI=f"mongodb://roundhouse:hunter2@{host}:{port}/?authSource=admin"))
    assert finding.level == "error"
    assert "refuses the account" in finding.message
    assert "hunter2" not in f"{finding}"


async def test_an_account_without_rights_on_the_database_is_an_error(
    make: Make, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    (host, port), *_ = parse_uri(mongod_uri)["nodelist"]
    role = [{"role": "readWrite", "db": database.name}]
    async with AsyncMongoClient[dict[str, Any]](mongod_uri) as root:
        await root[database.name].command("createUser", "clerk", pwd="clerk", roles=role)
    try:
        uri = f"mongodb://clerk:clerk@{host}:{port}/?authSource={database.name}"
        finding = doctor.database(make(MONGODB_URI=uri, ROUNDHOUSE__MONGODB__DATABASE="other"))
        assert finding.level == "error"
        assert "the roles readWrite and dbAdmin on the database other" in (finding.hint or "")
        assert doctor.database(make(MONGODB_URI=uri, ROUNDHOUSE__MONGODB__DATABASE=database.name)).level == "ok"
    finally:
        async with AsyncMongoClient[dict[str, Any]](mongod_uri) as root:
            await root[database.name].command("dropUser", "clerk")


def test_a_database_that_is_away_is_an_error_in_one_line(make: Make) -> None:
    with socket.socket() as reserved:  # bound, and nobody listens
        reserved.bind(("127.0.0.1", 0))
        uri = f"mongodb://ann:hunter2@127.0.0.1:{reserved.getsockname()[1]}"
        finding = doctor.database(make(MONGODB_URI=uri))
    assert finding.level == "error"
    assert "Connection refused" in finding.message
    assert "Topology" not in finding.message
    assert "hunter2" not in finding.message


@pytest.mark.parametrize("uri", ["mongodb://ann:hun/ter2@host", "mongodb://hun,b/?directConnection=true"])
def test_a_uri_that_cannot_be_used_is_an_error_and_is_not_shown(make: Make, uri: str) -> None:
    finding = doctor.database(make(MONGODB_URI=uri))
    assert finding.level == "error"
    assert "hun" not in finding.message


@contextmanager
def mongod_alone(directory: Path) -> Iterator[int]:
    """A mongod that is in no replica set; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (directory / "data").mkdir()
    options: list[str | Path] = [
        "--dbpath",
        directory / "data",
        "--port",
        str(port),
        "--bind_ip",
        "127.0.0.1",
        "--nounixsocket",
    ]
    process = subprocess.Popen(
        [find_mongod(), *options, "--wiredTigerCacheSizeGB", "0.25", "--logpath", directory / "log"],
        env={**os.environ, "LC_ALL": "C"},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


async def test_a_mongod_without_a_replica_set_is_an_error(make: Make, tmp_path: Path) -> None:
    with mongod_alone(tmp_path) as port:
        settings = make(MONGODB_URI=f"mongodb://127.0.0.1:{port}")
        async for _ in Polls(30):
            finding = doctor.database(settings)
            if "Connection refused" not in finding.message:
                break
    assert finding.level == "error"
    assert "is no replica set" in finding.message
    assert "rs.initiate()" in (finding.hint or "")


def test_the_verdict_follows_version_and_role() -> None:
    primary = {"setName": "rs0", "isWritablePrimary": True, "me": "db:27017"}
    assert doctor.server_finding(primary, "6.0.5").level == "ok"
    assert doctor.server_finding(primary, "5.0.31").level == "error"
    assert doctor.server_finding(primary | {"isWritablePrimary": False}, "7.0.1").level == "error"
    assert doctor.server_finding({"msg": "isdbgrid", "isWritablePrimary": True}, "8.0.0-rc1").level == "ok"


# --- the port


def test_a_free_port_is_well_and_stays_free(make: Make) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    settings = make(SERVER_PORT=str(number))
    assert doctor.port(settings).level == doctor.port(settings).level == "ok"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_a_taken_port_is_an_error_that_names_the_holder(make: Make, listener: socket.socket) -> None:
    number = listener.getsockname()[1]
    finding = doctor.port(make(SERVER_PORT=str(number)))
    assert finding.level == "error"
    assert f"process {os.getpid()} (" in finding.message
    assert f"export SERVER_PORT={number + 1}" in (finding.hint or "")


def test_a_port_that_the_running_system_uses_is_well(make: Make, listener: socket.socket) -> None:
    settings = make(SERVER_PORT=str(listener.getsockname()[1]))
    (settings.home / "run").mkdir(parents=True)
    ProcessRecord.current().write(settings.home / "run" / "up.json")
    finding = doctor.port(settings)
    assert finding.level == "ok"
    assert f"Roundhouse itself (process {os.getpid()})" in finding.message


def test_a_port_that_another_gateway_uses_is_warned_of(make: Make, listener: socket.socket) -> None:
    settings = make(SERVER_PORT=str(listener.getsockname()[1]))
    listener.set_inheritable(True)
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "-m", "gateway.server"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, pass_fds=[listener.fileno()], **pipes) as gateway:  # type: ignore[call-overload]
        gateway.stdout.readline()
        listener.close()
        finding = doctor.port(settings)
        gateway.communicate()
    assert finding.level == "warning"
    assert f"process {gateway.pid}" in (finding.hint or "")


def test_an_address_of_another_machine_is_an_error(make: Make) -> None:
    finding = doctor.port(make(SERVER_HOST="192.0.2.1"))
    assert finding.level == "error"
    assert "SERVER_HOST" in (finding.hint or "")

import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway import cli
from gateway.commands.doctor import examine
from gateway.commands.finding import Finding
from tests.unit.gateway.conftest import CONFIG


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


def test_a_machine_for_the_gateway_alone_needs_no_document_tools_and_no_gpu(machine: Path) -> None:
    assert set(by_name(examine())) - set(by_name(examine("gateway"))) == {"tesseract", "poppler", "gpu"}
    machine.write_text("server: {prot: 1}\n")
    assert set(by_name(examine("gateway"))) == {"configuration", "python", "platform"}


def test_a_machine_for_workers_alone_needs_no_port(machine: Path) -> None:
    assert set(by_name(examine())) - set(by_name(examine("worker"))) == {"port"}


def test_the_command_says_which_of_them_is_meant(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MONGODB_URI", "mongodb://ann:hun/ter2@host")
    told = {only: CliRunner().invoke(cli.main, ["doctor", *only.split()]) for only in ("", "gateway", "worker", "cook")}
    assert {only: result.exit_code for only, result in told.items()} == {"": 1, "gateway": 1, "worker": 1, "cook": 2}
    assert "tesseract" in told["worker"].stdout
    assert "tesseract" not in told["gateway"].stdout

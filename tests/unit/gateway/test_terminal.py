import asyncio
import io
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from pymongo.asynchronous.database import AsyncDatabase

from broker.broker import Broker
from config import load_settings
from gateway.app import create_app
from gateway.commands import progress, terminal
from gateway.commands.finding import Finding
from gateway.commands.terminal import plain

Capture = pytest.CaptureFixture[str]
SAMPLE = Path(__file__).parents[3] / "samples" / "letter.pdf"
EVIL = "\x1b]0;owned\x07[red]not markup[/red] \x1b[2J\x1b[31mred\x1b[0m\x9b1mbold \x08\x00end"
TAME = "[red]not markup[/red] redbold end"


def job(status: str = "completed", **changes: Any) -> dict[str, Any]:
    ended = status not in ("queued", "processing")
    return {
        "request_id": "69200000000000000000abcd",
        "status": status,
        "task": "ocr",
        "model": "tesseract",
        "client": None,
        "priority": "normal",
        "position": 3 if status == "queued" else None,
        "attempts": 0 if status == "queued" else 1,
        "created_at": "2026-11-21T08:00:00.000000Z",
        "started_at": None if status == "queued" else "2026-11-21T08:00:01Z",
        "finished_at": "2026-11-21T08:00:04.500Z" if ended else None,
        "progress": None,
        "result": {"text": "Dear visitor,", "pages": [{}, {}], "engine": "tesseract"} if ended else None,
        "error": None,
        **changes,
    }


class Screen:
    """Standard error as a terminal: a pseudo-terminal whose other end is read."""

    def __init__(self, master: int, file: io.TextIOWrapper) -> None:
        self.file = file
        self._master = master
        self._seen: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator["Screen"]:
        master, slave = os.openpty()
        screen = cls(master, os.fdopen(slave, "w", encoding="utf-8"))
        try:
            with redirect_stderr(screen.file):
                yield screen
        finally:
            screen.text()
            os.close(master)

    def _read(self) -> None:
        with suppress(OSError):  # EIO: the other end is closed
            while piece := os.read(self._master, 4096):
                self._seen.append(piece)

    def text(self) -> str:
        """All that was written; nothing can be written after it."""
        self.file.close()
        self._reader.join()
        return b"".join(self._seen).decode()


# --- untrusted text


@pytest.mark.parametrize(
    ("text", "tame"),
    [
        (EVIL, TAME),
        ("a\tb\r\nc\nd\re\x0cf", "a\tb\nc\ndef"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$q\x1b\\x\x1b(0y\x1bcz", "xyz"),
        ("\x1b[38;5;1", "38;5;1"),
        ("naïve Ünïcode 漢字 \u200f مرحبا", "naïve Ünïcode 漢字 \u200f مرحبا"),
    ],
)
def test_text_keeps_nothing_that_a_terminal_obeys(text: str, tame: str) -> None:
    assert plain(text) == tame


def test_a_sign_that_the_terminal_cannot_show_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="latin-1", write_through=True) as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        terminal.print_text("漢 é \ud800")
        terminal.show({"jobs": [job(client="漢")], "next_cursor": None}, False, terminal.jobs_table)
        terminal.show({"client": "漢"}, True, terminal.fields_table)
        shown = raw.getvalue().decode("latin-1")
    assert shown.startswith("? é ?\n")
    assert json.loads(shown[shown.index("{") :]) == {"client": "漢"}


# --- progress


def test_a_spinner_is_one_line_in_a_file(capsys: Capture) -> None:
    with progress.spinner("starting"):
        assert capsys.readouterr() == ("", "starting ...\n")
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.usefixtures("able")
def test_a_spinner_turns_on_a_terminal_and_leaves_nothing(capsys: Capture) -> None:
    with Screen.opened() as screen:
        with progress.spinner("starting"):
            pass
        text = screen.text()
    assert "starting" in text
    assert text.endswith("\x1b[2K")
    assert capsys.readouterr().out == ""


def test_progress_is_a_line_for_each_change_in_a_file(capsys: Capture) -> None:
    with progress.job_progress("my\nletter\x1b[2J.pdf") as show:
        show(job("queued"))
        show(job("queued"))
        show(job("queued", position=1001))
        show(job("processing"))
        show(job("processing", progress={"done": 0, "total": None, "unit": "pages"}))
        show(job("processing", progress={"done": 1, "total": 2, "unit": "pages"}))
        show(job("queued", attempts=1, position=1))
        show(job())
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.removeprefix("my letter.pdf: ") for line in err.splitlines()] == [
        "waits, position 3",
        "waits, more than 1000 are before it",
        "starts",
        "0 pages",
        "1 of 2 pages",
        "waits for attempt 2, position 1",
        "completed",
    ]


@pytest.mark.usefixtures("able")
def test_progress_is_a_bar_on_a_terminal(capsys: Capture) -> None:
    with Screen.opened() as screen:
        with progress.job_progress("[b]letter.pdf") as show:
            for state in (job("queued"), job("processing", progress={"done": 1, "total": 2, "unit": "pages"})):
                show(state)
        text = screen.text()
    assert "[b]letter.pdf: 1 of 2 pages" in text
    assert "━" in text
    assert capsys.readouterr().out == ""


def test_a_terminal_that_can_do_nothing_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Screen.opened() as screen:
        with progress.job_progress("letter.pdf") as show:
            show(job("queued"))
        assert screen.text() == "letter.pdf: waits, position 3\r\n"


# --- answers


def test_json_is_what_the_gateway_said(capsys: Capture) -> None:
    body = {"jobs": [job(client=f"ü{EVIL}")], "next_cursor": None}
    terminal.show(body, True, terminal.jobs_table)
    out = capsys.readouterr().out
    assert json.loads(out) == body
    assert "ü" in out
    assert not {"\x1b", "\x9b"} & set(out)


def test_jobs_are_shown_whole_in_a_file(capsys: Capture) -> None:
    error = {"code": "pdf_encrypted", "message": "The PDF is encrypted " + "and long " * 40}
    jobs = [
        job("failed", client=EVIL, error=error),
        job("processing", progress={"done": 1, "total": 2, "unit": "pages"}),
        job("queued"),
    ]
    terminal.show({"jobs": jobs, "next_cursor": "69"}, False, terminal.jobs_table)
    heading, failed, running, queued, *rest = capsys.readouterr().out.splitlines()
    assert heading.split() == ["JOB", "STATUS", "MODEL", "PRIORITY", "CLIENT", "CREATED", "TOOK", "NOTE"]
    assert failed.startswith("69200000000000000000abcd")
    assert TAME in failed
    assert "3.5 s" in failed
    assert failed.rstrip().endswith("and long (pdf_encrypted)")
    assert "1 of 2 pages" in running
    assert "queued" in queued
    assert "--limit" in "".join(rest)


def test_no_jobs_are_said_to_be_none(capsys: Capture) -> None:
    terminal.show({"jobs": [], "next_cursor": None}, False, terminal.jobs_table)
    assert capsys.readouterr().out == "There are no such jobs.\n"


def model(state: str = "ready", **changes: Any) -> dict[str, Any]:
    return {
        "name": "reader",
        "task": "ocr",
        "engine": "vllm",
        "state": state,
        "reason": None,
        "plan": None,
        "replicas": int(state == "ready"),
        "settled": True,
        "desired": {"wanted": None, "pinned": False, "resolution": None},
        "max_concurrent": 10,
        "max_waiting": 20,
        "queued": 4,
        "processing": 2,
        "workers": [],
        **changes,
    }


def model_on_worker(**changes: Any) -> dict[str, Any]:
    run = {"name": "reader", "state": "starting", "reason": None, "phase": "loading", "progress": None, "since": None}
    return run | {"load_seconds": None, "processing": 0, "gpus": [], "memory_bytes": None, **changes}


def test_models_are_shown_with_their_load_and_state(capsys: Capture) -> None:
    pinned = {"wanted": "running", "pinned": True, "resolution": "base"}
    models = [
        model(name="tesseract", engine="tesseract", desired=pinned),
        model("unavailable", reason=f"weights missing: roundhouse pull reader{EVIL}"),
    ]
    models.append(model("stopped", plan=f"room is made by tesseract{EVIL}"))
    terminal.show({"models": models}, False, terminal.models_table)
    _, first, second, third = capsys.readouterr().out.splitlines()
    assert first.split() == [
        "tesseract",
        "ocr",
        "tesseract",
        "1",
        "2/10",
        "4/20",
        "ready",
        "running,",
        "pinned,",
        "base",
    ]
    assert "unavailable" in second
    assert second.rstrip().endswith(f"weights missing: roundhouse pull reader{TAME}")
    assert third.rstrip().endswith(f"room is made by tesseract{TAME}")


def test_workers_are_shown_with_what_they_run(capsys: Capture) -> None:
    worker = {"id": "0123456789", "host": "box", "pid": 7, "started_at": "2026-11-21T08:00:00Z"}
    runs = [
        model_on_worker(state="ready", processing=3, gpus=["GPU-8f6d2f6e-1b2c", "host:box"], memory_bytes=3 * 2**29),
        model_on_worker(name="big", state="unavailable", reason="no NVIDIA GPU on this machine"),
    ]
    workers = [worker | {"models": runs}, worker | {"id": "fedcba98", "models": []}]
    terminal.show({"workers": workers}, False, terminal.workers_table)
    heading, first, second, idle = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["WORKER", "HOST", "PID"]
    assert first.split()[:3] == ["01234567", "box", "7"]
    assert first.split()[5:] == ["reader", "3", "ready", "GPU-8f6d2f6e,host:box", "1.5", "GiB"]
    assert second.rstrip().endswith("no NVIDIA GPU on this machine")
    assert idle.startswith("fedcba98")
    terminal.show({"workers": []}, False, terminal.workers_table)
    assert capsys.readouterr().out.startswith("No worker is alive")


def test_a_start_is_one_line_for_each_change_in_a_file(capsys: Capture) -> None:
    with progress.model_progress("reader") as show:
        show(model("stopped", plan="room is made by big"))
        for phase in ("loading", "loading", "compiling"):
            show(model("starting", plan="an operator started it", workers=[model_on_worker(phase=phase)]))
        show(model("failed", reason="out of memory\nafter all"))
    assert capsys.readouterr().err.splitlines() == [
        "reader: stopped (room is made by big)",
        "reader: starting (loading)",
        "reader: starting (compiling)",
        "reader: failed (out of memory after all)",
    ]


@pytest.mark.usefixtures("able")
def test_a_start_is_a_bar_on_a_terminal() -> None:
    long_ago = "2026-11-21T08:00:00Z"
    with Screen.opened() as screen:
        with progress.model_progress("reader") as show:
            show(model("starting", workers=[model_on_worker(progress=0.5)]))
            show(model("starting", workers=[model_on_worker(load_seconds=40.0, since=long_ago)]))
            show(model("starting", workers=[model_on_worker(state="sleeping", progress=0.3), model_on_worker()]))
        text = screen.text()
    assert "reader: starting (loading)" in text


def test_a_model_is_one_line_after_a_request() -> None:
    stopped = {"wanted": "stopped", "pinned": True, "resolution": None}
    assert terminal.model_line(model("draining", desired=stopped)) == "reader: draining; wanted: stopped, pinned"
    assert terminal.model_line(model()) == "reader: ready"


def test_a_queue_is_shown_field_by_field(capsys: Capture) -> None:
    terminal.show({"model": "tesseract", "max_waiting": 10, "utilization": 0.5}, False, terminal.fields_table)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["model", "tesseract"], ["max", "waiting", "10"], ["utilization", "50%"]]


FINDINGS = [
    Finding("ok", "gpu", "GPUs: 1 NVIDIA [bold]T4."),
    Finding("warning", "disk", "4.0 GB are free " + "on a disk with a long name " * 6, "Make room."),
    Finding("error", "port", "It is taken.", "export SERVER_PORT=8081"),
]


def test_findings_come_with_their_hints_and_a_sum(capsys: Capture) -> None:
    terminal.show_findings(FINDINGS, False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok       gpu: GPUs: 1 NVIDIA [bold]T4."
    assert lines[1].startswith("warning  disk: 4.0 GB")
    assert lines[2:] == [
        "         Make room.",
        "error    port: It is taken.",
        "         export SERVER_PORT=8081",
        "",
        "1 error(s), 1 warning(s).",
    ]
    terminal.show_findings(FINDINGS[:1], False)
    assert capsys.readouterr().out.endswith("\nAll is well.\n")


def test_findings_are_told_to_scripts_with_the_worst_level(capsys: Capture) -> None:
    terminal.show_findings(FINDINGS, True)
    body = json.loads(capsys.readouterr().out)
    assert body["level"] == "error"
    assert body["findings"][2] == {
        "level": "error",
        "name": "port",
        "message": "It is taken.",
        "hint": "export SERVER_PORT=8081",
    }
    terminal.show_findings(FINDINGS[:1], True)
    assert json.loads(capsys.readouterr().out)["level"] == "ok"


# --- the demonstration


def test_the_demonstration_shows_the_text_and_never_the_password(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADMIN_PASSWORD", raising=False)
    monkeypatch.chdir(tmp_path)
    password = tmp_path / "secrets" / "admin_password"
    password.parent.mkdir()
    password.write_text("open sesame\n")
    done = job(result={"text": f"Dear {EVIL}\n", "pages": [{}, {}], "engine": "tesseract"})
    terminal.show_demo(done, tmp_path / "letter.pdf", "http://127.0.0.1:8080", password)
    out, err = capsys.readouterr()
    assert out.startswith(f"Dear {TAME}\n\nThat was letter.pdf: 2 pages in 3.5 s, read by tesseract.\n")
    for part in ("http://127.0.0.1:8080/docs", "in secrets/admin_password", "submit your.pdf", "./quickstart.sh stop"):
        assert part in out
    assert "open sesame" not in out
    assert err == ""


def test_a_password_from_the_environment_goes_before_a_file_that_was_kept(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = tmp_path / "admin_password"
    password.write_text("of yesterday\n")
    monkeypatch.setenv("ADMIN_PASSWORD", "open sesame")
    terminal.show_demo(job(), tmp_path / "letter.pdf", "http://127.0.0.1:8080", password)
    out = capsys.readouterr().out
    assert "what you set as ADMIN_PASSWORD" in out
    assert str(password) not in out
    assert "open sesame" not in out


@pytest.mark.parametrize("given", [None, "correct & horse=battery+%41"])
async def test_the_commands_that_the_demonstration_prints_work_as_they_are(
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    mongod_uri: str,
    database: AsyncDatabase[dict[str, Any]],
    given: str | None,
) -> None:
    home = tmp_path / "state of mine"
    config = tmp_path / "config.yaml"
    config.write_text("models: {tesseract: {task: ocr, engine: tesseract}}\ndefaults: {ocr: [tesseract]}\n")
    environ = {
        "ROUNDHOUSE_HOME": str(home),
        "MONGODB_URI": mongod_uri,
        "ROUNDHOUSE__MONGODB__DATABASE": database.name,
    }
    monkeypatch.delenv("ADMIN_PASSWORD", raising=False)
    if given is not None:
        monkeypatch.setenv("ADMIN_PASSWORD", environ.setdefault("ADMIN_PASSWORD", given))
    settings = load_settings(config, environ)
    broker = await Broker.open(settings)
    app = create_app(settings, broker)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await broker.ready.wait()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            terminal.show_demo(job(), tmp_path / "letter.pdf", url, home / "secrets" / "admin_password")
            lines = capsys.readouterr().out.splitlines()
            script = [line for line in lines if line.startswith(("TOKEN=", "curl "))]
            assert len(script) == 2
            # No worker runs here, so there is nothing to wait for.
            answer = await run("\n".join(script).replace("wait=60", "wait=0"), tmp_path)
        finally:
            server.should_exit = True
            await serving
    accepted = json.loads(answer)
    assert (accepted["status"], accepted["model"]) == ("queued", "tesseract")


async def run(script: str, directory: Path) -> bytes:
    """What a POSIX shell prints for the script, beside a document named your.pdf."""
    shutil.copy(SAMPLE, directory / "your.pdf")
    process = await asyncio.create_subprocess_exec(
        "sh", "-ec", script, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out

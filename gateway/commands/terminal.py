"""What the ``roundhouse`` command shows: progress on standard error, answers on standard output.

Text that OCR or a client made is untrusted: it goes through ``plain`` before a terminal sees it, and is never read
as rich's markup.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.commands.finding import Finding

Job = Mapping[str, Any]

# The sequences of ECMA-48 that have a body (CSI; OSC, DCS and the like up to their end), then every other control
# character but tab and newline, 8-bit ones included.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What json.dumps() leaves as it is and a terminal may take for a command, or cannot be written at all.
_RAW_IN_JSON = re.compile(r"[\x7f-\x9f\ud800-\udfff]")
# The gateway looks no further; see position in gateway/schemas.py.
_FURTHEST = 1000
_STATES = {"completed": "green", "failed": "red", "timeout": "red", "cancelled": "yellow", "processing": "cyan"}
_ENGINE_STATES = {"ready": "green", "starting": "cyan", "failed": "red"}
_LEVELS = {"ok": "green", "warning": "yellow", "error": "red"}


def plain(text: str) -> str:
    """``text`` without escape sequences and control characters but tab and newline."""
    return _CONTROLS.sub("", _SEQUENCES.sub("", text.replace("\r\n", "\n")))


def writable(text: str, stream: TextIO) -> str:
    """What the stream's encoding lacks becomes a question mark rather than a traceback."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def print_text(text: str = "") -> None:
    """Prints untrusted text on standard output."""
    print(writable(plain(text), sys.stdout))


def _cell(value: object, style: str = "") -> Text:
    """One line of untrusted text, which rich does not interpret."""
    return Text(writable(" ".join(plain(str(value)).split()), sys.stdout), style=style)


# --- states in a few words


def model_line(model: Mapping[str, Any]) -> str:
    """The model after an operator's request, in one line."""
    wanted = _wanted(model["desired"])
    return f"{model['name']}: {model_state(model)}{f'; wanted: {wanted}' if wanted else ''}"


def model_state(model: Mapping[str, Any]) -> str:
    """The model in a few words."""
    phases = [run["phase"] for run in model["workers"] if run["state"] == "starting" and run["phase"]]
    note = phases[0] if phases and model["state"] == "starting" else _reason(model)
    return " ".join(plain(f"{model['state']} ({note})" if note else str(model["state"])).split())


def job_state(job: Job) -> str:
    """The job in a few words."""
    status, progress = job["status"], job.get("progress")
    if status == "queued":
        again = f" for attempt {job['attempts'] + 1}" if job.get("attempts") else ""
        return f"waits{again}{_place(job.get('position'))}"
    if status == "processing" and progress:
        total = f" of {progress['total']}" if progress["total"] is not None else ""
        return f"{progress['done']}{total} {progress['unit']}"
    return "starts" if status == "processing" else str(status)


def _place(position: int | None) -> str:
    if position is None:
        return ""
    return f", position {position}" if position <= _FURTHEST else f", more than {_FURTHEST} are before it"


# --- answers


def show(data: Mapping[str, Any], as_json: bool, table: Callable[[Mapping[str, Any]], RenderableType]) -> None:
    """``data`` on standard output, as JSON or as ``table`` shows it."""
    if as_json:
        _print_json(data)
    else:
        _console().print(table(data))


def _print_json(data: object) -> None:
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(data, indent=2, ensure_ascii=not unicode)
    print(_RAW_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _console() -> Console:
    """Of the terminal's width; a file gets as much as the longest line takes, so that nothing is cut."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "JOB", min_width=24 if heading == "JOB" else None)
    return table


def jobs_table(data: Mapping[str, Any]) -> RenderableType:
    """For the body JobList."""
    jobs = data["jobs"]
    if not jobs:
        return Text("There are no such jobs.")
    table = _table("JOB", "STATUS", "MODEL", "PRIORITY", "CLIENT", "CREATED", "TOOK", "NOTE")
    for job in jobs:
        cells = (job["request_id"], job["model"], job["priority"], job["client"] or "", _time(job["created_at"]))
        identity, model, priority, client, created = map(_cell, cells)
        status = _cell(job["status"], _STATES.get(job["status"], ""))
        table.add_row(identity, status, model, priority, client, created, _cell(_took(job)), _cell(_note(job)))
    if data.get("next_cursor"):
        table.caption = "There are more: ask for them by --limit."
    return table


def models_table(data: Mapping[str, Any]) -> RenderableType:
    """For the body ModelList."""
    table = _table("MODEL", "TASK", "ENGINE", "REPLICAS", "RUNNING", "WAITING", "STATE", "WANTED", "REASON")
    for model in data["models"]:
        running = f"{model['processing']}/{model['max_concurrent']}"
        waiting = f"{model['queued']}/{model['max_waiting']}"
        cells = (model["name"], model["task"], model["engine"], model["replicas"], running, waiting)
        state = _cell(model["state"], _ENGINE_STATES.get(model["state"], "yellow"))
        table.add_row(*map(_cell, cells), state, _cell(_wanted(model["desired"])), _cell(_reason(model)))
    return table


def _reason(model: Mapping[str, Any]) -> str:
    """Why it is in its state or, where nothing is wrong with it, why it is loaded or is not."""
    return str(model["reason"] or model["plan"] or "")


def _wanted(desired: Mapping[str, Any]) -> str:
    """What operators want of a model."""
    words = (desired["wanted"], "pinned" if desired["pinned"] else None, desired["resolution"])
    return ", ".join(word for word in words if word)


def workers_table(data: Mapping[str, Any]) -> RenderableType:
    """For the body WorkerList: a line for each model of each worker."""
    if not data["workers"]:
        return Text("No worker is alive; start one by `roundhouse worker`.")
    table = _table("WORKER", "HOST", "PID", "SINCE", "MODEL", "JOBS", "STATE", "GPU", "MEMORY", "REASON")
    for worker in data["workers"]:
        about = (worker["id"][:8], worker["host"], worker["pid"], _time(worker["started_at"]))
        for run in worker["models"]:
            # As much of a GPU's uuid as tells it from the others.
            gpus = ",".join(gpu[:12] if gpu.startswith("GPU-") else gpu for gpu in run["gpus"])
            memory = "" if run["memory_bytes"] is None else f"{run['memory_bytes'] / 2**30:.1f} GiB"
            state = _cell(run["state"], _ENGINE_STATES.get(run["state"], "yellow"))
            cells = (*about, run["name"], run["processing"])
            table.add_row(*map(_cell, cells), state, _cell(gpus), _cell(memory), _cell(run["reason"] or ""))
        if not worker["models"]:
            table.add_row(*map(_cell, about))
    return table


def fields_table(data: Mapping[str, Any]) -> RenderableType:
    """For any body that is flat: a line for each field."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in data.items():
        shown = f"{value:.0%}" if name == "utilization" else value
        table.add_row(_cell(name.replace("_", " ")), _cell("" if shown is None else shown))
    return table


def _time(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _took(job: Job) -> str:
    seconds = _seconds(job)
    return "" if seconds is None else f"{seconds:.1f} s"


def _seconds(job: Job) -> float | None:
    """How long the last attempt ran, for a job that has ended."""
    if job["started_at"] is None or job["finished_at"] is None:
        return None
    ran = datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(job["started_at"])
    return ran.total_seconds()


def _note(job: Job) -> str:
    if job["error"]:
        return f"{job['error']['message']} ({job['error']['code']})"
    return job_state(job) if job["status"] == "processing" else ""


def show_findings(findings: Sequence[Finding], as_json: bool) -> None:
    """What `roundhouse doctor` found, on standard output."""
    worst = [level for level in ("error", "warning") if any(finding.level == level for finding in findings)]
    if as_json:
        _print_json({"level": worst[0] if worst else "ok", "findings": [asdict(finding) for finding in findings]})
        return
    console = _console()
    for finding in findings:
        level = Text(f"{finding.level:<9}", _LEVELS[finding.level])
        console.print(level + _cell(f"{finding.name}: {finding.message}"), soft_wrap=True)
        if finding.hint:
            console.print(Text(" " * 9) + _cell(finding.hint, "bold"), soft_wrap=True)
    counts = [f"{sum(finding.level == level for finding in findings)} {level}(s)" for level in worst]
    console.print(Text(f"\n{', '.join(counts) if counts else 'All is well'}."))


# --- the demonstration


def show_demo(job: Job, sample: Path, url: str, password_file: Path) -> None:
    """The text of the sample, and what to do next; the admin's password itself is never shown."""
    result = job["result"]
    print_text(result["text"].strip())
    seconds = _seconds(job)
    pages = f"{len(result['pages'])} page{'s' if len(result['pages']) != 1 else ''}"
    took = f" in {seconds:.1f} s" if seconds is not None else ""
    # ADMIN_PASSWORD is the truth at each start, so a file from before it was set is out of date.
    given = "ADMIN_PASSWORD" in os.environ or not password_file.exists()
    print_text(f"""
That was {_near(sample)}: {pages}{took}, read by {result["engine"]}.

API             {url}
documentation   {url}/docs
user            admin
password        {"what you set as ADMIN_PASSWORD" if given else f"in {_near(password_file)}"}

Next, a file of your own:

{token_command(url, None if given else password_file)}
curl -H "Authorization: Bearer $TOKEN" -F file=@your.pdf "{url}/api/ocr?wait=60"

or, to the same effect:

{_command()} submit your.pdf

To stop: ./quickstart.sh stop""")


def token_command(url: str, password_file: Path | None) -> str:
    """A line of shell that sets TOKEN, with the password from the file or, with None, from ADMIN_PASSWORD.

    The password goes through a pipe: as an argument, every user of the machine could see it. The file ends in a
    newline, which curl would send along.
    """
    if password_file is None:
        source = 'printf %s "$ADMIN_PASSWORD"'
    else:
        source = f"tr -d '\\n' < {shlex.quote(_near(password_file))}"
    form = "-d grant_type=password -d username=admin --data-urlencode password@-"
    pick = """python3 -c 'import json, sys; print(json.load(sys.stdin)["access_token"])'"""
    return f"TOKEN=$({source} | curl -fsS {form} {url}/auth/token | {pick})"


def _command() -> str:
    """The `roundhouse` of this virtual environment, as it can be typed."""
    command = Path(sys.executable).parent / "roundhouse"
    return shlex.quote(_near(command)) if command.exists() else "roundhouse"


def _near(path: Path) -> str:
    """The path as short as it can be said."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

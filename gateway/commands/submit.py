"""What ``roundhouse submit`` does: hand a document in, watch it being read, and write what has come of it."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from gateway.commands import output as output_file
from gateway.commands import progress, terminal
from gateway.commands.connection import PATIENCE
from gateway.documents import page_ranges
from roundhouse import Client, Job, JobFailed

BINARY = frozenset({"zip", "pdf"})
# Seconds between two looks at a job: short enough to show how it comes along.
LOOK = 1

Body = Mapping[str, Any]


def say(message: str) -> None:
    click.echo(f"roundhouse: {terminal.plain(message)}", err=True)


def check(output: Path | None, wanted: str | None, as_json: bool) -> None:
    """Before anything is sent. Raises UsageError for what could not be written in the end."""
    if as_json and wanted is not None:
        raise click.UsageError("--json prints the job, --format its result; take one of them.")
    if wanted in BINARY and output is None and sys.stdout.isatty():
        raise click.UsageError(f"A terminal cannot show a {wanted}; say by --output where to write it.")
    if output is not None:
        output_file.check(output)


def read(api: Client, file: Path, **told: Any) -> Body:
    """The job once it has ended. ``told``: as ``Client.submit_ocr`` takes it."""
    accepted = api.submit_ocr(file, **told)
    # What is accepted is safe, so that a gateway may be waited for that is away.
    api.patience = PATIENCE
    if accepted.message:
        say(accepted.message)
    with progress.job_progress(file.name) as display:
        watch = _Watch(api, display)
        try:
            return api.wait(accepted, on_change=watch, every=LOOK).body
        except KeyboardInterrupt:
            # The job is safe: it goes on without us.
            display.note(f"roundhouse: job {accepted.id} goes on; look it up by `roundhouse jobs`.")
            sys.exit(130)


class _Watch:
    """Shows a job each time that it is seen, and tells of each page that could not be read."""

    def __init__(self, api: Client, display: progress.Shows) -> None:
        self._api = api
        self._display = display
        self._told: set[int] = set()

    def __call__(self, job: Job) -> None:
        self._display(job.body)
        failed = (page["number"] for page in job.body.get("pages") or () if page["status"] == "failed")
        for number in [number for number in failed if number not in self._told]:
            self._told.add(number)
            error = self._api.call("GET", f"/api/jobs/{job.id}/pages/{number}")["error"]
            self._display.note(f"page {number} could not be read: {error['message']} ({error['code']})")


def require_completed(job: Body) -> None:
    if job["status"] != "completed":
        error = job["error"] or {"message": "no reason was given", "code": job["status"]}
        raise JobFailed(f"{job['request_id']} {job['status']}: {error['message']}", code=error["code"])


def write(api: Client, job: Body, output: Path | None, wanted: str | None, as_json: bool) -> None:
    """What was asked for, on standard output or to a file. ``wanted``: one of the formats; None: the text alone."""
    if not as_json:
        require_completed(job)
        _tell_of_gaps(job)
    if wanted is not None:
        _write_result(api, job["request_id"], wanted, output)
    elif output is not None:
        text = json.dumps(job, indent=2, ensure_ascii=False) if as_json else str(job["result"]["text"])
        with output_file.writing(output) as file:
            file.write(f"{text}\n".encode())
    elif as_json:
        terminal.show(job, True, terminal.fields_table)
    else:
        terminal.print_text(str(job["result"]["text"]))


def _tell_of_gaps(job: Body) -> None:
    failed = [page["number"] for page in job["result"].get("failed_pages", ())]
    if failed:
        which = page_ranges.written(page_ranges.of(failed))
        total = len(job["result"]["pages"])
        say(f"{len(failed)} of {total} pages could not be read, at least not whole: {which}.")


def _write_result(api: Client, job_id: str, wanted: str, output: Path | None) -> None:
    with closing(api.result_chunks(job_id, wanted)) as chunks:
        if output is not None:
            with output_file.writing(output) as file:
                _copy(chunks, file.write)
        elif sys.stdout.isatty():
            terminal.print_text(b"".join(chunks).decode())
        else:
            _copy(chunks, sys.stdout.buffer.write)
            sys.stdout.flush()


def _copy(chunks: Iterator[bytes], write: Callable[[bytes], object]) -> None:
    for chunk in chunks:
        write(chunk)

"""What ``roundhouse submit`` does: hand a document in, watch it being read, and write what has come of it."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from gateway import page_ranges, terminal
from gateway.client import Client, ClientError

BINARY = frozenset({"zip", "pdf"})

Job = Mapping[str, Any]


def say(message: str) -> None:
    click.echo(f"roundhouse: {terminal.plain(message)}", err=True)


def check(output: Path | None, wanted: str | None, as_json: bool) -> None:
    """Before anything is sent. Raises UsageError for what could not be written in the end."""
    if as_json and wanted is not None:
        raise click.UsageError("--json prints the job, --format its result; take one of them.")
    if wanted in BINARY and output is None and sys.stdout.isatty():
        raise click.UsageError(f"A terminal cannot show a {wanted}; say by --output where to write it.")


def read(api: Client, file: Path, **told: Any) -> Job:
    """The job once it has ended. ``told``: as ``Client.submit_document`` takes it."""
    accepted = api.submit_document(file, **told)
    if accepted.get("message"):
        say(accepted["message"])
    with terminal.job_progress(file.name) as display:
        watch = _Watch(api, display)
        try:
            return api.wait(accepted["request_id"], watch)
        except KeyboardInterrupt:
            # The job is safe: it goes on without us.
            display.note(f"roundhouse: job {accepted['request_id']} goes on; look it up by `roundhouse jobs`.")
            sys.exit(130)


class _Watch:
    """Shows a job each time that it is seen, and tells of each page that could not be read."""

    def __init__(self, api: Client, display: terminal.Shows) -> None:
        self._api = api
        self._display = display
        self._told: set[int] = set()

    def __call__(self, job: Job) -> None:
        self._display(job)
        failed = (page["number"] for page in job.get("pages") or () if page["status"] == "failed")
        for number in [number for number in failed if number not in self._told]:
            self._told.add(number)
            error = self._api.page(job["request_id"], number)["error"]
            self._display.note(f"page {number} could not be read: {error['message']} ({error['code']})")


def require_completed(job: Job) -> None:
    if job["status"] != "completed":
        error = job["error"] or {"message": "no reason was given", "code": job["status"]}
        raise ClientError(f"{job['request_id']} {job['status']}: {error['message']}", code=error["code"])


def write(api: Client, job: Job, output: Path | None, wanted: str | None, as_json: bool) -> None:
    """What was asked for, on standard output or to a file. ``wanted``: one of the formats; None: the text alone."""
    if not as_json:
        require_completed(job)
        _tell_of_gaps(job)
    if wanted is not None:
        _write_result(api, job["request_id"], wanted, output)
    elif output is not None:
        text = json.dumps(job, indent=2, ensure_ascii=False) if as_json else str(job["result"]["text"])
        output.write_text(text + "\n", encoding="utf-8")
    elif as_json:
        terminal.show(job, True, terminal.fields_table)
    else:
        terminal.print_text(str(job["result"]["text"]))


def _tell_of_gaps(job: Job) -> None:
    failed = [page["number"] for page in job["result"].get("failed_pages", ())]
    if failed:
        which = page_ranges.written(page_ranges.of(failed))
        total = len(job["result"]["pages"])
        say(f"{len(failed)} of {total} pages could not be read, at least not whole: {which}.")


def _write_result(api: Client, job_id: str, wanted: str, output: Path | None) -> None:
    with api.result(job_id, wanted) as chunks:
        if output is not None:
            with output.open("wb") as file:
                _copy(chunks, file.write)
        elif sys.stdout.isatty():
            terminal.print_text(b"".join(chunks).decode())
        else:
            _copy(chunks, sys.stdout.buffer.write)
            sys.stdout.flush()


def _copy(chunks: Iterator[bytes], write: Callable[[bytes], object]) -> None:
    for chunk in chunks:
        write(chunk)

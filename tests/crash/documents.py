"""``python -m tests.crash.documents --pages 100 --seeds 10``: a long scan whose reader is killed at a random page.

For each seed a real system reads the same document, and meanwhile its worker, its mongod or the Tesseract that is at
work gets a ``kill -9``. What comes of it has to be what came of it without, and no page may be begun again that was not
under way. Exits 1 where it is not so.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pymongo
from bson import ObjectId

from broker.mongod import EmbeddedMongod
from tests.deployments import default_config
from tests.documents import pdf_of_scans, scan_text, scanned_page
from tests.system import System, kill

VICTIMS = ("worker", "mongod", "tesseract")
LEASE = 5.0
# What tells how it went, and not what was read.
_HOW = ("duration", "tries")


@dataclass(frozen=True)
class Outcome:
    """``pages``: what was read. ``begun``: how often a page was begun, over all of them. ``errors``: of its attempts.
    ``seconds``: from submit to end."""

    pages: list[dict[str, Any]]
    text: str
    begun: int
    errors: list[str]
    seconds: float


@dataclass(frozen=True)
class Blow:
    """Falls when ``page`` pages have been read."""

    victim: str
    page: int


def scan(pages: int) -> bytes:
    """Scanned slips of paper: enough for the words on them, and quickly read."""
    whole = [scanned_page(scan_text(number)) for number in range(1, pages + 1)]
    return pdf_of_scans([page.crop((0, 0, page.width, page.height // 4)) for page in whole])


def blow_of(seed: int, pages: int) -> Blow:
    chance = random.Random(seed)
    return Blow(VICTIMS[seed % len(VICTIMS)], chance.randrange(1, pages - 1))


class Scene:
    """A system with a mongod of its own under ``home``, for one document."""

    def __init__(self, home: Path) -> None:
        config = default_config()
        config["queue"] |= {"lease": LEASE, "retry_backoff": 0.1}
        config["models"]["tesseract"] |= {"dpi": 110, "languages": ["eng"]}
        self._system = System(home, None, "roundhouse", config)
        self._home = home

    def __enter__(self) -> "Scene":
        self._system.gateway()
        self._system.sign_in()
        self._worker = self._system.start("worker")
        return self

    def __exit__(self, *_: object) -> None:
        self._system.close()
        asyncio.run(EmbeddedMongod(self._home / "state").stop())

    def _mongod(self) -> psutil.Process:
        pid = EmbeddedMongod(self._home / "state").status().pid
        assert pid is not None
        return psutil.Process(pid)

    def read(self, document: bytes, blow: Blow | None) -> Outcome:
        began = time.monotonic()
        files = {"file": ("scan.pdf", document)}
        response = self._system.http.post("/api/ocr", files=files, headers={"Cache-Control": "no-cache"})
        assert response.status_code == 202, response.text
        job_id = response.json()["request_id"]
        if blow is not None:
            self._until_read(job_id, blow.page)
            self._strike(blow.victim)
        job = self._ended(job_id)
        seconds = time.monotonic() - began
        assert job["status"] == "completed", job["error"]
        whole = self._system.http.get(f"/api/jobs/{job_id}/result").json()
        pages = [_what_was_read(page, job_id) for page in whole["pages"]]
        errors = [f"{error['code']} ({error['attempt']})" for error in job["errors"]]
        return Outcome(pages, job["result"]["text"], self._begun(job_id), errors, seconds)

    def _job(self, job_id: str) -> Mapping[str, Any] | None:
        """None while the gateway has no database."""
        response = self._system.http.get(f"/api/jobs/{job_id}")
        return response.json() if response.status_code == 200 else None

    def _until_read(self, job_id: str, pages: int) -> None:
        deadline = time.monotonic() + 600
        while True:
            job = self._job(job_id)
            if job is not None and (job["progress"] or {}).get("done", 0) >= pages:
                assert job["finished_at"] is None, "it had ended before it could be struck"
                return
            assert time.monotonic() < deadline, f"page {pages} was not read"
            time.sleep(0.02)

    def _ended(self, job_id: str) -> Mapping[str, Any]:
        deadline = time.monotonic() + 600
        while (job := self._job(job_id)) is None or job["finished_at"] is None:
            assert time.monotonic() < deadline, "the document was not read to its end"
            time.sleep(0.05)
        return job

    def _strike(self, victim: str) -> None:
        if victim == "worker":
            kill(self._worker)
            self._worker = self._system.start("worker")
        elif victim == "mongod":
            self._mongod().send_signal(signal.SIGKILL)
        else:
            self._strike_a_tesseract()

    def _strike_a_tesseract(self) -> None:
        """One that is at work for our worker, and may end of itself while it is looked at."""
        deadline = time.monotonic() + 60
        while True:
            for process in psutil.Process(self._worker.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if process.name() == "tesseract" and process.status() != psutil.STATUS_ZOMBIE:
                        process.send_signal(signal.SIGKILL)
                        return
            assert time.monotonic() < deadline, "no page is being read"

    def _begun(self, job_id: str) -> int:
        uri = asyncio.run(EmbeddedMongod(self._home / "state").ensure())
        with pymongo.MongoClient[dict[str, Any]](uri) as client:
            found = client["roundhouse"]["pages"].find({"job": ObjectId(job_id)}, {"starts": 1})
            return sum(page.get("starts", 0) for page in found)


def _what_was_read(page: dict[str, Any], job_id: str) -> dict[str, Any]:
    """With its blocks, words, Markdown and figures, and without what tells how it went or names the job."""
    what = {key: value for key, value in page.items() if key not in _HOW}
    told: dict[str, Any] = json.loads(json.dumps(what).replace(job_id, "JOB"))
    return told


def differences(plain: Outcome, struck: Outcome) -> list[str]:
    """What must not be different after a blow, and is."""
    found = []
    if [page["number"] for page in struck.pages] != [page["number"] for page in plain.pages]:
        found.append("the pages are others, or in another order")
    for before, after in zip(plain.pages, struck.pages, strict=False):
        if before != after:
            keys = [key for key in before if before[key] != after.get(key)]
            found.append(f"page {before['number']} differs in {', '.join(keys)}")
    if struck.text != plain.text:
        found.append("the text differs")
    # Under way are as many pages as there are processors.
    again, most = struck.begun - plain.begun, os.cpu_count() or 1
    if again > most:
        found.append(f"{again} pages were begun again, and {most} can have been under way")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.documents", description=__doc__)
    parser.add_argument("--pages", type=int, default=100, help="of the document (default: 100)")
    parser.add_argument("--seeds", type=int, default=10, help="how many times it is read and struck (default: 10)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    given = parser.parse_args(arguments)
    document = scan(given.pages)
    with tempfile.TemporaryDirectory(prefix="roundhouse-crash-") as home, Scene(Path(home)) as scene:
        plain = scene.read(document, None)
        print(f"{given.pages} pages in {plain.seconds:.1f} s without a blow", flush=True)
        print("\n| seed | blow | at page | begun again | errors (attempt) | seconds | verdict |\n" + "| --- " * 7 + "|")
        wrong = 0
        for seed in range(given.first, given.first + given.seeds):
            blow = blow_of(seed, given.pages)
            struck = scene.read(document, blow)
            found = differences(plain, struck)
            wrong += bool(found)
            print(
                f"| {seed} | {blow.victim} | {blow.page} | {struck.begun - plain.begun} | {', '.join(struck.errors)} "
                f"| {struck.seconds:.1f} | {'; '.join(found) or 'identical'} |",
                flush=True,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.crash.batches --lines 5000 --seed 1``: a batch while everything is killed under it.

A real system (two gateway processes, a worker, the embedded mongod) runs a batch, and each of its processes gets
``kill -9`` at times that the seed tells: a gateway also while the file is validated and while the answers are put
together. Meanwhile somebody asks for the batch all the time. In the end every line has to be answered once, in the
order of the input, by what it asked for, and ``request_counts`` may never have been wrong. Exits 1 where it is not so.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pymongo

from broker.mongod import EmbeddedMongod
from tests.deployments import default_config
from tests.system import System, kill

VICTIMS = ("gateway", "worker", "mongod")
ENDED = ("completed", "failed", "expired", "cancelled")
URL = "/v1/chat/completions"
# Lines that are refused, and that fail at first.
REFUSED, ONCE_MORE = 25, 40


@dataclass(frozen=True)
class Blow:
    """Falls once so many lines have ended, or the batch has come to that status."""

    victim: str
    lines: int = 0
    status: str | None = None

    def __str__(self) -> str:
        return f"{self.victim} at {self.status or f'{self.lines} lines'}"


def blows_of(seed: int, lines: int, times: int = 1) -> list[Blow]:
    """Each victim ``times`` times, at random, in the order of their lines."""
    chance = random.Random(seed)
    middle = [Blow(victim, chance.randrange(lines // 20, lines * 9 // 10)) for victim in VICTIMS * times]
    ends = [Blow("gateway", status="validating"), Blow("gateway", status="finalizing")]
    return [ends[0], *sorted(middle, key=lambda blow: blow.lines), ends[1]]


def request(number: int) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "simulator", "messages": [{"role": "user", "content": f"line {number}"}]}
    if number % REFUSED == 7:
        # In every attempt: the kill of a worker costs the lines that it runs one, and the next has to refuse them too.
        body["simulate"] = {"fault": "reject", "after": 4, "attempts": 1000}
    elif number % ONCE_MORE == 11:
        body["simulate"] = {"fault": "error", "attempts": 1}
    return {"custom_id": f"line-{number}", "method": "POST", "url": URL, "body": body}


@dataclass
class Outcome:
    """What came of a batch. ``seen``: request_counts each time that they were asked for. ``jobs``: by line."""

    batch: Mapping[str, Any] = field(default_factory=dict)
    output: list[Mapping[str, Any]] = field(default_factory=list)
    errors: list[Mapping[str, Any]] = field(default_factory=list)
    seen: list[tuple[int, int, int]] = field(default_factory=list)
    jobs: Counter[int] = field(default_factory=Counter)
    places: int = 0
    struck: list[Blow] = field(default_factory=list)
    seconds: float = 0.0


class Scene:
    """A system with a mongod of its own under ``home``. ``tokens_per_second``: of an answer, which has five."""

    def __init__(self, home: Path, tokens_per_second: int = 1000) -> None:
        config = default_config()
        config["server"] = {"workers": 2}
        simulator = {"tokens": 5, "max_concurrent": 20, "max_waiting": 40, "max_retries": 10}
        config["models"]["simulator"] |= simulator | {"tokens_per_second": tokens_per_second}
        self._system = System(home, None, "roundhouse", config)
        self._mongod = EmbeddedMongod(home / "state")

    def __enter__(self) -> "Scene":
        self._gateways = self._system.gateway()
        self._system.sign_in()
        self._worker = self._system.start("worker")
        return self

    def __exit__(self, *_: object) -> None:
        self._system.close()
        asyncio.run(self._mongod.stop())

    def run(self, lines: int, blows: Sequence[Blow]) -> Outcome:
        began = time.monotonic()
        outcome, to_come = Outcome(), list(blows)
        batch = self._submit(lines)
        for found in self._states(batch):
            outcome.batch = found
            counts = found["request_counts"]
            outcome.seen.append((counts["total"], counts["completed"], counts["failed"]))
            if found["status"] in ENDED:
                break
            # One at a time: what was killed has to be back before it can be killed again.
            if to_come and _due(to_come[0], found):
                blow = to_come.pop(0)
                if blow.status in (None, found["status"]):
                    self._strike(blow.victim)
                    outcome.struck.append(blow)
        outcome.seconds = time.monotonic() - began
        outcome.output = self._lines(outcome.batch["output_file_id"])
        outcome.errors = self._lines(outcome.batch["error_file_id"])
        self._look_at_jobs(outcome)
        return outcome

    def _submit(self, lines: int) -> str:
        content = "".join(json.dumps(request(number)) + "\n" for number in range(lines))
        file = self._post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content.encode())})
        asked = {"input_file_id": file["id"], "endpoint": URL, "completion_window": "24h"}
        return str(self._post("/v1/batches", json=asked)["id"])

    def _post(self, path: str, **how: Any) -> Mapping[str, Any]:
        response = self._system.http.post(path, **how)
        assert response.status_code == 200, response.text
        body: Mapping[str, Any] = response.json()
        return body

    def _states(self, batch: str, within: float = 900.0) -> Iterator[Mapping[str, Any]]:
        """The batch as it is, again and again; nothing while no gateway can say."""
        deadline = time.monotonic() + within
        while True:
            try:
                response = self._system.http.get(f"/v1/batches/{batch}")
            except httpx.TransportError:
                response = None
            if response is not None and response.status_code == 200:
                yield response.json()
            assert time.monotonic() < deadline, "the batch did not end"
            time.sleep(0.02)

    def _strike(self, victim: str) -> None:
        if victim == "worker":
            kill(self._worker)
            self._worker = self._system.start("worker")
        elif victim == "gateway":
            # All of them: whichever has the duty is among them. Their supervisor starts them again.
            for child in psutil.Process(self._gateways.pid).children():
                child.send_signal(signal.SIGKILL)
        else:
            pid = self._mongod.status().pid
            assert pid is not None
            psutil.Process(pid).send_signal(signal.SIGKILL)

    def _lines(self, file: str | None) -> list[Mapping[str, Any]]:
        if file is None:
            return []
        self._system.healthy()
        response = self._system.http.get(f"/v1/files/{file}/content")
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    def _look_at_jobs(self, outcome: Outcome) -> None:
        uri = asyncio.run(self._mongod.ensure())
        with pymongo.MongoClient[dict[str, Any]](uri) as client:
            jobs = client["roundhouse"]["jobs"]
            outcome.jobs = Counter(job["batch"]["line"] for job in jobs.find({}, {"batch.line": 1}))
            outcome.places = jobs.count_documents({"place": {"$exists": True}})


def _due(blow: Blow, batch: Mapping[str, Any]) -> bool:
    """Also when its time is over, for it not to hold those up that come after it."""
    counts = batch["request_counts"]
    if blow.status == "validating":
        return True
    if blow.status == "finalizing":
        return bool(batch["status"] == blow.status)
    return bool(counts["completed"] + counts["failed"] >= blow.lines)


def wrongs(outcome: Outcome, lines: int) -> list[str]:
    """What should not be so, and is."""
    found = []
    refused = [number for number in range(lines) if number % REFUSED == 7]
    answered = [number for number in range(lines) if number % REFUSED != 7]
    if outcome.batch["status"] != "completed":
        found.append(f"the batch is {outcome.batch['status']}")
    if [line["custom_id"] for line in outcome.output] != [f"line-{number}" for number in answered]:
        found.append(f"{len(outcome.output)} answers are not those of the {len(answered)} lines, in order")
    if [line["custom_id"] for line in outcome.errors] != [f"line-{number}" for number in refused]:
        found.append(f"{len(outcome.errors)} errors are not those of the {len(refused)} lines, in order")
    ids = {line["response"]["request_id"] for line in (*outcome.output, *outcome.errors)}
    if len(ids) != lines:
        found.append(f"{len(ids)} jobs have answered {lines} lines")
    if outcome.jobs != Counter(range(lines)):
        found.append(f"{outcome.jobs.total()} jobs were made for {lines} lines")
    if outcome.places:
        found.append(f"{outcome.places} places are still held")
    return found + _wrong_counts(outcome, lines)


def _wrong_counts(outcome: Outcome, lines: int) -> list[str]:
    found = []
    if outcome.seen[-1] != (lines, len(outcome.output), len(outcome.errors)):
        found.append(f"the last request_counts are {outcome.seen[-1]}")
    known = [counts for counts in outcome.seen if counts[0]]
    if any(total != lines or completed + failed > total for total, completed, failed in known):
        found.append("request_counts were wrong")
    steps = zip(outcome.seen, outcome.seen[1:], strict=False)
    if any(after < before for one, other in steps for before, after in zip(one, other, strict=True)):
        found.append("request_counts went back")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.batches", description=__doc__)
    parser.add_argument("--lines", type=int, default=5000, help="of the batch (default: 5000)")
    parser.add_argument("--seed", type=int, default=1, help="says when the blows fall (default: 1)")
    parser.add_argument("--times", type=int, default=1, help="how often each process is killed (default: 1)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="roundhouse-crash-") as home, Scene(Path(home)) as scene:
        outcome = scene.run(given.lines, blows_of(given.seed, given.lines, given.times))
        found = wrongs(outcome, given.lines)
    counts = outcome.batch["request_counts"]
    print(f"{given.lines} lines in {outcome.seconds:.1f} s, seed {given.seed}: {counts}")
    print(f"killed: {', '.join(str(blow) for blow in outcome.struck)}; asked {len(outcome.seen)} times")
    print("\n".join(found) or "every line was answered once, in order, and the counts were always true")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

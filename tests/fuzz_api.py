"""Requests made up from ``/openapi.json`` by Schemathesis, to a real gateway and worker: ``python -m tests.fuzz_api``.

Whatever is sent, no answer may be a 5xx that is no refusal, nor have a status, a type or a body that is not described.
First all that clients may do, then, as it stops models, what operators may.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import documents
from tests.deployments import default_config
from tests.system import System

# A job that runs into the time limit of its request's own X-Timeout is answered 504: that is no fault.
_CONFIG = """\
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 504]
"""
_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
_OPERATORS = "^/admin/"
# Of these next to none that is made up is taken, whatever else there is in the request.
_REFUSED = frozenset({"Idempotency-Key", "X-Webhook-URL", "X-Webhook-Events"})


def config() -> dict[str, Any]:
    """The simulator for chats, completions and vectors; places enough that no request finds the queue full."""
    made = default_config()
    quick = {"engine": "simulator", "tokens_per_second": 10_000, "tokens": 4, "max_waiting": 100_000}
    made["models"]["simulator"] = {"task": "chat", **quick}
    made["models"]["vectors"] = {"task": "embedding", **quick}
    made["auth"] = {"access_token_ttl": "1h"}
    made["server"] = {"max_wait": 1, "heartbeat": 0.2}
    return made


def narrowed(document: dict[str, Any], ids: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The document with names and ids that there are, as made-up ones lead no further than to a 404.

    ``ids``: those of what is found under a path, by its beginning.
    """
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request") and "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": ["vectors" if "Embedding" in name else "simulator"]}
            schema["required"] = sorted({*schema.get("required", ()), "model"})
    for path, operations in document["paths"].items():
        for operation in operations.values():
            parameters = [found for found in operation.get("parameters", ()) if found["name"] not in _REFUSED]
            operation["parameters"] = parameters
            for parameter in parameters:
                known = [found for start, found in ids.items() if path.startswith(start)]
                if parameter["in"] == "path" and parameter["name"] == "id" and known:
                    parameter["schema"] = {"enum": list(known[0])}
    return document


def ids_in(system: System) -> dict[str, list[str]]:
    """Of jobs and files in every state, by the path where they are found."""
    http, hello = system.http, {"model": "simulator", "messages": [{"role": "user", "content": "hello"}]}
    streamed = http.post("/v1/chat/completions", json={**hello, "stream": True}).headers["x-request-id"]
    page = http.post("/api/ocr", content=documents.page_png()).json()["request_id"]
    gone = system.chat()
    http.delete(f"/api/jobs/{gone}")
    system.ended(page)
    responses = [http.post("/v1/responses", json={"model": "simulator", "input": "hello"}).json()["id"]]
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": hello}
    form = {"files": {"file": ("lines.jsonl", json.dumps(line))}, "data": {"purpose": "batch"}}
    file = http.post("/v1/files", **form).json()["id"]
    asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = http.post("/v1/batches", json=asked).json()["id"]
    jobs = [streamed, page, gone]
    return {
        "/api/jobs/": jobs,
        "/v1/chat/completions/": jobs,
        "/v1/responses/": responses,
        "/v1/files/": [file],
        "/v1/batches/": [batch],
    }


def fuzz(system: System, document: str, seconds: int, seed: int, *filters: str) -> subprocess.CompletedProcess[str]:
    """Runs Schemathesis for so many seconds. Its status is 0 where it found nothing."""
    settings = system.home / "schemathesis.toml"
    settings.write_text(_CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run"]
    options = ["--max-time", str(seconds), "--seed", str(seed), "--checks", _CHECKS, "--workers", "1", "--no-color"]
    limits = ["--request-timeout", "30", "--generation-database", "none", "--suppress-health-check", "all"]
    header = ["--header", f"Authorization: {system.http.headers['Authorization']}"]
    return subprocess.run(
        [*command, *options, *limits, *header, *filters, document, "--url", system.url],
        cwd=system.home,
        capture_output=True,
        text=True,
        check=False,
    )


def fuzz_all(system: System, seconds: int, seed: int) -> list[str]:
    """What was found, each time as Schemathesis tells it; nothing: all is well."""
    system.gateway()
    system.start("worker")
    system.sign_in()
    narrow = system.home / "narrowed.json"
    narrow.write_text(json.dumps(narrowed(system.http.get("/openapi.json").json(), ids_in(system))))
    clients = ("--exclude-path-regex", _OPERATORS)
    runs = (
        (0.2, f"{system.url}/openapi.json", clients),
        (0.6, str(narrow), clients),
        (0.2, f"{system.url}/openapi.json", ("--include-path-regex", _OPERATORS)),
    )
    reports = []
    for share, document, filters in runs:
        run = fuzz(system, document, max(10, round(seconds * share)), seed, *filters)
        print(run.stdout, run.stderr[-2000:], sep="\n", flush=True)
        if run.returncode:
            reports.append(run.stdout + run.stderr)
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, System(Path(home), None, "fuzz", config()) as system:
        found = fuzz_all(system, round(asked.minutes * 60), asked.seed)
    print(f"{len(found)} of 3 runs found something" if found else "nothing found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

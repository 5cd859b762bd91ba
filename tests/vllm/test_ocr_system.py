"""Documents through gateway, worker and a real vLLM with a tiny DeepSeek-OCR.

Its weights are made up: what it says of itself means nothing, and only the shape of that is looked at. Where the answer
matters ``plugin/scribe.py`` makes it write what the prompt orders.
"""

import base64
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient

from tests import documents
from tests.deployments import default_config
from tests.system import System, end
from tests.vllm.conftest import ocr_entry_of
from tests.vllm.processes import seconds_until

# Seconds. On a machine that is busy with other things a start takes some minutes.
START = 900
WRITTEN = (
    "<|ref|>title<|/ref|><|det|>[[50, 40, 950, 100]]<|/det|>\n# A page\n\n"
    "<|ref|>image<|/ref|><|det|>[[100, 200, 900, 600]]<|/det|>\n"
    "<|ref|>table<|/ref|><|det|>[[0, 700, 999, 999]]<|/det|>\n<table><tr><td>a</td><td>1</td></tr></table>"
)


@pytest.fixture(scope="module")
def system(python: str, tiny_ocr: Path, mongod_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    config = default_config()
    config["models"] = {"reader": ocr_entry_of(python, tiny_ocr, timeout=300, page_retries=1)}
    config["defaults"] = {"ocr": ["reader"]}
    database = f"test_{uuid4().hex}"
    with System(tmp_path_factory.mktemp("system"), mongod_uri, database, config) as system:
        system.gateway()
        system.sign_in()
        worker: subprocess.Popen[bytes] = system.start("worker")
        seconds_until(lambda: model(system)["state"] == "ready", within=START, every=0.5)
        yield system
        end(worker)
    with MongoClient[dict[str, Any]](mongod_uri) as client:
        client.drop_database(database)


def model(system: System) -> dict[str, Any]:
    return dict(system.http.get("/admin/models/reader").json())


def read(system: System, pages: int, written: str | None, times: int = 1, **options: Any) -> dict[str, Any]:
    """The job that has read a scan of so many pages, once it has ended. ``written``, so many times, is what the model
    is made to write of each."""
    scan = base64.b64encode(documents.scanned_pdf(pages)).decode()
    parts: list[dict[str, Any]] = [{"type": "file", "file": {"file_data": f"data:application/pdf;base64,{scan}"}}]
    if written is not None:
        parts.append({"type": "text", "text": f"write:{written.encode().hex()}*{times}"})
    body = {"model": "reader", "messages": [{"role": "user", "content": parts}], "options": options}
    response = system.http.post("/api/ocr", json=body, headers={"Cache-Control": "no-cache"})
    assert response.status_code == 202, response.text
    return system.ended(response.json()["request_id"], within=START)


def test_a_scan_becomes_text_blocks_and_figures_page_by_page(system: System) -> None:
    job = read(system, 3, WRITTEN)
    assert (job["status"], job["attempts"]) == ("completed", 1), job
    result = job["result"]
    assert (result["engine"], result["media_type"], result["partial"]) == ("vllm", "application/pdf", False)
    assert [(page["number"], page["mode"]) for page in result["pages"]] == [(n, "gundam") for n in (1, 2, 3)]
    assert {page["text"] for page in result["pages"]} == {"A page\n\na\t1"}
    page = system.http.get(f"/api/jobs/{job['request_id']}/pages/2").json()
    assert [block["type"] for block in page["blocks"]] == ["title", "figure", "table"]
    width, height = page["width"], page["height"]
    left, top, right, bottom = page["blocks"][1]["bbox"]
    assert (left, top, right, bottom) == pytest.approx((width * 0.1, height * 0.2, width * 0.9, height * 0.6), abs=3)
    assert len(page["figures"]) == 1


def test_what_the_model_says_by_itself_has_the_right_shape_and_means_nothing(system: System) -> None:
    job = read(system, 2, None, max_tokens=40)
    assert job["status"] == "completed", job
    for page in job["result"]["pages"]:
        assert (page["tokens"], page["tries"], page["mode"]) == (40, 1, "gundam")
        assert isinstance(page["text"], str)
        assert any("40 tokens" in warning for warning in page["warnings"])


def test_a_model_that_comes_to_no_end_fails_its_pages_and_they_are_named(system: System) -> None:
    # Longer than what the engine's own guard sees.
    again = "".join(f"Line {number} of what comes again.\n" for number in range(5))
    job = read(system, 1, again, times=30)
    assert job["status"] == "failed", job
    page = system.http.get(f"/api/jobs/{job['request_id']}/pages/1").json()
    assert (page["status"], page["tries"], page["error"]["code"]) == ("failed", 2, "page_looped")
    assert page["text"].startswith("Line 0 of what comes again.")
    assert page["text"].count("Line 4") == 1


def test_a_document_may_ask_for_another_mode_and_the_engine_is_started_in_it(system: System) -> None:
    job = read(system, 1, WRITTEN, resolution="tiny")
    assert job["status"] == "completed", job
    assert [page["mode"] for page in job["result"]["pages"]] == ["tiny"]
    assert model(system)["state"] == "ready"

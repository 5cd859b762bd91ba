"""What a document has come to: in each format, page by page, and as files."""

import base64
import io
import re
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from bson import ObjectId

from broker.job import Failure
from broker.pages import Pages, StoredPage
from gateway.documents import result_formats
from gateway.documents.schemas import DocumentResult, Page
from gateway.openapi import document
from gateway.operations import DESCRIPTION, OPERATIONS, VERSION
from gateway.routes import ROUTES
from gateway.users import Users
from ocr.page import figure_name, image_name
from tests import documents
from tests.contract.described import check
from tests.contract.ocr_jobs import (
    PDF,
    Reader,
    blank_page,
    failed_page,
    page,
    page_with_figure,
    read,
    submitted,
)
from tests.deployments import Gateway
from worker.worker import Worker

DOCUMENT = document(ROUTES, OPERATIONS, VERSION, DESCRIPTION)
FIGURE = figure_name(2, 1)
SAMPLES = Path(__file__).parents[2] / "samples"
LETTER = SAMPLES / "letter.pdf"


@pytest.fixture
async def letter(gateway: Gateway) -> str:
    """The path of a job on five pages: text, a figure, a blank one, a failed one with a part, and one with nothing."""
    records = page(1), page_with_figure(2), blank_page(3), failed_page(4, "Half a page"), failed_page(5)
    return f"/api/jobs/{await read(gateway, *records, searchable=True)}"


async def result(gateway: Gateway, path: str, **query: Any) -> httpx.Response:
    response = await gateway.http.get(f"{path}/result", params=query)
    check(DOCUMENT, response)
    return response


def refusal(response: httpx.Response) -> tuple[int, str]:
    check(DOCUMENT, response)
    return response.status_code, response.json()["code"]


# Formats.


async def test_json_has_every_page_with_its_blocks(gateway: Gateway, letter: str) -> None:
    response = await result(gateway, letter)
    body = DocumentResult.model_validate_json(response.content)
    assert response.json() == (await result(gateway, letter, format="json")).json()
    assert [(found.number, found.status) for found in body.pages] == [
        (1, "completed"),
        (2, "completed"),
        (3, "blank"),
        (4, "failed"),
        (5, "failed"),
    ]
    assert (body.partial, body.page_count, [failed.number for failed in body.failed_pages]) == (True, 5, [4, 5])
    assert (body.engine, body.model, body.media_type) == ("tesseract", "tesseract", "application/pdf")
    first = body.pages[0]
    assert (first.width, first.height, first.rotation, first.source, first.tries) == (2000, 1000, 0, "ocr", 1)
    assert [(block.type, block.bbox, block.confidence) for block in first.blocks] == [("text", [100, 50, 900, 90], 0.9)]
    [word] = first.blocks[0].words
    assert (word.text, word.bbox, word.confidence) == ("This", [100, 50, 180, 90], 0.8)
    error = body.pages[4].error
    assert error is not None
    assert error.code == "page_looped"


async def test_each_link_of_the_json_leads_to_its_file(gateway: Gateway, letter: str) -> None:
    body = (await result(gateway, letter)).json()
    links = [body["searchable_pdf"], *(found["image"] for found in body["pages"])]
    links += [figure["link"] for found in body["pages"] for figure in found["figures"]]
    answers = [await gateway.http.get(link) for link in links]
    for answer in answers:
        check(DOCUMENT, answer)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    assert [answer.headers["content-type"] for answer in answers] == ["application/pdf"] + ["image/jpeg"] * 5 + [
        "image/png"
    ]
    assert answers[-1].content == b"\x89PNG a figure"


async def test_markdown_has_every_page_and_refers_to_the_figures_where_they_are(gateway: Gateway, letter: str) -> None:
    response = await result(gateway, letter, format="markdown")
    assert re.findall(r"<!-- page (\d) -->", response.text) == ["1", "2", "3", "4", "5"]
    assert "Page 3 is blank" in response.text
    assert "Half a page" in response.text
    assert response.text.count(r"again and again \(page\_looped\)") == 2
    [target] = re.findall(r"!\[A cat\.\]\((.+?)\)", response.text)
    figure = await gateway.http.get(str(response.request.url.join(target)))
    assert (figure.status_code, figure.content) == (200, b"\x89PNG a figure")


async def test_text_has_a_form_feed_between_pages_and_says_what_is_not_there(gateway: Gateway, letter: str) -> None:
    response = await result(gateway, letter, format="text")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    pages = response.text.split("\f")
    assert (len(pages), pages[0], pages[2]) == (5, "This is page 1.\n", "\n")
    assert pages[3].startswith("[Page 4 could not be read: The model wrote")
    assert pages[3].endswith("]\n\nHalf a page\n")
    assert "(page_looped)" in pages[4]


async def test_html_is_one_document_that_cannot_do_anything(gateway: Gateway, letter: str) -> None:
    response = await result(gateway, letter, format="html")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "script" not in policy
    assert response.text.count("<section") == response.text.count("</section>") == 5
    assert "<title>Büro &lt;1&gt;.pdf</title>" in response.text
    figure = base64.b64encode(b"\x89PNG a figure").decode()
    assert f'<img src="data:image/png;base64,{figure}" alt="A cat.">' in response.text
    assert "Page 5 could not be read" in response.text


async def test_zip_holds_all_formats_and_the_files_that_they_refer_to(gateway: Gateway, letter: str) -> None:
    response = await result(gateway, letter, format="zip")
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert archive.testzip() is None
    assert set(archive.namelist()) == {
        *(f"document.{kind}" for kind in ("json", "md", "txt", "html")),
        *(f"files/{image_name(number)}" for number in range(1, 6)),
        f"files/{FIGURE}",
        "files/searchable.pdf",
    }
    assert archive.read(f"files/{FIGURE}") == b"\x89PNG a figure"
    assert archive.read("files/searchable.pdf") == PDF
    assert archive.read("document.md").decode() == (await result(gateway, letter, format="markdown")).text
    assert archive.read("document.txt").decode() == (await result(gateway, letter, format="text")).text
    assert f'<img src="files/{FIGURE}"' in archive.read("document.html").decode()
    told = DocumentResult.model_validate_json(archive.read("document.json"))
    assert [figure.link for figure in told.pages[1].figures] == [f"files/{FIGURE}"]
    assert told.searchable_pdf == "files/searchable.pdf"


async def test_the_searchable_pdf_is_given_or_it_is_said_how_to_get_one(gateway: Gateway, letter: str) -> None:
    response = await result(gateway, letter, format="pdf")
    assert (response.content, response.headers["content-type"]) == (PDF, "application/pdf")
    for options, says in (({}, "searchable_pdf=true"), ({"searchable_pdf": "true"}, "makes none")):
        without = await result(gateway, f"/api/jobs/{await read(gateway, page(1), **options)}", format="pdf")
        assert refusal(without) == (404, "no_searchable_pdf")
        assert says in without.json()["detail"]


async def test_figures_beyond_what_a_page_of_html_may_hold_are_linked(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_formats, "MOST_EMBEDDED", 20)
    names = [figure_name(1, index) for index in (1, 2)]
    record = replace(page_with_figure(1), markdown=" ".join(f"![]({name})" for name in names), figures=tuple(names))
    response = await result(gateway, f"/api/jobs/{await read(gateway, record)}", format="html")
    embedded, linked = re.findall(r'<img src="(.+?)"', response.text)
    assert base64.b64decode(embedded.removeprefix("data:image/png;base64,")) == b"\x89PNG a figure"
    figure = await gateway.http.get(str(response.request.url.join(linked)))
    assert (linked, figure.content) == (f"files/{names[1]}", b"\x89PNG a figure")
    assert "img-src data: 'self';" in response.headers["content-security-policy"]


async def test_a_long_document_comes_page_by_page(gateway: Gateway) -> None:
    path = f"/api/jobs/{await read(gateway, *(page(number) for number in range(1, 151)))}"
    assert [found["number"] for found in (await result(gateway, path)).json()["pages"]] == list(range(1, 151))
    assert (await result(gateway, path, format="text")).text.count("\f") == 149


async def test_head_says_what_get_would_and_reads_no_page(
    gateway: Gateway, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {
        path: await gateway.http.get(f"{letter}/{path}")
        for path in ("result", "result?format=html", "result?format=zip", "result?format=pdf", f"files/{FIGURE}")
    }

    async def none_is_read(*_: object) -> AsyncIterator[StoredPage]:
        pytest.fail("a page was read")
        yield

    monkeypatch.setattr(Pages, "each", none_is_read)
    for path, response in whole.items():
        head = await gateway.http.head(f"{letter}/{path}")
        assert (head.status_code, head.headers) == (200, response.headers)
    assert (await gateway.http.head(f"{letter}/files/x")).status_code == 404


async def test_files_come_with_their_size_and_a_name_to_be_kept_by(gateway: Gateway, letter: str) -> None:
    job_id = letter.rpartition("/")[2]
    for path, size, disposition in (
        (f"files/{FIGURE}", 13, f'inline; filename="{FIGURE}"'),
        ("files/page-0001.jpg", 9, 'inline; filename="page-0001.jpg"'),
        ("files/searchable.pdf", len(PDF), 'attachment; filename="searchable.pdf"'),
        ("result?format=pdf", len(PDF), f'attachment; filename="{job_id}.pdf"'),
        ("result?format=zip", None, f'attachment; filename="{job_id}.zip"'),
    ):
        headers = (await gateway.http.get(f"{letter}/{path}")).headers
        assert headers.get("content-length") == (None if size is None else str(size))
        assert headers["content-disposition"] == disposition


# What the model wrote is hostile.

HOSTILE = {
    "<script>alert(1)</script>": "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<img src=x onerror=alert(1)>": "<img>",
    "<svg/onload=alert(1)>": "&lt;svg/onload=alert(1)&gt;",
    "[a](javascript:alert(1))": "[a](javascript:alert(1))",
    '<a href="javascript:alert(1)">a</a>': '<a rel="noopener noreferrer nofollow">a</a>',
    '<a href="java&#9;script:alert(1)">a</a>': '<a rel="noopener noreferrer nofollow">a</a>',
    "![a](https://evil.example/pixel.png)": '<img alt="a">',
    '<td style="background:url(//evil.example)" onclick="x()">b</td>': "b",
    "</section></body><iframe src=//evil.example>": "&lt;iframe src=//evil.example&gt;",
    "<style>body{display:none}</style>": "&lt;style&gt;",
    '<meta http-equiv="refresh" content="0;url=//evil.example">': "&lt;meta",
    "<base href=//evil.example>": "&lt;base",
    "<form action=//evil.example><input></form>": "&lt;form",
    "<!-- open": "&lt;!-- open",
}


async def test_nothing_that_a_model_writes_runs_or_is_fetched_or_gets_lost(gateway: Gateway) -> None:
    records = [page(number, f"{payload}\n\nafter") for number, payload in enumerate(HOSTILE, start=1)]
    html = (await result(gateway, f"/api/jobs/{await read(gateway, *records)}", format="html")).text
    sections = re.findall(r'<section id="page-\d+">.*?</section>', html, re.DOTALL)
    assert len(sections) == len(HOSTILE)
    for section, expected in zip(sections, HOSTILE.values(), strict=True):
        assert expected in section
        assert "after" in section
        tags = re.findall(r"<[^>]*>", section)
        assert not [tag for tag in tags if re.search(r"script|\son\w+=|style|evil|src=", tag)]


async def test_what_is_in_html_of_a_table_is_kept(gateway: Gateway) -> None:
    table = "<table><tr><th colspan=2>Sum</th></tr><tr><td>1</td><td>2</td></tr></table>"
    piped = "| a | b |\n|---|--:|\n| 1 | 2 |"
    html = (
        await result(gateway, f"/api/jobs/{await read(gateway, page(1, table), page(2, piped))}", format="html")
    ).text
    assert '<th colspan="2">Sum</th>' in html
    assert '<td align="right">2</td>' in html


# The picture with boxes.


async def test_the_overlay_draws_the_boxes_over_the_picture(gateway: Gateway, letter: str) -> None:
    response = await result(gateway, letter, overlay=1, page=2)
    assert response.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in response.headers["content-security-policy"]
    assert f"data:image/jpeg;base64,{base64.b64encode(bytes([255, 216]) + b' a page').decode()}" in response.text
    assert 'viewBox="0 0 2000 1000"' in response.text
    assert 'x="10" y="20" width="290" height="380"' in response.text
    assert ">2 figure</text><title>A cat.</title>" in response.text


async def test_an_overlay_needs_no_page_and_a_picture(gateway: Gateway, letter: str) -> None:
    assert "Page 1</title>" in (await result(gateway, letter, overlay="true")).text
    not_drawn = await read(gateway, replace(failed_page(1), width=0, height=0))
    assert refusal(await result(gateway, f"/api/jobs/{not_drawn}", overlay=1)) == (404, "file_not_found")
    assert refusal(await result(gateway, letter, overlay=1, page=6)) == (404, "page_not_found")


# Refusals.


async def test_a_query_that_cannot_be_is_refused(gateway: Gateway, letter: str) -> None:
    for query in (
        {"format": "docx"},
        {"fromat": "html"},
        {"overlay": "maybe"},
        {"page": "2"},
        {"overlay": "1", "page": "0"},
        {"overlay": "1", "format": "html"},
    ):
        assert refusal(await result(gateway, letter, **query)) == (400, "invalid_query")


async def test_there_is_no_result_before_the_end(gateway: Gateway) -> None:
    path = f"/api/jobs/{await submitted(gateway)}"
    refused = await result(gateway, path)
    assert refusal(refused) == (409, "job_not_finished")
    assert (refused.json()["job_status"], refused.headers["retry-after"]) == ("queued", "1")
    reader = await Reader.claims(gateway)
    await reader.ends(page(1), total=2)
    assert refusal(await result(gateway, path, format="zip")) == (409, "job_not_finished")
    overlay = await result(gateway, path, overlay=1)
    assert overlay.status_code == 200
    assert refusal(await result(gateway, path, overlay=1, page=2)) == (409, "page_not_finished")


async def test_a_job_that_failed_says_why_instead_of_a_result(gateway: Gateway) -> None:
    path = f"/api/jobs/{await submitted(gateway)}"
    reader = await Reader.claims(gateway)
    await reader.ends(page(1), total=2)
    await reader.broker.queue.fail(reader.job, Failure("page_looped", "Too many pages cannot be read.", permanent=True))
    refused = await result(gateway, path, format="html")
    assert refusal(refused) == (409, "job_without_result")
    assert "Too many pages cannot be read (page_looped)" in refused.json()["detail"]
    assert refused.json()["error"]["code"] == "page_looped"
    assert (await gateway.http.get(f"{path}/pages/1")).status_code == 200
    assert refusal(await gateway.http.get(f"{path}/pages/2")) == (404, "page_not_found")


async def test_what_is_no_document_has_its_result_as_json_alone(gateway: Gateway) -> None:
    response = await gateway.http.post("/api/chat", json={"message": "Hi."})
    path = response.headers["location"]
    [job] = (await gateway.broker.queue.claim("simulator", "a test")).jobs
    told = {"message": {"role": "assistant", "content": "Ho."}, "finish_reason": "stop"}
    assert await gateway.broker.queue.complete(job, {"result": told})
    assert (await result(gateway, path)).json() == told
    assert refusal(await result(gateway, path, format="markdown")) == (400, "format_not_available")
    assert refusal(await result(gateway, path, overlay=1)) == (404, "page_not_found")
    assert (await gateway.http.get(path)).json()["pages"] is None


async def test_nobody_elses_documents_can_be_looked_at(gateway: Gateway, letter: str) -> None:
    users = Users(gateway.broker.database.handle)
    await users.create("bob", "bob-password", "user")
    bob = {"Authorization": f"Bearer {await gateway.token('bob', 'bob-password')}"}
    for path in ("result", "result?overlay=1", "pages/1", f"files/{FIGURE}", "files/searchable.pdf", "events"):
        assert refusal(await gateway.http.get(f"{letter}/{path}", headers=bob)) == (404, "job_not_found")


# Pages and files.


async def test_a_page_is_given_as_soon_as_it_has_ended(gateway: Gateway) -> None:
    path = f"/api/jobs/{await submitted(gateway)}"
    assert refusal(await gateway.http.get(f"{path}/pages/1")) == (409, "page_not_finished")
    reader = await Reader.claims(gateway)
    await reader.begins(1)
    await reader.begins(2)
    await reader.ends(page_with_figure(2), total=3)
    found = await gateway.http.get(f"{path}/pages/2")
    check(DOCUMENT, found)
    assert [figure.name for figure in Page.model_validate_json(found.content).figures] == [FIGURE]
    for number in (1, 3):
        answer = await gateway.http.get(f"{path}/pages/{number}")
        assert refusal(answer) == (409, "page_not_finished")
        assert answer.headers["retry-after"] == "1"
    for number in ("4", "0", "-1", "01", "x", "1" * 30):
        assert refusal(await gateway.http.get(f"{path}/pages/{number}")) == (404, "page_not_found")


async def test_a_page_that_was_not_asked_for_is_not_found(gateway: Gateway) -> None:
    path = f"/api/jobs/{await submitted(gateway, pages='2-3,7')}"
    assert refusal(await gateway.http.get(f"{path}/pages/7")) == (409, "page_not_finished")
    assert refusal(await gateway.http.get(f"{path}/pages/4")) == (404, "page_not_found")


async def test_only_files_of_the_document_are_given(gateway: Gateway, letter: str) -> None:
    for name in ("page-0001-figure-01.png", "page-0009.jpg", "..%2f..%2fetc%2fpasswd", "page-0001.jpg%00", "x", "page"):
        assert (await gateway.http.get(f"{letter}/files/{name}")).status_code == 404
    assert refusal(await gateway.http.get(f"{letter}/files/page-0001-figure-01.png")) == (404, "file_not_found")


async def test_a_file_that_the_store_has_lost_is_said_to_be_gone(gateway: Gateway, letter: str) -> None:
    stored = await gateway.broker.pages.get(ObjectId(letter.rpartition("/")[2]), 2)
    assert stored is not None
    await gateway.broker.files.delete(stored.files[FIGURE])
    assert refusal(await gateway.http.get(f"{letter}/files/{FIGURE}")) == (410, "file_missing")


async def test_a_document_that_was_read_before_has_pages_and_files_of_its_own_address(gateway: Gateway) -> None:
    earlier = await read(gateway, page(1), page_with_figure(2), searchable=True)
    upload = {"file": ("again.pdf", documents.scanned_pdf(1))}
    path = (await gateway.http.post("/api/ocr", files=upload)).headers["location"]
    assert earlier not in path
    body = (await result(gateway, path)).json()
    assert [found["number"] for found in body["pages"]] == [1, 2]
    for link in (body["searchable_pdf"], body["pages"][1]["figures"][0]["link"], f"{path}/pages/2"):
        assert link.startswith(path)
        assert (await gateway.http.get(link)).status_code == 200
    told = (await gateway.http.get(path)).json()
    assert (told["pages_done"], told["pages_total"]) == (2, 2)
    events = (await gateway.http.get(f"{path}/events")).text
    assert (events.count("event: page"), events.count("event: end")) == (2, 1)
    assert 'data: {"done":2,"total":2,"unit":"pages"}' in events


# The job itself.


async def test_a_job_tells_how_far_its_pages_are(gateway: Gateway) -> None:
    path = f"/api/jobs/{await submitted(gateway)}"

    async def told() -> tuple[Any, ...]:
        response = await gateway.http.get(path)
        check(DOCUMENT, response)
        body = response.json()
        pages = [(found["number"], found["status"]) for found in body["pages"]]
        return body["pages_done"], body["pages_total"], pages

    assert await told() == (0, None, [])
    reader = await Reader.claims(gateway)
    await reader.begins(1)
    await reader.ends(blank_page(2), total=3)
    assert await told() == (1, 3, [(1, "processing"), (2, "blank")])
    await reader.ends(page(1), failed_page(3), total=3)
    await reader.completes()
    assert await told() == (3, 3, [(1, "completed"), (2, "blank"), (3, "failed")])
    assert "pages" not in (await gateway.http.get("/api/jobs")).json()["jobs"][0]


async def test_a_job_links_to_the_files_of_its_result(gateway: Gateway, letter: str) -> None:
    files = (await gateway.http.get(letter)).json()["result"]["files"]
    assert files == {"searchable.pdf": f"{letter}/files/searchable.pdf"}
    assert (await gateway.http.get(files["searchable.pdf"])).content == PDF


# From beginning to end.


async def test_what_a_worker_reads_comes_in_each_format(gateway: Gateway, worker: Worker) -> None:
    files = {"file": ("letter.pdf", LETTER.read_bytes())}
    options = {"text": "ocr", "searchable_pdf": "true", "language": "eng"}
    response = await gateway.http.post("/api/ocr?wait=60", files=files, data=options)
    assert response.json()["status"] == "completed", response.text
    path = response.headers["location"]
    body = DocumentResult.model_validate_json((await result(gateway, path)).content)
    assert [(found.number, found.status, found.engine) for found in body.pages] == [
        (1, "completed", "tesseract"),
        (2, "completed", "tesseract"),
    ]
    assert all(block.bbox is not None and block.text for block in body.pages[0].blocks)
    words = (SAMPLES / "letter.txt").read_text().split()[:3]
    assert (await result(gateway, path, format="text")).text.split()[:3] == words
    for wanted in ("markdown", "html"):
        assert " ".join(words[:2]) in (await result(gateway, path, format=wanted)).text
    assert (await result(gateway, path, format="pdf")).content.startswith(b"%PDF-")
    names = zipfile.ZipFile(io.BytesIO((await result(gateway, path, format="zip")).content)).namelist()
    assert {"files/page-0001.jpg", "files/page-0002.jpg", "files/searchable.pdf"} <= set(names)
    assert (await result(gateway, path, overlay=1, page=2)).text.count("<rect") == len(body.pages[1].blocks)
    told = await gateway.http.get(f"{path}/events")
    assert [line for line in told.text.splitlines() if line.startswith("event: ")][-1] == "event: end"

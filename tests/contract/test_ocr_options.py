"""What there is to choose about a document: the same in each of the three ways in, and stored in one form."""

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from bson import ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from tests import documents
from tests.deployments import Gateway, default_config, gateway_on, make_settings

PNG = documents.page_png()


async def send(gateway: Gateway, way: str, options: dict[str, Any]) -> httpx.Response:
    texts = {key: str(value).lower() if isinstance(value, bool) else value for key, value in options.items()}
    match way:
        case "json":
            url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
            content = [{"type": "image_url", "image_url": {"url": url}}]
            body = {"messages": [{"role": "user", "content": content}], "options": options}
            return await gateway.http.post("/api/ocr", json=body)
        case "form":
            return await gateway.http.post("/api/ocr", files={"file": ("page.png", PNG)}, data=texts)
        case _:
            return await gateway.http.post("/api/ocr", content=PNG, params=texts)


async def stored_options(gateway: Gateway, response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 202, response.text
    job = await gateway.broker.database.jobs.find_one({"_id": ObjectId(response.json()["request_id"])})
    assert job is not None
    options: dict[str, Any] = job["payload"]["options"]
    return options


WAYS = pytest.mark.parametrize("way", ["json", "form", "query"])


@WAYS
async def test_each_option_is_stored_as_it_was_given(gateway: Gateway, way: str) -> None:
    given = {
        "pages": "1-3,7",
        "text": "embedded",
        "instruction": "locate",
        "term": "the signature",
        "searchable_pdf": True,
        "resolution": "small",
    }
    assert await stored_options(gateway, await send(gateway, way, given)) == given


@WAYS
async def test_what_is_not_given_is_not_stored(gateway: Gateway, way: str) -> None:
    assert await stored_options(gateway, await send(gateway, way, {})) == {}


@WAYS
async def test_pages_are_stored_in_one_form(gateway: Gateway, way: str) -> None:
    asked = {"7,1-3": "1-3,7", "3,2,1": "1-3", "1-5,2-3, 6": "1-6", "007": "7", " 1 - 2 , 2": "1-2", "4-4": "4"}
    for pages, canonical in asked.items():
        assert await stored_options(gateway, await send(gateway, way, {"pages": pages})) == {"pages": canonical}


NO_PAGES = ["", ",", "0", "3-1", "1-", "-3", "1;2", "all", "1,,2", "1234567", "٣", "1-2-3", ",".join(["1"] * 501)]


@WAYS
async def test_pages_that_cannot_be_are_refused_with_the_right_form(gateway: Gateway, way: str) -> None:
    for pages in NO_PAGES:
        response = await send(gateway, way, {"pages": pages})
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request"), pages
        assert "e.g. 1-3,7" in response.json()["detail"]
        assert "pages" in response.json()["errors"][0]["loc"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"instruction": "locate"}, "needs a term"),
    ({"instruction": "locate", "term": "  "}, "term"),
    ({"instruction": "document", "term": "x"}, "only with the instruction locate"),
    ({"term": "x"}, "only with the instruction locate"),
    ({"instruction": "locate", "term": "x" * 1001}, "term"),
    ({"instruction": "summarise"}, "instruction"),
    ({"text": "yes"}, "text"),
    ({"resolution": "huge"}, "resolution"),
    ({"searchable_pdf": "maybe"}, "searchable_pdf"),
]


@WAYS
async def test_what_cannot_be_chosen_is_refused(gateway: Gateway, way: str) -> None:
    for options, says in REFUSED:
        response = await send(gateway, way, options)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
        assert says in response.json()["detail"]


async def test_a_prompt_may_come_with_an_instruction(gateway: Gateway) -> None:
    response = await gateway.http.post(
        "/api/ocr", files={"file": ("page.png", PNG)}, data={"prompt": "Read.", "instruction": "text"}
    )
    assert await stored_options(gateway, response) == {"instruction": "text"}


async def test_what_was_read_in_another_mode_is_no_answer(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    config = default_config()
    config["models"]["deepseek"] = {"task": "ocr", "engine": "vllm", "resolution": "gundam"}
    async with gateway_on(make_settings(tmp_path, mongod_uri, database.name, config)) as gateway:

        async def fingerprint(**headers: str) -> str | None:
            response = await gateway.http.post("/api/ocr?model=deepseek", content=PNG, headers=headers)
            return (await gateway.broker.reader.get(response.json()["request_id"], None)).fingerprint

        of_the_entry, of_the_job = await fingerprint(), await fingerprint(**{"X-Resolution": "tiny"})
        await gateway.broker.desired.set_resolution("deepseek", "admin", "base")
        assert await fingerprint() not in (of_the_entry, of_the_job)
        assert await fingerprint(**{"X-Resolution": "tiny"}) == of_the_job
        await gateway.broker.desired.set_resolution("deepseek", "admin", "gundam")
        assert await fingerprint() == of_the_entry

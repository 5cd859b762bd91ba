"""Files of OpenAI's API: sent, listed, read back and deleted."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from gateway.v1.batches import files
from gateway.v1.batches import work as batch_work
from tests.contract.test_jobs import add_user
from tests.deployments import Gateway

CONTENT = b'{"custom_id": "one"}\n' * 3


async def send(gateway: Gateway, content: bytes = CONTENT, **how: Any) -> httpx.Response:
    how = {"data": {"purpose": "batch"}, "files": {"file": ("requests.jsonl", content)}} | how
    return await gateway.http.post("/v1/files", **how)


async def sent(gateway: Gateway, content: bytes = CONTENT, **how: Any) -> str:
    response = await send(gateway, content, **how)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error in OpenAI's shape."""
    error = response.json()["error"]
    assert error["message"]
    return response.status_code, error["code"]


async def chunks(gateway: Gateway) -> int:
    return await gateway.broker.database.handle["files.chunks"].count_documents({})


async def test_a_file_is_kept_as_it_was_sent(gateway: Gateway) -> None:
    response = await send(gateway)
    told = response.json()
    assert told["id"].startswith("file-")
    assert len(told["id"]) == len("file-") + 24
    expected = {"object": "file", "bytes": len(CONTENT), "filename": "requests.jsonl", "purpose": "batch"}
    assert {key: told[key] for key in expected} == expected
    assert (await gateway.http.get(f"/v1/files/{told['id']}")).json() == told
    content = await gateway.http.get(f"/v1/files/{told['id']}/content")
    assert content.content == CONTENT
    assert content.headers["content-length"] == str(len(CONTENT))


async def test_a_file_of_many_chunks_is_kept_whole(gateway: Gateway) -> None:
    content = bytes(range(256)) * 8192
    file = await sent(gateway, content)
    assert await chunks(gateway) > 1
    assert (await gateway.http.get(f"/v1/files/{file}/content")).content == content


async def test_the_purpose_may_come_after_the_file(gateway: Gateway) -> None:
    body = (
        b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\r\n'
        b'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--XX--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=XX"}
    response = await gateway.http.post("/v1/files", content=body, headers=headers)
    assert response.json()["purpose"] == "user_data"


FILE = {"file": ("a.jsonl", CONTENT)}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"data": {"purpose": "fine-tune"}}, (400, "invalid_request")),
        ({"data": {}}, (400, "invalid_request")),
        ({"data": {"purpose": "batch", "colour": "red"}}, (400, "invalid_request")),
        ({"data": {"purpose": "b" * 2000}}, (400, "invalid_request")),
        ({"files": {"other": ("a", b"x")}}, (400, "no_file")),
        ({"files": {"file": (None, b"x")}}, (400, "no_file")),
        ({"files": {"file": ("a", b"")}}, (400, "empty_body")),
        ({"files": [("file", ("a", b"x")), ("file", ("b", b"y"))]}, (400, "several_documents")),
        ({"files": None, "data": None, "json": {}}, (415, "unsupported_media_type")),
    ],
)
async def test_a_form_that_is_not_as_it_should_be_leaves_nothing(
    gateway: Gateway, how: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert refusal(await send(gateway, **how)) == expected
    assert await chunks(gateway) == 0
    assert (await gateway.http.get("/v1/files")).json()["data"] == []


async def test_a_form_that_breaks_off_leaves_nothing(gateway: Gateway) -> None:
    body = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + CONTENT
    headers = {"Content-Type": "multipart/form-data; boundary=XX"}
    response = await gateway.http.post("/v1/files", content=body, headers=headers)
    assert refusal(response) == (400, "invalid_multipart")
    assert await chunks(gateway) == 0


async def test_a_file_that_is_too_long_is_refused_while_it_comes(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.LIMIT == batch_work.LIMIT == 200 * 2**20
    monkeypatch.setattr(files, "LIMIT", 2**20)

    async def endless() -> AsyncIterator[bytes]:
        yield b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        while True:
            yield b"x" * 65_536

    headers = {"Content-Type": "multipart/form-data; boundary=XX"}
    response = await gateway.http.post("/v1/files", content=endless(), headers=headers)
    assert refusal(response) == (413, "payload_too_large")
    assert "1 MB" in response.json()["error"]["message"]
    assert await chunks(gateway) == 0


async def listed(gateway: Gateway, **query: Any) -> tuple[list[str], bool]:
    response = await gateway.http.get("/v1/files", params=query)
    assert response.status_code == 200, response.text
    body = response.json()
    ids = [file["id"] for file in body["data"]]
    assert (body["first_id"], body["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    return ids, body["has_more"]


async def test_files_are_listed_by_age_page_by_page(gateway: Gateway) -> None:
    ids = [await sent(gateway) for _ in range(5)]
    other = await sent(gateway, data={"purpose": "user_data"})
    assert await listed(gateway) == ([other, *reversed(ids)], False)
    assert await listed(gateway, purpose="user_data") == ([other], False)
    assert await listed(gateway, order="asc", limit=2) == (ids[:2], True)
    assert await listed(gateway, order="asc", limit=2, after=ids[1]) == (ids[2:4], True)
    assert await listed(gateway, limit=5, after=ids[2]) == ([ids[1], ids[0]], False)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"limit": "0"}, "invalid_query"),
        ({"limit": "x"}, "invalid_query"),
        ({"order": "up"}, "invalid_query"),
        ({"after": "batch_000000000000000000000000"}, "invalid_cursor"),
    ],
)
async def test_a_list_is_asked_for_rightly_or_not_given(gateway: Gateway, query: dict[str, str], code: str) -> None:
    assert refusal(await gateway.http.get("/v1/files", params=query)) == (400, code)


async def test_a_deleted_file_is_gone_with_what_it_held(gateway: Gateway) -> None:
    file = await sent(gateway)
    deleted = await gateway.http.delete(f"/v1/files/{file}")
    assert deleted.json() == {"id": file, "object": "file", "deleted": True}
    assert await chunks(gateway) == 0
    for response in (
        await gateway.http.get(f"/v1/files/{file}"),
        await gateway.http.get(f"/v1/files/{file}/content"),
        await gateway.http.delete(f"/v1/files/{file}"),
    ):
        assert refusal(response) == (404, "file_not_found")


@pytest.mark.parametrize("file", ["file-000000000000000000000000", "file-1", "000000000000000000000000", "x"])
async def test_there_is_no_file_of_another_name(gateway: Gateway, file: str) -> None:
    assert refusal(await gateway.http.get(f"/v1/files/{file}")) == (404, "file_not_found")


async def test_only_its_owner_and_admins_know_of_a_file(gateway: Gateway) -> None:
    bob, eve = await add_user(gateway, "bob"), await add_user(gateway, "eve")
    form: dict[str, Any] = {"data": {"purpose": "batch"}, "files": FILE}
    file = (await gateway.http.post("/v1/files", headers=bob, **form)).json()["id"]
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        response = await gateway.http.request(method, f"/v1/files/{file}{path}", headers=eve)
        assert refusal(response) == (404, "file_not_found")
    assert (await gateway.http.get("/v1/files", headers=eve)).json()["data"] == []
    assert [found["id"] for found in (await gateway.http.get("/v1/files", headers=bob)).json()["data"]] == [file]
    assert (await gateway.http.get(f"/v1/files/{file}")).status_code == 200


async def test_files_that_are_known_are_not_swept_and_others_are(gateway: Gateway) -> None:
    file = await sent(gateway)
    store = gateway.broker.files
    other = await sent(gateway, b"forgotten")
    await gateway.broker.database.uploads.delete_one({"_id": {"$ne": None}, "size": len(b"forgotten")})
    assert await store.sweep(timedelta(seconds=-5)) == 1
    assert (await gateway.http.get(f"/v1/files/{file}/content")).content == CONTENT
    assert refusal(await gateway.http.get(f"/v1/files/{other}")) == (404, "file_not_found")

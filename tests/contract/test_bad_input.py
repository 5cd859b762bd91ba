"""Bad input: each with the status and the code that a client may rely on."""

import base64
import json
import time

import pytest
from jose import jwt

from gateway.users import Users
from tests import documents
from tests.deployments import JWT_SECRET, Gateway
from worker.worker import Worker

JSON = {"Content-Type": "application/json"}
MEGABYTE = 2**20


def problem_of(response):  # type: ignore[no-untyped-def]
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert body["detail"]
    return response.status_code, body["code"]


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b"", "application/pdf", (400, "empty_body")),
        (b"", "application/json", (400, "empty_body")),
        (b"{", "application/json", (400, "invalid_json")),
        (b"[1, 2", "application/json", (400, "invalid_json")),
        (b"\xff\xfe", "application/json", (400, "invalid_json")),
        (documents.text_named_png(), "image/png", (415, "unsupported_media_type")),
        (b"GIF89a" + bytes(100), "image/png", (415, "unsupported_media_type")),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", (415, "unsupported_media_type")),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(50), "application/postscript", (415, "unsupported_media_type")),
        (b"x" * (11 * MEGABYTE), "image/png", (413, "payload_too_large")),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else None,
)
async def test_a_body_that_is_no_document_is_refused(
    gateway: Gateway, content: bytes, content_type: str, expected: tuple[int, str]
) -> None:
    response = await gateway.http.post("/api/ocr", content=content, headers={"Content-Type": content_type})
    assert problem_of(response) == expected


async def test_a_form_in_a_character_set_that_is_none_is_refused(gateway: Gateway) -> None:
    content = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ntesseract\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b; charset=undefined"}
    assert problem_of(await gateway.http.post("/api/ocr", content=content, headers=headers))[0] == 400


async def test_a_form_without_a_file_is_refused(gateway: Gateway) -> None:
    response = await gateway.http.post("/api/ocr", files={"model": (None, "tesseract")})
    assert problem_of(response) == (400, "no_file")


async def test_eleven_megabytes_are_refused_in_each_form(gateway: Gateway) -> None:
    large = documents.page_png() + bytes(11 * MEGABYTE)
    url = f"data:image/png;base64,{base64.b64encode(large).decode()}"
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    for response in (
        await gateway.http.post("/api/ocr", files={"file": ("large.png", large)}),
        await gateway.http.post("/api/ocr", json={"messages": messages}),
    ):
        assert problem_of(response) == (413, "payload_too_large")


async def test_messages_without_a_document_are_refused(gateway: Gateway) -> None:
    response = await gateway.http.post("/api/ocr", json={"messages": [{"role": "user", "content": "read this"}]})
    assert problem_of(response) == (400, "no_file")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (documents.truncated_jpeg, "truncated_document"),
        (documents.truncated_pdf, "truncated_document"),
        (documents.encrypted_pdf, "encrypted_document"),
        (documents.zero_page_pdf, "no_pages"),
        (documents.png_bomb, "image_too_large"),
        (documents.tiff_of_frames, "too_many_pages"),
    ],
)
async def test_a_document_that_cannot_be_read_fails_at_once_with_the_reason(
    gateway: Gateway,
    worker: Worker,
    make,  # type: ignore[no-untyped-def]
    code: str,
) -> None:
    response = await gateway.http.post("/api/ocr?wait=60", content=make())
    body = response.json()
    assert response.status_code == 200, "the answer is the job, and the job has failed"
    assert (body["status"], body["error"]["code"], body["attempts"]) == ("failed", code, 1)
    assert body["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "expected"),
    [
        ("/api/chat", {"message": "hi", "model": "gpt-12"}, {}, (404, "model_not_found")),
        ("/api/chat", {"message": "hi", "model": "tesseract"}, {}, (400, "wrong_task")),
        ("/api/chat", {"message": "hi"}, {"X-Priority": "urgent"}, (400, "invalid_priority")),
        ("/api/chat", {"message": "hi"}, {"X-Client-ID": "x" * 200}, (400, "invalid_client_id")),
        ("/api/chat?wait=soon", {"message": "hi"}, {}, (400, "invalid_wait")),
        ("/api/chat", {"message": "hi", "colour": "red"}, {}, (400, "invalid_request")),
        ("/api/chat", {}, {}, (400, "invalid_request")),
        ("/api/chat", {"message": "hi", "temperature": "hot"}, {}, (400, "invalid_request")),
    ],
)
async def test_a_request_that_asks_for_what_there_is_not_is_refused(
    gateway: Gateway, path: str, body: dict[str, object], headers: dict[str, str], expected: tuple[int, str]
) -> None:
    assert problem_of(await gateway.http.post(path, json=body, headers=headers)) == expected


async def test_an_unknown_resolution_is_refused(gateway: Gateway) -> None:
    response = await gateway.http.post("/api/ocr", content=documents.page_png(), headers={"X-Resolution": "huge"})
    assert problem_of(response) == (400, "invalid_resolution")


async def test_a_model_that_was_asked_for_in_vain_is_remembered(gateway: Gateway) -> None:
    for _ in range(2):
        await gateway.http.post("/api/chat", json={"message": "hi", "model": "gpt.$12"})
    missing = (await gateway.http.get("/admin/missing-models")).json()["missing_models"]
    assert [(model["name"], model["count"], model["last_subject"]) for model in missing] == [("gpt.$12", 2, "admin")]


async def test_a_list_that_is_full_of_such_models_makes_room(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.registry.MISSING_LIMIT", 2)
    for name in ("often", "often", "once", "new", "newer"):
        await gateway.http.post("/api/chat", json={"message": "hi", "model": name})
    missing = (await gateway.http.get("/admin/missing-models")).json()["missing_models"]
    assert [model["name"] for model in missing] == ["often", "newer"]


async def test_a_priority_above_the_roles_cap_is_refused(gateway: Gateway) -> None:
    await Users(gateway.broker.database.handle).create("bob", "bobs-password", "user")
    await gateway.sign_in("bob", "bobs-password")
    response = await gateway.http.post("/api/chat", json={"message": "hi"}, headers={"X-Priority": "high"})
    assert problem_of(response) == (403, "priority_not_allowed")


def claims(**changes: object) -> dict[str, object]:
    now = int(time.time())
    genuine = {
        "sub": "admin",
        "role": "admin",
        "typ": "access",
        "iat": now,
        "exp": now + 3600,
        "jti": "1",
        "aud": "roundhouse",
        "iss": "roundhouse",
    }
    return genuine | changes


def unsigned(body: dict[str, object]) -> str:
    parts = ({"alg": "none", "typ": "JWT"}, body)
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts) + "."


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (None, "token_missing"),
        ("nonsense", "token_invalid"),
        (jwt.encode(claims(exp=int(time.time()) - 60), JWT_SECRET), "token_expired"),
        (jwt.encode(claims(), "another key, as long as the first one"), "token_invalid"),
        (unsigned(claims()), "token_invalid"),
        (jwt.encode(claims(), JWT_SECRET, algorithm="HS512"), "token_invalid"),
        (jwt.encode(claims(aud="elsewhere"), JWT_SECRET), "token_invalid"),
        (jwt.encode(claims(iss="somebody"), JWT_SECRET), "token_invalid"),
        (jwt.encode(claims(typ="refresh"), JWT_SECRET), "token_invalid"),
    ],
    ids=["none", "nonsense", "expired", "other key", "alg none", "HS512", "audience", "issuer", "refresh"],
)
async def test_a_token_that_is_not_ours_and_fresh_opens_nothing(gateway: Gateway, token: str | None, code: str) -> None:
    del gateway.http.headers["Authorization"]
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    for method, path in (("GET", "/api/jobs"), ("POST", "/api/chat"), ("GET", "/admin/models")):
        response = await gateway.http.request(method, path, headers=headers)
        assert problem_of(response) == (401, code)
        assert response.headers["www-authenticate"].startswith("Bearer")


async def test_the_genuine_token_of_these_tests_is_taken(gateway: Gateway) -> None:
    headers = {"Authorization": f"Bearer {jwt.encode(claims(), JWT_SECRET)}"}
    assert (await gateway.http.get("/api/jobs", headers=headers)).status_code == 200


async def test_only_admins_see_the_operators_routes(gateway: Gateway) -> None:
    await Users(gateway.broker.database.handle).create("bob", "bobs-password", "user")
    await gateway.sign_in("bob", "bobs-password")
    for path in ("/admin/models", "/admin/queue/simulator", "/admin/crashes", "/admin/missing-models"):
        assert problem_of(await gateway.http.get(path)) == (403, "forbidden")


async def test_what_is_not_there_is_said_as_a_problem(gateway: Gateway) -> None:
    assert problem_of(await gateway.http.get("/api/nothing")) == (404, "not_found")
    for name in ("nothing", "no%2Fthing", "no%0Athing%0A"):
        assert problem_of(await gateway.http.get(f"/admin/queue/{name}")) == (404, "model_not_found")
    assert problem_of(await gateway.http.get("/api/jobs/nothing")) == (404, "job_not_found")
    wrong_method = await gateway.http.put("/api/jobs/nothing")
    assert problem_of(wrong_method) == (405, "method_not_allowed")
    assert wrong_method.headers["allow"] == "DELETE, GET, HEAD"


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=ten", "limit=1_0", "status=lost", "cursor=nonsense"])
async def test_a_list_asked_for_wrongly_is_refused(gateway: Gateway, query: str) -> None:
    status, code = problem_of(await gateway.http.get(f"/api/jobs?{query}"))
    assert (status, code) in [(400, "invalid_query"), (400, "invalid_cursor")]


async def test_what_is_too_long_for_a_url_is_sent_elsewhere(gateway: Gateway) -> None:
    body, headers = b"%PDF-1.4", {"Content-Type": "application/pdf"}
    response = await gateway.http.post("/api/ocr", params={"prompt": "x" * 2049}, content=body, headers=headers)
    assert problem_of(response) == (400, "invalid_query")
    assert "form or JSON" in response.json()["detail"]

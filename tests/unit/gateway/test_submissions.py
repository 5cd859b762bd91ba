import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from broker.job import Priority
from config import Settings, load_settings
from gateway.auth import Principal
from gateway.problems import Problem
from gateway.submissions import (
    CHAT_LIMIT,
    ChatSubmission,
    OcrSubmission,
    decode_data_url,
    preference,
    priority_of,
    read_chat,
    read_ocr,
    safe_name,
    submit_options,
    wait_seconds,
)
from tests.unit.gateway.asgi import request

MB = 2**20
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
PDF = b"%PDF-1.7\n" + b"\xff\x00" * 50


def data_url(document: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(document).decode()}"


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def messages(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def json_request(body: Any, headers: dict[str, str] | None = None, query: str = "") -> Request:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request(content, {"Content-Type": "application/json"} | (headers or {}), query)


def form_request(
    files: Any = None, data: Any = None, query: str = "", headers: dict[str, str] | None = None
) -> Request:
    built = httpx.Request("POST", "http://x", files=files, data=data)
    return request(built.read(), {"Content-Type": built.headers["content-type"]} | (headers or {}), query)


def raw_request(body: bytes | list[bytes], headers: dict[str, str] | None = None, query: str = "") -> Request:
    return request(body, headers, query)


async def refusal(req: Request, max_upload: int = 10 * MB) -> tuple[int, str]:
    with pytest.raises(Problem) as caught:
        await read_ocr(req, max_upload)
    return caught.value.status, caught.value.code


# The three ways in.


async def test_the_three_ways_in_give_the_same_document() -> None:
    ways = [
        json_request(messages(image(data_url(PNG)))),
        form_request({"file": ("page.png", PNG)}),
        raw_request([PNG[:100], b"", PNG[100:]], {"Content-Type": "image/png"}),
    ]
    submissions = [await read_ocr(way, 10 * MB) for way in ways]
    assert {(submission.document, submission.media_type) for submission in submissions} == {(PNG, "image/png")}


async def test_a_json_request_may_carry_all_that_there_is() -> None:
    body = {
        "model": "tesseract",
        "messages": [
            {"role": "system", "content": "Be exact."},
            {"role": "user", "content": [image(data_url(PNG)), text("Read this."), text("All of it.")]},
        ],
        "options": {"languages": "deu+eng", "resolution": "tiny"},
        "max_tokens": 100,
        "temperature": 0,
        "stream": False,
    }
    assert await read_ocr(json_request(body, {"X-Resolution": "Large"}), 10 * MB) == OcrSubmission(
        document=PNG,
        media_type="image/png",
        filename=None,
        model="tesseract",
        prompt="Be exact.\nRead this.\nAll of it.",
        options={"languages": ["deu", "eng"], "resolution": "large", "max_tokens": 100, "temperature": 0.0},
    )


async def test_the_url_may_stand_alone_as_some_clients_send_it() -> None:
    part = {"type": "image_url", "image_url": data_url(PDF, "application/pdf")}
    assert (await read_ocr(json_request(messages(part)), MB)).media_type == "application/pdf"


async def test_a_file_part_is_taken_with_its_name() -> None:
    part = {"type": "file", "file": {"file_data": data_url(PDF, "application/pdf"), "filename": "../a/b.pdf"}}
    submission = await read_ocr(json_request(messages(part)), MB)
    assert (submission.document, submission.filename) == (PDF, "b.pdf")


async def test_a_form_may_name_model_prompt_and_language() -> None:
    data = {"model": "m", "prompt": "Lies das.", "language": "deu"}
    submission = await read_ocr(form_request({"file": ("dir\\page 1.pdf", PDF)}, data), MB)
    assert (submission.model, submission.prompt, submission.options) == ("m", "Lies das.", {"languages": ["deu"]})
    assert submission.filename == "page 1.pdf"


async def test_the_query_says_it_for_a_raw_body() -> None:
    query = "model=m&prompt=Read%20it&language=deu%2Beng&wait=5"
    submission = await read_ocr(raw_request(PDF, {"X-Resolution": "base"}, query), MB)
    assert (submission.model, submission.prompt) == ("m", "Read it")
    assert submission.options == {"languages": ["deu", "eng"], "resolution": "base"}


@pytest.mark.parametrize(
    "content_type", ["", "image/png", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded"]
)
async def test_the_type_of_a_raw_body_is_told_from_its_bytes(content_type: str) -> None:
    assert (await read_ocr(raw_request(PDF, {"Content-Type": content_type}), MB)).media_type == "application/pdf"


async def test_a_document_of_just_the_limit_is_taken_each_way() -> None:
    document = PNG + bytes(MB - len(PNG))
    for way in (
        json_request(messages(image(data_url(document)))),
        form_request({"file": ("page.png", document)}),
        raw_request(document, {"Content-Length": str(MB)}),
    ):
        assert len((await read_ocr(way, MB)).document) == MB


# What is refused.


async def test_one_byte_too_many_is_refused_each_way() -> None:
    document = PNG + bytes(MB - len(PNG) + 1)
    for way in (
        json_request(messages(image(data_url(document)))),
        form_request({"file": ("page.png", document)}),
        raw_request([document[:-1], document[-1:]]),
    ):
        assert await refusal(way, MB) == (413, "payload_too_large")


@pytest.mark.parametrize("content_type", ["image/png", "application/json", "multipart/form-data; boundary=x"])
async def test_a_declared_length_is_refused_before_anything_is_read(content_type: str) -> None:
    headers = {"Content-Type": content_type, "Content-Length": str(100 * MB)}
    req = request([], headers)  # to read from it would fail
    assert await refusal(req) == (413, "payload_too_large")


@pytest.mark.parametrize("content_type", ["image/png", "application/json", "multipart/form-data; boundary=x"])
async def test_an_endless_body_is_refused_as_soon_as_it_is_too_long(content_type: str) -> None:
    preamble = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    events = [{"type": "http.request", "body": preamble, "more_body": True}]
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return events.pop() if events else {"type": "http.request", "body": bytes(65536), "more_body": True}

    endless = Request({**request(b"", {"Content-Type": content_type}).scope}, receive)
    assert await refusal(endless, MB) == (413, "payload_too_large")
    assert read < 50


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (raw_request(b""), (400, "empty_body")),
        (json_request(b""), (400, "empty_body")),
        (json_request(b" \n"), (400, "empty_body")),
        (json_request(messages(image("data:image/png;base64,"))), (400, "empty_body")),
        (form_request({"file": ("page.png", b"")}), (400, "empty_body")),
        (raw_request(b"", {"Content-Type": "multipart/form-data; boundary=x"}), (400, "invalid_multipart")),
        (
            raw_request(b"", {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "0"}),
            (400, "empty_body"),
        ),
        (raw_request(b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}), (400, "no_file")),
        (form_request({"other": ("page.png", PNG)}), (400, "no_file")),
        (form_request({"file": (None, "not a file")}), (400, "no_file")),
        (json_request(messages(text("Read this."))), (400, "no_file")),
        (json_request({"messages": [{"role": "user", "content": "Read this."}]}), (400, "no_file")),
        (raw_request(b"Some text, whatever its name."), (415, "unsupported_media_type")),
        (form_request({"file": ("page.png", b"text", "image/png")}), (415, "unsupported_media_type")),
        (json_request(messages(image(data_url(b"GIF89a" + bytes(99))))), (415, "unsupported_media_type")),
        (json_request(b"{"), (400, "invalid_json")),
        (json_request(b'{"messages": NaN}'), (400, "invalid_json")),
        (json_request(b'{"model": "\\ud800"}'), (400, "invalid_json")),
        (json_request(b"[" * 100_000), (400, "invalid_json")),
        (json_request(b"\xff\xfe{}"), (400, "invalid_json")),
        (json_request(messages(image("data:image/png;base64,a"))), (400, "invalid_base64")),
        (json_request(messages(image("data:image/png;base64,!!!!"))), (400, "invalid_base64")),
        (json_request(messages(image("data:image/png;base64,äöü="))), (400, "invalid_base64")),
        (json_request(messages(image("data:image/png,abc"))), (400, "invalid_base64")),
        (json_request(messages(image("data:"))), (400, "invalid_base64")),
        (json_request(messages(image("https://example.com/a.png"))), (400, "url_not_allowed")),
        (json_request(messages(image("file:///etc/passwd"))), (400, "url_not_allowed")),
        (json_request(messages(image(""))), (400, "url_not_allowed")),
        (json_request(messages(image(data_url(PNG)), image(data_url(PNG)))), (400, "several_documents")),
        (form_request([("file", ("a.png", PNG)), ("file", ("b.png", PNG))]), (400, "several_documents")),
        (form_request([("file", ("a.png", PNG))] * 9), (400, "invalid_multipart")),
        (raw_request(b"--x", {"Content-Type": "multipart/form-data"}), (400, "invalid_multipart")),
        (raw_request(b"rubbish", {"Content-Type": "multipart/form-data; boundary=x"}), (400, "invalid_multipart")),
        (raw_request(PDF, {"X-Resolution": "huge"}), (400, "invalid_resolution")),
        (raw_request(PDF, query="langauge=deu"), (400, "invalid_query")),
        (json_request(messages(image(data_url(PNG))), query="model=m"), (400, "invalid_query")),
        (raw_request(PDF, query="language=deu%2F..%2Feng"), (400, "invalid_request")),
        (form_request({"file": ("a.pdf", PDF)}, {"langauge": "deu"}), (400, "invalid_request")),
        (json_request([]), (400, "invalid_request")),
        (json_request({"messages": []}), (400, "invalid_request")),
        (json_request(messages(image(data_url(PNG))) | {"stream": True}), (400, "invalid_request")),
        (json_request(messages(image(data_url(PNG))) | {"model": ""}), (400, "invalid_request")),
    ],
)
async def test_bad_input_is_refused_with_its_code(way: Request, expected: tuple[int, str]) -> None:
    assert await refusal(way) == expected


async def test_a_form_that_breaks_off_is_refused() -> None:
    whole = await form_request({"file": ("page.png", PNG)}).body()
    boundary = whole[2 : whole.index(b"\r\n")].decode()
    for length in (20, len(whole) // 2, len(whole) - 20):
        cut = raw_request(whole[:length], {"Content-Type": f"multipart/form-data; boundary={boundary}"})
        assert await refusal(cut) == (400, "invalid_multipart")


async def test_each_fault_is_named_by_its_path_in_the_body() -> None:
    """Of the parts of a message the first one that is wrong."""
    parts = (image(data_url(PNG)) | {"detail": "high"}, {"type": "audio"}, {"type": "text"})
    body = {"messages": [{"role": "user", "content": [part, {}]} for part in parts]}
    with pytest.raises(Problem) as caught:
        await read_ocr(json_request(body | {"option": {}}), MB)
    assert caught.value.details["errors"] == [
        {"loc": "messages.0.content.0.detail", "msg": "Extra inputs are not permitted"},
        {"loc": "messages.1.content.0", "msg": "A part needs the type text, image_url or file"},
        {"loc": "messages.2.content.0.text", "msg": "Field required"},
        {"loc": "option", "msg": "Extra inputs are not permitted"},
    ]
    assert caught.value.message.startswith("messages.0.content.0.detail: ")


async def test_a_fault_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(Problem) as caught:
        await read_ocr(json_request({"messages": "secret words"}), MB)
    assert "secret" not in json.dumps(caught.value.body())


def test_base64_may_be_broken_into_lines() -> None:
    encoded = base64.encodebytes(PNG).decode().replace("\n", "\r\n")
    assert decode_data_url(f"DATA:image/png;charset=utf-8;BASE64,{encoded}", MB) == PNG


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        (None, None),
        ("", None),
        ("a.pdf", "a.pdf"),
        ("/etc/passwd", "passwd"),
        ("C:\\scans\\page 1.tif", "page 1.tif"),
        ("../", None),
        ("a\r\nb\0.pdf", "ab.pdf"),
        ("Büro-Übersicht.pdf", "Büro-Übersicht.pdf"),
        ("x" * 300 + ".pdf", "x" * 251 + ".pdf"),
    ],
)
def test_a_file_name_is_reduced_to_what_can_be_shown(name: str | None, safe: str | None) -> None:
    assert safe_name(name) == safe


# How it is to be queued and answered.


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "config.yaml").write_text(
        "server: {max_wait: 120}\nauth: {roles: {guest: {max_priority: low}}}\nmodels: {}\n"
    )
    return load_settings(tmp_path / "config.yaml", {})


def options(settings: Settings, role: str = "user", query: str = "", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return submit_options(request(headers=named, query=query), settings, Principal("ada", role))


def test_what_is_not_said_has_a_default(settings: Settings) -> None:
    found = options(settings)
    assert (found.client, found.priority, found.wait) == (None, Priority.NORMAL, None)


def test_headers_say_who_how_soon_and_how_long(settings: Settings) -> None:
    found = options(settings, "service", X_Client_ID="scanner 7", X_Priority="High", Prefer="wait=30")
    assert (found.client, found.priority, found.wait) == ("scanner 7", Priority.HIGH, 30)


@pytest.mark.parametrize("label", ["", "x" * 129, "a\tb", "Büro"])
def test_a_label_that_cannot_be_shown_is_refused(settings: Settings, label: str) -> None:
    with pytest.raises(Problem, match="X-Client-ID") as caught:
        options(settings, X_Client_ID=label)
    assert caught.value.code == "invalid_client_id"


@pytest.mark.parametrize(
    ("role", "asked", "outcome"),
    [
        ("user", None, "normal"),
        ("user", "low", "low"),
        ("user", "high", "priority_not_allowed"),
        ("admin", "high", "high"),
        ("guest", None, "low"),
        ("guest", "normal", "priority_not_allowed"),
        ("removed", None, "low"),
        ("removed", "normal", "priority_not_allowed"),
        ("admin", "urgent", "invalid_priority"),
        ("admin", "", "invalid_priority"),
    ],
)
def test_a_role_caps_the_priority(settings: Settings, role: str, asked: str | None, outcome: str) -> None:
    headers = {} if asked is None else {"X_Priority": asked}
    try:
        found = str(options(settings, role, **headers).priority)
    except Problem as problem:
        found = problem.code
    assert found == outcome


def test_a_refused_priority_names_the_one_that_is_allowed() -> None:
    with pytest.raises(Problem, match="may ask for normal at most, not high") as caught:
        priority_of("high", "user", Priority.NORMAL)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    ("headers", "query", "seconds"),
    [
        ({}, "", None),
        ({"Prefer": "wait=10"}, "", 10),
        ({"Prefer": 'respond-async, WAIT="7"; foo=bar'}, "", 7),
        ({"Prefer": "wait=10, wait=20"}, "", 10),
        ({"Prefer": "handling=lenient; wait=9"}, "", None),
        ({"Prefer": "wait=10"}, "wait=3", 3),
        ({}, "wait=0", 0),
        ({}, "wait=120", 120),
    ],
)
def test_the_wait_is_asked_for_by_query_or_preference(
    settings: Settings, headers: dict[str, str], query: str, seconds: int | None
) -> None:
    assert wait_seconds(request(headers=headers, query=query), settings) == seconds


@pytest.mark.parametrize("asked", ["", "-1", "121", "1e1", "ten", "1.5", "\uff11\uff10", "9" * 50, "nan"])
def test_a_wait_that_cannot_be_is_refused(settings: Settings, asked: str) -> None:
    for req in (
        request(query=str(httpx.QueryParams({"wait": asked}))),
        request(headers={"Prefer": f"wait={asked}"} if asked.isascii() else {"Prefer": "wait=x"}),
    ):
        with pytest.raises(Problem) as caught:
            wait_seconds(req, settings)
        assert (caught.value.status, caught.value.code) == (400, "invalid_wait")


def test_preferences_may_be_spread_over_headers() -> None:
    assert preference(["respond-async", "wait=4"], "wait") == "4"
    assert preference(["respond-async"], "respond-async") == ""
    assert preference([], "wait") is None


# Chat.


async def chat_refusal(req: Request) -> tuple[int, str]:
    with pytest.raises(Problem) as caught:
        await read_chat(req)
    return caught.value.status, caught.value.code


async def test_a_conversation_is_taken_with_its_sampling() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [text("One."), text("Two.")]},
        ],
        "temperature": 1,
        "top_p": 0.5,
        "max_tokens": 7,
        "stop": ["\n"],
        "seed": -5,
        "presence_penalty": 0,
        "frequency_penalty": -2,
        "stream": False,
        "simulate": {"fault": "slow"},
    }
    assert await read_chat(json_request(body)) == ChatSubmission(
        model="m",
        payload={
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "One.\nTwo."}],
            "temperature": 1.0,
            "top_p": 0.5,
            "max_tokens": 7,
            "stop": ["\n"],
            "seed": -5,
            "presence_penalty": 0.0,
            "frequency_penalty": -2.0,
            "simulate": {"fault": "slow", "after": 0, "attempts": 1},
        },
    )


async def test_the_shorthand_is_written_out() -> None:
    plain = await read_chat(json_request({"message": "Hi."}))
    assert plain == ChatSubmission(None, {"messages": [{"role": "user", "content": "Hi."}]})
    told = await read_chat(json_request({"message": "Hi.", "system": "Be kind."}))
    assert told.payload["messages"][0] == {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (json_request(b""), (400, "empty_body")),
        (json_request(b"{"), (400, "invalid_json")),
        (json_request({}), (400, "invalid_request")),
        (json_request({"messages": [], "model": "m"}), (400, "invalid_request")),
        (json_request({"message": "Hi.", "messages": [{"role": "user", "content": "Hi."}]}), (400, "invalid_request")),
        (json_request({"messages": [{"role": "user", "content": "Hi."}], "system": "x"}), (400, "invalid_request")),
        (json_request({"messages": [{"role": "tool", "content": "Hi."}]}), (400, "invalid_request")),
        (json_request({"messages": [{"role": "user", "content": None}]}), (400, "invalid_request")),
        (json_request({"message": "Hi.", "temprature": 1}), (400, "invalid_request")),
        (json_request({"message": "Hi.", "temperature": "1"}), (400, "invalid_request")),
        (json_request({"message": "Hi.", "temperature": 3}), (400, "invalid_request")),
        (json_request({"message": "Hi.", "max_tokens": 0}), (400, "invalid_request")),
        (json_request({"message": "Hi.", "seed": 2**64}), (400, "invalid_request")),
        (json_request({"message": "Hi.", "stop": ["a"] * 5}), (400, "invalid_request")),
        (json_request({"message": "Hi.", "stream": "yes"}), (400, "invalid_request")),
        (json_request({"message": "Hi."}, query="temperature=1"), (400, "invalid_query")),
        (json_request({"message": "x" * CHAT_LIMIT}), (413, "payload_too_large")),
    ],
)
async def test_a_bad_chat_is_refused_with_its_code(way: Request, expected: tuple[int, str]) -> None:
    assert await chat_refusal(way) == expected


async def test_an_unknown_field_of_a_chat_is_named_by_its_path() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "txt": "Hi."}]}]}
    with pytest.raises(Problem) as caught:
        await read_chat(json_request(body))
    assert caught.value.details["errors"] == [
        {"loc": "messages.0.content.0.text", "msg": "Field required"},
        {"loc": "messages.0.content.0.txt", "msg": "Extra inputs are not permitted"},
    ]

"""Who asks, where, and how often, against answers that are said beforehand."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from roundhouse import Client, DeadlinePassed, JobFailed, RoundhouseApiError, Unreachable, retry
from roundhouse.session import Access
from tests.unit.roundhouse.fake import (
    CHAT,
    JOB,
    URLS,
    Answer,
    Bytes,
    Script,
    async_client,
    client,
    openai_problem,
    problem,
)

ACCEPTED = {"request_id": JOB, "status": "queued", "task": "chat", "model": "m", "priority": "normal"}
WHOLE = {
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hi.", "refusal": None}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.0)


def ok(body: object, **headers: str) -> httpx.Response:
    return httpx.Response(200, json=body, headers=headers)


def tokens(number: int) -> httpx.Response:
    return ok({"access_token": f"access {number}", "refresh_token": f"refresh {number}", "expires_in": 60})


def form(request: httpx.Request) -> dict[str, str]:
    return dict(httpx.QueryParams(request.content.decode()))


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.ReadTimeout("silent"),
        httpx.RemoteProtocolError("cut"),
        problem(429, "rate_limited"),
        problem(502, "bad"),
        problem(503, "queue_full"),
        problem(504, "slow"),
        httpx.Response(503, text="<p>a proxy</p>"),
    ],
    ids=lambda trouble: getattr(trouble, "status_code", None) or type(trouble).__name__,
)
async def test_a_submit_is_repeated_as_the_same_request(trouble: Any) -> None:
    gateway = Script(trouble, ok(ACCEPTED))
    with client(gateway) as api:
        assert api.submit_chat("m", "hello", client="me", attempt_timeout=2.5).id == JOB
    first, second = gateway.asked
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.content == second.content
    assert (first.headers["x-client-id"], first.headers["x-timeout"]) == ("me", "2.500")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 422, 500])
async def test_what_will_not_pass_is_raised_at_once(status: int) -> None:
    for answer in (problem(status, "some_code"), openai_problem(status, "some_code")):
        with client(Script(answer)) as api, pytest.raises(RoundhouseApiError, match="It is some_code") as raised:
            api.job(JOB)
        assert (raised.value.status, raised.value.code) == (status, "some_code")


def test_each_submit_has_a_key_of_its_own_unless_the_caller_has_one() -> None:
    gateway = Script(*[ok(ACCEPTED)] * 3)
    with client(gateway) as api:
        api.submit_chat("m", "hello")
        api.submit_chat("m", "hello")
        api.submit_chat("m", "hello", idempotency_key="mine")
    first, second, third = [request.headers["idempotency-key"] for request in gateway.asked]
    assert first != second
    assert third == "mine"


def test_what_cannot_be_repeated_is_asked_once_unless_nothing_was_done() -> None:
    done_perhaps: list[Answer] = [problem(503, code) for code in ("gateway_stopping", "database_unavailable")]
    for trouble in [httpx.ReadError("reset"), problem(502, "bad"), problem(504, "slow"), *done_perhaps]:
        with client(Script(trouble)) as api, pytest.raises(RoundhouseApiError):
            api.call("POST", "/admin/models/m/start")
    for trouble in (httpx.ConnectError("refused"), problem(503, "queue_full"), problem(429, "rate_limited")):
        with client(Script(trouble, ok({"settled": True}))) as api:
            assert api.call("POST", "/admin/models/m/start") == {"settled": True}


def test_a_pause_that_is_asked_for_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("roundhouse.wire.time.sleep", pauses.append)
    with client(Script(problem(503, "queue_full", **{"Retry-After": "7"}), ok(ACCEPTED))) as api:
        api.submit_chat("m", "hello")
    assert pauses == [7.0]


def test_a_pause_longer_than_the_patience_is_not_begun() -> None:
    with (
        client(Script(problem(503, "queue_full", **{"Retry-After": "70"}))) as api,
        pytest.raises(RoundhouseApiError) as raised,
    ):
        api.submit_chat("m", "hello")
    assert (raised.value.code, raised.value.retry_after) == ("queue_full", 70.0)


async def test_a_pause_longer_than_the_time_of_the_call_is_not_begun_either() -> None:
    def script() -> Script:
        return Script(problem(503, "queue_full", **{"Retry-After": "7"}))

    with client(script()) as api, pytest.raises(DeadlinePassed):
        api.submit_chat("m", "hello", timeout=5.0)
    async with async_client(script()) as other:
        with pytest.raises(TimeoutError):
            await other.chat("m", "hello", timeout=5.0)


def test_no_time_at_all_asks_for_nothing() -> None:
    gateway = Script()
    with client(gateway) as api, pytest.raises(DeadlinePassed):
        api.submit_chat("m", "hello", timeout=0.0)
    assert gateway.asked == []


@pytest.mark.parametrize("urls", [URLS[:1], URLS], ids=["one", "two"])
def test_whether_it_is_well_each_gateway_is_asked_once(urls: tuple[str, ...]) -> None:
    gateway = Script(*[httpx.ConnectError("refused")] * len(urls))
    with client(gateway, urls=urls) as api:
        assert not api.healthy()
    assert [request.url.host for request in gateway.asked] == ["one", "two"][: len(urls)]


def test_one_gateway_that_is_well_is_enough() -> None:
    with client(Script(httpx.ConnectError("refused"), ok({})), urls=URLS) as api:
        assert api.healthy()


def test_gateways_take_turns_where_they_fail_and_not_where_the_queue_is_full() -> None:
    gateway = Script(problem(503, "database_unavailable"), ok(ACCEPTED), problem(503, "queue_full"), ok(ACCEPTED))
    with client(gateway, urls=URLS) as api:
        api.submit_chat("m", "hello")
        api.submit_chat("m", "hello")
        assert api.url == URLS[1]
    assert [request.url.host for request in gateway.asked] == ["one", "two", "two", "two"]


def test_who_wants_to_know_is_told_of_trouble() -> None:
    told: list[tuple[str, float]] = []
    gateway = Script(httpx.ConnectError("refused"), ok(ACCEPTED))
    with client(gateway, on_trouble=lambda error, pause: told.append((error.code, pause))) as api:
        api.submit_chat("m", "hello")
    assert told == [("gateway_unreachable", 0.0)]


async def test_a_password_is_exchanged_when_it_is_first_needed() -> None:
    gateway = Script(tokens(1), ok(ACCEPTED), ok(ACCEPTED))
    with client(gateway, token=None, username="ada", password="pw") as api:
        api.job(JOB)
        api.job(JOB)
    assert gateway.paths == ["/auth/token", f"/api/jobs/{JOB}", f"/api/jobs/{JOB}"]
    assert form(gateway.asked[0]) == {"grant_type": "password", "username": "ada", "password": "pw"}
    assert "authorization" not in gateway.asked[0].headers
    assert gateway.asked[2].headers["authorization"] == "Bearer access 1"


async def test_an_expired_token_is_renewed_by_the_refresh_token_and_the_request_made_again() -> None:
    expired = problem(401, "token_expired")
    gateway = Script(tokens(1), expired, tokens(2), ok(ACCEPTED))
    async with async_client(gateway, token=None) as api:
        await api.login("ada", "pw")
        await api.job(JOB)
    assert form(gateway.asked[2]) == {"grant_type": "refresh_token", "refresh_token": "refresh 1"}
    assert gateway.asked[3].headers["authorization"] == "Bearer access 2"


def test_where_the_refresh_token_is_no_good_the_password_is() -> None:
    refused = httpx.Response(400, json={"error": "invalid_grant", "error_description": "No.", "code": "invalid_grant"})
    gateway = Script(tokens(1), problem(401, "token_expired"), refused, tokens(2), ok(ACCEPTED))
    with client(gateway, token=None, username="ada", password="pw") as api:
        api.job(JOB)
    assert [form(gateway.asked[index])["grant_type"] for index in (0, 2, 3)] == [
        "password",
        "refresh_token",
        "password",
    ]


def test_a_token_that_is_refused_and_cannot_be_renewed_is_told() -> None:
    with client(Script(problem(401, "token_expired"))) as api, pytest.raises(RoundhouseApiError) as raised:
        api.job(JOB)
    assert raised.value.code == "token_expired"
    gateway = Script(tokens(1), problem(401, "token_invalid"), tokens(2), problem(401, "token_invalid"))
    with (
        client(gateway, token=None, username="ada", password="pw") as api,
        pytest.raises(RoundhouseApiError, match="token_invalid"),
    ):
        api.job(JOB)


def test_a_chat_that_takes_long_is_asked_for_again_and_one_that_nobody_answers_is_not() -> None:
    silent = httpx.ReadTimeout("silent")
    gateway = Script(silent, ok({}), silent, ok({}), ok(WHOLE, **{"x-request-id": JOB}))
    with client(gateway, patience=0.0) as api:
        answer = api.chat("m", "hello")
    assert gateway.paths == [CHAT, "/health", CHAT, "/health", CHAT]
    assert len({request.headers["idempotency-key"] for request in gateway.asked[::2]}) == 1
    assert (answer.text, answer.finish_reason, answer.job_id) == ("Hi.", "stop", JOB)
    assert answer.message == {"role": "assistant", "content": "Hi."}
    with client(Script(silent, silent), patience=0.0) as api, pytest.raises(Unreachable):
        api.chat("m", "hello")


def test_a_chat_may_take_longer_than_its_token_lives_again_and_again() -> None:
    silent, expired = httpx.ReadTimeout("silent"), problem(401, "token_expired")
    answers: list[Answer] = [tokens(1), silent, ok({}), expired, tokens(2), silent, ok({}), expired, tokens(3)]
    gateway = Script(*answers, ok(WHOLE, **{"x-request-id": JOB}))
    with client(gateway, token=None, username="ada", password="pw") as api:
        assert api.chat("m", "hello").text == "Hi."
    assert gateway.asked[-1].headers["authorization"] == "Bearer access 3"


def test_a_chat_that_a_proxy_has_no_time_for_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def given_up(_: httpx.Request) -> httpx.Response:
        nonlocal now
        now += 60.0
        return httpx.Response(504, text="<p>a proxy</p>")

    monkeypatch.setattr("roundhouse.session.monotonic", lambda: now)
    rounds: list[Any] = [given_up, ok({})] * 5
    gateway = Script(*rounds, ok(WHOLE, **{"x-request-id": JOB}))
    with client(gateway, patience=10.0) as api:
        assert api.chat("m", "hello").text == "Hi."
    assert gateway.paths == [CHAT, "/health"] * 5 + [CHAT]
    assert len({request.headers["idempotency-key"] for request in gateway.asked[::2]}) == 1


def test_a_proxy_that_gives_up_at_once_is_trouble_and_a_job_that_ran_out_of_time_has_failed() -> None:
    with client(Script(problem(504, "slow")), patience=0.0) as api, pytest.raises(RoundhouseApiError, match="slow"):
        api.chat("m", "hello")
    ended = openai_problem(504, "attempt_timeout", **{"x-should-retry": "false", "x-request-id": JOB})
    with client(Script(ended)) as api, pytest.raises(JobFailed):
        api.chat("m", "hello")


UNKNOWN: dict[str, Callable[[Client], object]] = {
    "chat": lambda api: api.chat("m", "hello", top_k=1),  # type: ignore[call-arg]
    "stream": lambda api: api.stream("m", "hello", top_k=None),  # type: ignore[call-arg]
    "submit_chat": lambda api: api.submit_chat("m", "hello", top_k=1),  # type: ignore[call-arg]
    "ocr": lambda api: api.ocr(b"%PDF", top_k=1),  # type: ignore[call-arg]
    "embed": lambda api: api.embed("m", "hello", top_k=1),  # type: ignore[call-arg]
    "submit_embeddings": lambda api: api.submit_embeddings("m", "hello", top_k=1),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("call", UNKNOWN.values(), ids=UNKNOWN)
def test_an_option_that_there_is_not_is_refused(call: Callable[[Client], object]) -> None:
    gateway = Script()
    with client(gateway) as api, pytest.raises(TypeError, match="top_k"):
        call(api)
    assert gateway.asked == []


@pytest.mark.parametrize("label", ["Müller", "a\nb", "a\x7f"])
def test_what_no_header_can_say_is_refused_as_the_gateway_would(label: str) -> None:
    with client(Script()) as api:
        with pytest.raises(RoundhouseApiError, match="invalid_client_id"):
            api.submit_chat("m", "hello", client=label)
        with pytest.raises(RoundhouseApiError, match="invalid_idempotency_key"):
            api.embed("m", "hello", idempotency_key=label)


def test_what_is_asked_of_a_chat_is_in_its_body() -> None:
    gateway = Script(ok(WHOLE, **{"x-request-id": JOB}))
    with client(gateway) as api:
        api.chat("m", [{"role": "user", "content": "Hi"}], system="Be brief.", top_p=None, extra={"logprobs": True})
    assert json.loads(gateway.asked[0].content) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "logprobs": True,
    }


def job_body(status: str, **changes: Any) -> dict[str, Any]:
    return {**ACCEPTED, "status": status, "result": None, "error": None, "progress": None, **changes}


def test_a_wait_polls_until_the_job_has_ended() -> None:
    seen: list[str] = []
    progress = {"done": 1, "total": 2, "unit": "pages"}
    bodies = [
        job_body("queued"),
        job_body("processing", progress=progress),
        job_body("completed", result={"text": "A"}),
    ]
    gateway = Script(*map(ok, bodies))
    with client(gateway) as api:
        job = api.wait(JOB, on_change=lambda job: seen.append(job.status), every=3)
    assert (job.text, job.ended) == ("A", True)
    assert seen == ["queued", "processing", "completed"]
    assert {request.url.params["wait"] for request in gateway.asked} == {"3"}


def test_a_wait_is_shorter_where_the_gateway_has_less_time() -> None:
    gateway = Script(problem(400, "invalid_wait"), problem(400, "invalid_wait"), ok(job_body("completed")))
    with client(gateway) as api:
        api.wait(JOB)
    assert [request.url.params["wait"] for request in gateway.asked] == ["20", "10", "5"]


def test_a_wait_that_is_over_leaves_the_job_alone() -> None:
    gateway = Script(ok(job_body("queued")))
    with client(gateway) as api, pytest.raises(DeadlinePassed):
        api.wait(JOB, timeout=1e-6)


def test_a_wait_without_time_looks_once() -> None:
    gateway = Script(ok(job_body("completed")), ok(job_body("queued")))
    with client(gateway) as api:
        assert api.wait(JOB, timeout=0).status == "completed"
        with pytest.raises(DeadlinePassed) as raised:
            api.wait(JOB, timeout=0)
    assert raised.value.job_id == JOB
    assert [request.url.params["wait"] for request in gateway.asked] == ["0", "0"]


def test_a_wait_leaves_the_gateway_in_peace_for_a_second_at_least() -> None:
    gateway = Script(ok(job_body("queued")), ok(job_body("completed")))
    with client(gateway) as api:
        api.wait(JOB, every=0)
    assert [request.url.params["wait"] for request in gateway.asked] == ["1", "1"]


def test_a_document_is_read_with_its_news_told() -> None:
    news = b'id: 1\nevent: page\ndata: {"number": 1}\n\nid: 2\nevent: end\ndata: {}\n\n'
    stream = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=news)
    done = job_body("completed", result={"text": "A letter."}, task="ocr")
    gateway = Script(ok(job_body("queued")), stream, ok(done))
    told: list[str] = []
    with client(gateway) as api:
        job = api.ocr(b"%PDF-1.7", on_event=lambda event: told.append(event.name), searchable_pdf=True, no_cache=True)
    assert job.text == "A letter."
    assert told == ["page", "end"]
    sent = gateway.asked[0]
    assert b'name="searchable_pdf"\r\n\r\ntrue' in sent.content
    assert sent.headers["cache-control"] == "no-cache"


async def test_a_document_is_read_while_the_event_loop_goes_on(tmp_path: Path) -> None:
    slow = tmp_path / "pipe"
    os.mkfifo(slow)  # blocks who reads it until somebody writes
    gateway = Script(ok(job_body("queued")))
    async with async_client(gateway) as api:
        submit = asyncio.create_task(api.submit_ocr(slow))
        await asyncio.sleep(0)
        await asyncio.to_thread(slow.write_bytes, b"%PDF-1.7")
        assert (await submit).id == JOB
    assert b"%PDF-1.7" in gateway.asked[0].content


CALLS: dict[str, Callable[[Client], object]] = {
    "job": lambda api: api.job(JOB),
    "submit": lambda api: api.submit_chat("m", "hello"),
    "wait": lambda api: api.wait(JOB),
    "jobs": lambda api: api.jobs(),
    "chat": lambda api: api.chat("m", "hello"),
    "embed": lambda api: api.embed("m", "hello"),
    "models": lambda api: api.models(),
    "login": lambda api: api.login("ada", "pw"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("body", ["<p>a proxy</p>", "[]", '"text"', '{"jobs": 1, "data": {"a": 1}, "choices": []}'])
def test_what_is_no_answer_of_a_gateway_is_an_error_of_the_clients_own(
    call: Callable[[Client], object], body: str
) -> None:
    with client(Script(httpx.Response(200, text=body))) as api, pytest.raises(RoundhouseApiError) as raised:
        call(api)
    assert raised.value.code == "bad_answer"


def test_an_answer_that_cannot_be_decoded_is_an_error_of_the_clients_own() -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=Bytes(b"no gzip"))

    with client(Script(broken), patience=0.0) as api, pytest.raises(Unreachable):
        api.job(JOB)


def test_a_document_that_cannot_be_read_is_an_error_with_its_job() -> None:
    failed = job_body("failed", error={"code": "encrypted_document", "message": "It needs a password."})
    with client(Script(ok(job_body("queued")), ok(failed))) as api, pytest.raises(JobFailed) as raised:
        api.ocr(b"%PDF-1.7")
    assert (raised.value.code, raised.value.job_id) == ("encrypted_document", JOB)


def test_a_cancel_that_was_done_before_its_answer_came_is_done() -> None:
    gateway = Script(httpx.ReadError("reset"), problem(409, "job_finished"), ok(job_body("cancelled")))
    with client(gateway) as api:
        assert api.cancel(JOB).status == "cancelled"
    with (
        client(Script(problem(409, "job_finished"), ok(job_body("completed")))) as api,
        pytest.raises(RoundhouseApiError, match="job_finished"),
    ):
        api.cancel(JOB)


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        ((None, None, None, None), {}, (["http://127.0.0.1:8080"], None, None, None)),
        (
            (None, None, None, None),
            {"ROUNDHOUSE_URL": "http://a/, http://b", "ROUNDHOUSE_TOKEN": "t"},
            (["http://a", "http://b"], "t", None, None),
        ),
        (
            ("http://c", None, None, None),
            {"ROUNDHOUSE_URL": "http://a", "ROUNDHOUSE_USER": "ada", "ROUNDHOUSE_PASSWORD": "pw"},
            (["http://c"], None, "ada", "pw"),
        ),
        (
            ("http://c", None, "bob", "secret"),
            {"ROUNDHOUSE_TOKEN": "t", "ROUNDHOUSE_USER": "ada"},
            (["http://c"], None, "bob", "secret"),
        ),
        (
            (None, None, "bob", None),
            {"ROUNDHOUSE_URL": "", "ROUNDHOUSE_TOKEN": "t", "ROUNDHOUSE_PASSWORD": "pw"},
            (["http://127.0.0.1:8080"], None, "bob", "pw"),
        ),
        ((None, "t", None, None), {"ROUNDHOUSE_PASSWORD": "pw"}, (["http://127.0.0.1:8080"], "t", None, None)),
    ],
)
def test_what_is_not_given_is_in_the_environment(given: Any, environ: dict[str, str], expected: Any) -> None:
    access = Access.of(*given, environ)
    assert (access.urls, access.token, access.username, access.password) == expected
    assert "pw" not in repr(access)


def test_the_certificates_of_the_environment_are_read_where_there_is_anything_to_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    Client("http://one").close()
    with pytest.raises(FileNotFoundError):
        Client(["http://one", "https://two"])


@pytest.mark.parametrize("urls", ["localhost:8080", [], ["http://a", "b"]])
def test_what_is_no_url_is_refused_before_it_is_asked(urls: Any) -> None:
    with pytest.raises(ValueError, match="http://"):
        Access.of(urls, None, None, None, {})


def test_a_result_that_breaks_off_is_an_error_of_the_clients_own() -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Bytes(b"PK", httpx.ReadError("reset")))

    with client(Script(broken)) as api, pytest.raises(Unreachable):
        b"".join(api.result_chunks(JOB, "zip"))

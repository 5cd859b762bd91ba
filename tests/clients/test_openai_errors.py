"""Errors as OpenAI's own library tells them, and what it does not try again."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import openai
import pytest
from pymongo.asynchronous.database import AsyncDatabase

from tests.clients.conftest import Site, checked_ahttp
from tests.clients.test_openai_chat import HELLO
from tests.conditions import eventually
from tests.deployments import listening, make_settings, patient_config, worker_on

Ask = Callable[[openai.OpenAI], object]

REFUSED: dict[str, tuple[Ask, type[openai.APIStatusError], str, str | None]] = {
    "a key that is none": (
        lambda client: client.with_options(api_key="sk-none").models.list(),
        openai.AuthenticationError,
        "token_invalid",
        None,
    ),
    "a model that is not there": (
        lambda client: client.chat.completions.create(model="gpt-none", messages=HELLO),
        openai.NotFoundError,
        "model_not_found",
        "model",
    ),
    "a model that is not there, of the list": (
        lambda client: client.models.retrieve("gpt-none"),
        openai.NotFoundError,
        "model_not_found",
        "model",
    ),
    "a model for something else": (
        lambda client: client.embeddings.create(model="sim", input="hello"),
        openai.BadRequestError,
        "wrong_task",
        "model",
    ),
    "an API that is not there": (
        lambda client: client.moderations.create(input="hello"),
        openai.NotFoundError,
        "not_found",
        None,
    ),
    "a value out of range": (
        lambda client: client.chat.completions.create(model="sim", messages=HELLO, temperature=3),
        openai.BadRequestError,
        "invalid_request",
        "temperature",
    ),
    "a parameter that nobody knows": (
        lambda client: client.chat.completions.create(model="sim", messages=HELLO, extra_body={"temprature": 1}),
        openai.BadRequestError,
        "invalid_request",
        "temprature",
    ),
    "a parameter of vLLM that may end it": (
        lambda client: client.chat.completions.create(
            model="sim", messages=HELLO, extra_body={"mm_processor_kwargs": {"size": 1}}
        ),
        openai.BadRequestError,
        "invalid_request",
        "mm_processor_kwargs",
    ),
    "an unknown role": (
        lambda client: client.chat.completions.create(
            model="sim",
            messages=[{"role": "nobody", "content": "hello"}],  # type: ignore[list-item,misc]
        ),
        openai.BadRequestError,
        "invalid_request",
        "messages.0",
    ),
    "too many choices": (
        lambda client: client.chat.completions.create(model="sim", messages=HELLO, n=1000),
        openai.BadRequestError,
        "invalid_request",
        "n",
    ),
    "too many choices of many prompts": (
        lambda client: client.completions.create(model="sim", prompt=["hello"] * 30, n=16),
        openai.BadRequestError,
        "invalid_request",
        None,
    ),
    "no prompt": (
        lambda client: client.completions.create(model="sim", prompt=[]),
        openai.BadRequestError,
        "invalid_request",
        "prompt",
    ),
}


@pytest.mark.parametrize(("ask", "kind", "code", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_raised_as_what_it_is(
    client: openai.OpenAI, ask: Ask, kind: type[openai.APIStatusError], code: str, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as refusal:
        ask(client)
    assert type(refusal.value) is kind
    assert (refusal.value.code, refusal.value.param) == (code, param)
    assert refusal.value.type
    assert refusal.value.message


def frail(client: openai.OpenAI, label: str, *, stream: bool = False, **fault: Any) -> Any:
    return client.chat.completions.create(
        model="frail",
        messages=HELLO,
        stream=stream,
        extra_headers={"X-Client-ID": label},
        extra_body={"simulate": fault},
    )


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ("reject", openai.BadRequestError, "engine_rejected_input"),
        ("error", openai.InternalServerError, "simulated_error"),
        ("garbage", openai.InternalServerError, "answer_cut_off"),
    ],
)
def test_a_job_that_failed_for_good_is_not_sent_again(
    site: Site, client: openai.OpenAI, fault: str, kind: type[openai.APIStatusError], code: str
) -> None:
    label = uuid4().hex
    assert client.max_retries == 2
    with pytest.raises(kind) as failure:
        frail(client, label, fault=fault)
    [job] = site.jobs(label)
    assert (job["status"], job["request_id"]) == ("failed", failure.value.request_id)
    assert failure.value.code == job["error"]["code"] == code


def test_a_stream_that_fails_in_its_midst_is_raised_after_what_came(site: Site, client: openai.OpenAI) -> None:
    label = uuid4().hex
    with frail(client, label, stream=True, fault="error", after=15) as stream:
        assert next(stream).choices[0].delta.content == "[simulator]"
        with pytest.raises(openai.APIError, match="failed because it was asked to") as failure:
            list(stream)
    assert not isinstance(failure.value, openai.APIStatusError), "the status was sent long ago"
    assert failure.value.code == "simulated_error"
    assert len(site.jobs(label)) == 1


def test_a_job_that_takes_longer_than_its_time_is_raised_and_not_sent_again(site: Site, client: openai.OpenAI) -> None:
    label = uuid4().hex
    with pytest.raises(openai.InternalServerError) as failure:
        client.chat.completions.create(
            model="frail",
            messages=HELLO,
            extra_headers={"X-Client-ID": label, "X-Timeout": "1"},
            extra_body={"simulate": {"fault": "hang"}},
        )
    assert (failure.value.status_code, failure.value.code) == (504, "attempt_timeout")
    assert len(site.jobs(label)) == 1


def test_a_client_that_waits_no_longer_cancels_its_job(site: Site, client: openai.OpenAI) -> None:
    label = uuid4().hex
    impatient = client.with_options(timeout=3.0, max_retries=0)
    with pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(model="slow", messages=HELLO, extra_headers={"X-Client-ID": label})
    site.system.until(site.job(label)["request_id"], "cancelled", within=30)


async def test_a_client_over_its_limit_is_told_when_and_comes_again(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    config = patient_config() | {"rate_limit": {"enabled": True, "requests_per_minute": 60, "burst": 1}}
    settings = make_settings(tmp_path, mongod_uri, database.name, config)
    async with listening(settings) as gateway, worker_on(settings):
        key = await gateway.token()
        url = f"{gateway.http.base_url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=key, http_client=checked_ahttp()) as client:

            async def served() -> bool:
                return (await client.models.retrieve("sim")).to_dict()["state"] == "ready"

            await eventually(served)
            once = client.with_options(max_retries=0).chat.completions
            # Both at once: after the answer to the first another one might be allowed.
            asked = [once.create(model="sim", messages=HELLO) for _ in range(2)]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            [refusal] = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            assert isinstance(refusal, openai.RateLimitError)
            assert (refusal.code, refusal.type) == ("rate_limited", "rate_limit_error")
            assert refusal.response.headers["retry-after"] == "1"
            assert refusal.response.headers["x-ratelimit-remaining-requests"] == "0"
            answer = await client.chat.completions.create(model="sim", messages=HELLO)
            assert answer.choices[0].message.content

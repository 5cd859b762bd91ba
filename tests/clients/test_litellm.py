"""litellm, which asks a hundred services each in its own way, and us as one that speaks OpenAI's API."""

import importlib
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import openai
import pytest

from tests.clients.conftest import TIMEOUT, Site, checked_ahttp, checked_http

HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def imported() -> Iterator[ModuleType]:
    """It takes five seconds to import, and would fetch a list of prices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        yield importlib.import_module("litellm")


@pytest.fixture
async def litellm(imported: ModuleType, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """With connections that end with the test, and that hold all answers against the published schema."""
    async with checked_ahttp() as asynchronous:
        with checked_http() as synchronous:
            monkeypatch.setattr(imported, "aclient_session", asynchronous)
            monkeypatch.setattr(imported, "client_session", synchronous)
            monkeypatch.setattr(imported, "suppress_debug_info", True)
            imported.in_memory_llm_clients_cache.flush_cache()
            yield imported
            imported.in_memory_llm_clients_cache.flush_cache()


@pytest.fixture
def address(site: Site) -> dict[str, Any]:
    return {"api_base": site.url, "api_key": site.key, "timeout": TIMEOUT}


def test_a_chat_is_answered(litellm: Any, site: Site, address: dict[str, Any]) -> None:
    answer = litellm.completion("openai/sim", HELLO, **address)
    job = site.system.job(answer.id.removeprefix("chatcmpl-"))
    assert answer.choices[0].message.content == job["result"]["message"]["content"]
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 20)


def test_a_stream_tells_the_same_in_pieces(litellm: Any, address: dict[str, Any]) -> None:
    whole = litellm.completion("openai/sim", HELLO, **address)
    chunks = list(
        litellm.completion("openai/sim", HELLO, stream=True, stream_options={"include_usage": True}, **address)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == 22
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]


async def test_it_is_asked_asynchronously_too(litellm: Any, address: dict[str, Any]) -> None:
    answer = await litellm.acompletion("openai/sim", HELLO, n=2, max_tokens=3, **address)
    assert [choice.index for choice in answer.choices] == [0, 1]
    stream = await litellm.acompletion("openai/sim", HELLO, max_tokens=3, stream=True, **address)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == answer.choices[0].message.content


def test_a_text_is_completed(litellm: Any, address: dict[str, Any]) -> None:
    answer = litellm.text_completion(model="text-completion-openai/sim", prompt="hello", max_tokens=3, **address)
    assert answer.choices[0].text.startswith("[simulator] ")
    several = litellm.text_completion(
        model="text-completion-openai/sim", prompt=["hello", "there"], max_tokens=3, **address
    )
    assert several.choices[0].text == answer.choices[0].text
    assert len(several.choices) == 2


async def test_texts_become_vectors(litellm: Any, address: dict[str, Any]) -> None:
    answer = litellm.embedding("openai/vectors", ["one", "two"], **address)
    assert [len(entry["embedding"]) for entry in answer.data] == [16, 16]
    again = await litellm.aembedding("openai/vectors", ["one", "two"], encoding_format="float", **address)
    assert again.data == answer.data


def test_what_is_refused_is_raised_as_its_own_errors(litellm: Any, address: dict[str, Any]) -> None:
    for options, kind in (
        ({"model": "openai/gpt-none"}, litellm.NotFoundError),
        ({"model": "openai/sim", "temperature": 9}, litellm.BadRequestError),
        ({"model": "openai/sim", "api_key": "sk-none"}, litellm.AuthenticationError),
        ({"model": "openai/slow", "timeout": 0.5}, litellm.Timeout),
    ):
        with pytest.raises(kind) as refusal:
            litellm.completion(**{"messages": HELLO, "max_retries": 0, **address, **options})
        assert isinstance(refusal.value, openai.OpenAIError)


def test_a_job_that_failed_for_good_is_not_sent_again(litellm: Any, site: Site, address: dict[str, Any]) -> None:
    with pytest.raises(litellm.InternalServerError):
        litellm.completion(
            "openai/frail",
            HELLO,
            max_retries=2,
            extra_body={"simulate": {"fault": "error"}},
            extra_headers={"X-Client-ID": "litellm-fails"},
            **address,
        )
    assert [job["status"] for job in site.jobs("litellm-fails")] == ["failed"]

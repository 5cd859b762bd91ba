"""LangChain's models for OpenAI, given another address.

They take two seconds to import, which is left to those who run these tests.
"""

from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.clients.conftest import TIMEOUT, Site, checked_ahttp, checked_http

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings


@pytest.fixture
async def address(site: Site) -> AsyncIterator[dict[str, Any]]:
    """What each of the models is told, and all that it is told of where to ask."""
    async with checked_ahttp() as asynchronous:
        with checked_http() as synchronous:
            yield {
                "base_url": site.url,
                "api_key": site.key,
                "timeout": TIMEOUT,
                "http_client": synchronous,
                "http_async_client": asynchronous,
            }


@pytest.fixture
def chat(address: dict[str, Any]) -> "ChatOpenAI":
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="sim", **address)


@pytest.fixture
def completion(address: dict[str, Any]) -> "OpenAI":
    from langchain_openai import OpenAI

    return OpenAI(model="sim", max_tokens=5, **address)


@pytest.fixture
def embeddings(address: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> "OpenAIEmbeddings":
    """It counts tokens by OpenAI's tables, which it would fetch; litellm brings those that it uses for any model."""
    from langchain_openai import OpenAIEmbeddings

    found = find_spec("litellm")
    assert found is not None
    assert found.origin is not None
    tables = Path(found.origin).parent / "litellm_core_utils" / "tokenizers"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tables))
    return OpenAIEmbeddings(model="vectors", **address)


def test_a_chat_is_invoked(site: Site, chat: "ChatOpenAI") -> None:
    message = chat.invoke([("system", "You are brief."), ("human", "hello")])
    told = message.response_metadata
    job = site.system.job(told["id"].removeprefix("chatcmpl-"))
    assert message.content == job["result"]["message"]["content"]
    assert (told["finish_reason"], told["model_name"]) == ("stop", "sim")
    assert message.usage_metadata is not None
    assert message.usage_metadata["total_tokens"] == 24


def test_a_stream_adds_up_to_the_whole_with_its_usage(chat: "ChatOpenAI") -> None:
    whole = chat.invoke("hello")
    first, *rest = chat.stream("hello", stream_usage=True)
    assert len(rest) > 20
    gathered = first
    for chunk in rest:
        gathered += chunk
    assert gathered.content == whole.content
    assert gathered.usage_metadata == whole.usage_metadata
    assert gathered.response_metadata["finish_reason"] == "stop"


async def test_it_is_invoked_asynchronously_in_batches_too(chat: "ChatOpenAI") -> None:
    prompts = ["one", "two", "three"]
    batch = [message.content for message in chat.batch(prompts)]
    assert len(set(batch)) == 3
    assert [message.content for message in await chat.abatch(prompts)] == batch
    assert (await chat.ainvoke("two")).content == batch[1]
    assert "".join([str(chunk.content) async for chunk in chat.astream("two")]) == batch[1]


def test_its_own_parameters_are_taken(chat: "ChatOpenAI") -> None:
    bound = chat.bind(temperature=0, max_tokens=2, stop=["\n"], seed=1, logprobs=True, top_logprobs=1)
    message = bound.invoke("hello")
    assert message.response_metadata["finish_reason"] == "length"
    assert len(str(message.content).split()) == 3


def test_tools_and_schemas_are_taken_and_the_answer_is_judged_by_it(chat: "ChatOpenAI") -> None:
    """The simulator calls no tool and writes no JSON: that they do is shown on the real vLLM."""

    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    assert chat.bind_tools([add], tool_choice="auto").invoke("hello").tool_calls == []  # type: ignore[attr-defined]
    schema = {"title": "sum", "description": "A sum.", "type": "object", "properties": {"total": {"type": "integer"}}}
    for method in ("json_schema", "function_calling", "json_mode"):
        answer = chat.with_structured_output(schema, method=method, include_raw=True).invoke("hello")  # type: ignore[arg-type]
        assert answer["raw"].content.startswith("[simulator] ")  # type: ignore[index]


def test_what_is_refused_is_raised(chat: "ChatOpenAI") -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        chat.invoke("hello", temperature=9)
    assert refusal.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        chat.invoke("hello", model="gpt-none")


def test_a_stream_that_is_left_cancels_its_job(site: Site, chat: "ChatOpenAI") -> None:
    stream = chat.stream("hello", model="slow", extra_headers={"X-Client-ID": "langchain-leaves"})
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    [job] = site.jobs("langchain-leaves")
    site.system.until(job["request_id"], "cancelled", within=30)


async def test_the_model_for_completions_sends_its_prompts_as_a_list(completion: "OpenAI") -> None:
    text = completion.invoke("hello")
    assert text.startswith("[simulator] ")
    assert "".join(completion.stream("hello")) == text
    assert await completion.ainvoke("hello") == text
    batch = completion.batch(["hello", "there"])
    assert batch[0] == text
    assert batch[1] != text


async def test_documents_become_vectors_though_it_sends_their_tokens(embeddings: "OpenAIEmbeddings") -> None:
    vectors = embeddings.embed_documents(["one", "two"])
    assert [len(vector) for vector in vectors] == [16, 16]
    assert embeddings.embed_query("two") == pytest.approx(vectors[1])
    assert await embeddings.aembed_query("two") == pytest.approx(vectors[1])


def test_documents_become_vectors_as_texts_where_that_is_told(address: dict[str, Any]) -> None:
    from langchain_openai import OpenAIEmbeddings

    plain = OpenAIEmbeddings(model="vectors", check_embedding_ctx_length=False, dimensions=4, **address)
    assert [len(vector) for vector in plain.embed_documents(["one", "two"])] == [4, 4]

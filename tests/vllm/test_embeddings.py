"""Vectors of a model that the real vLLM runs, asked for by OpenAI's own library."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from broker.errors import EngineError
from tests.clients.conftest import Site, checked_http
from tests.deployments import default_config
from tests.vllm.conftest import entry_of
from tests.vllm.test_clients import TIMEOUT, serving
from worker.engine_process import socket_in
from worker.engines.vllm_control import PATIENCE, Control

INPUTS = ["the old turntable", "each engine to its own track"]


@pytest.fixture(scope="module")
def site(python: str, tiny: Path, mongod_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    config = default_config()
    config["queue"] |= {"lease": 10, "drain_timeout": 60}
    config["models"] = {
        "vectors": entry_of(
            python, tiny, task="embedding", stall_timeout=600, max_model_len=2048, args=["--enforce-eager"]
        )
    }
    config["defaults"] = {}
    with serving(tmp_path_factory.mktemp("system"), mongod_uri, config, "vectors") as site:
        yield site


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=site.url, api_key=site.key, timeout=TIMEOUT, http_client=checked_http()) as client:
        yield client


@pytest.fixture
def direct(site: Site) -> Iterator[openai.OpenAI]:
    """The same library, at vLLM itself."""
    (directory,) = (site.system.home / "state" / "run" / "engines").iterdir()
    http = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_in(directory))), timeout=TIMEOUT)
    with openai.OpenAI(base_url="http://engine/v1", api_key="none", http_client=http) as client:
        yield client


@pytest.mark.parametrize(
    "given", [INPUTS, INPUTS[0], [5, 6, 7], [[5, 6, 7], [8, 9]]], ids=["texts", "text", "tokens", "lists"]
)
def test_vectors_are_those_of_vllm_however_they_travel(
    client: openai.OpenAI, direct: openai.OpenAI, given: Any
) -> None:
    theirs = direct.embeddings.create(model="vectors", input=given, encoding_format="float")
    expected = [pytest.approx(entry.embedding, abs=1e-6) for entry in theirs.data]
    for options in ({}, {"encoding_format": "float"}):
        ours = client.embeddings.create(model="vectors", input=given, **options)  # type: ignore[arg-type]
        assert [entry.embedding for entry in ours.data] == expected
        assert ours.usage.prompt_tokens == theirs.usage.prompt_tokens
    assert math.hypot(*ours.data[0].embedding) == pytest.approx(1.0, abs=1e-3)


def test_what_vllm_refuses_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="vectors", input="hello", dimensions=8)
    with pytest.raises(openai.BadRequestError, match="2048"):
        client.embeddings.create(model="vectors", input="x" * 3000)


def test_a_model_for_vectors_does_not_chat(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model="vectors", messages=[{"role": "user", "content": "hi"}])
    assert refusal.value.code == "wrong_task"


def test_langchain_searches_with_them(site: Site) -> None:
    from langchain_openai import OpenAIEmbeddings

    with checked_http() as http:
        model = OpenAIEmbeddings(
            model="vectors", base_url=site.url, api_key=site.key, http_client=http, check_embedding_ctx_length=False
        )
        vectors = model.embed_documents(INPUTS)
        query = model.embed_query(INPUTS[1])
    likeness = [sum(one * other for one, other in zip(vector, query, strict=True)) for vector in vectors]
    assert likeness[1] == pytest.approx(1.0, abs=1e-3)
    assert likeness[0] < likeness[1]


def test_long_inputs_are_asked_for_in_portions_and_answered_together(
    client: openai.OpenAI, direct: openai.OpenAI
) -> None:
    given = [[5 + number] * 2000 for number in range(30)]
    theirs = direct.embeddings.create(model="vectors", input=given, encoding_format="float")
    ours = client.embeddings.create(model="vectors", input=given, encoding_format="float")
    assert [entry.embedding for entry in ours.data] == [pytest.approx(each.embedding, abs=1e-6) for each in theirs.data]
    assert (ours.usage.prompt_tokens, ours.usage.total_tokens) == (60_000, 60_000)


async def test_what_a_woken_one_is_asked_for_it_can_do(site: Site) -> None:
    (directory,) = (site.system.home / "state" / "run" / "engines").iterdir()
    transport = httpx.AsyncHTTPTransport(uds=str(socket_in(directory)))
    async with httpx.AsyncClient(transport=transport) as http:
        await Control("vectors", "embedding", http, PATIENCE).canary()
        with pytest.raises(EngineError, match=r"does not support Completions|404"):
            await Control("vectors", "chat", http, PATIENCE).canary()

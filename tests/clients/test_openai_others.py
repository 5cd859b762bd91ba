"""Embeddings and the list of models by OpenAI's own library."""

import math

import openai
import pytest


def test_vectors_are_the_same_however_they_travel(client: openai.OpenAI) -> None:
    # Without a format the library asks for base64, and decodes it by itself.
    decoded = client.embeddings.create(model="vectors", input=["one", "two"])
    numbers = client.embeddings.create(model="vectors", input=["one", "two"], encoding_format="float")
    assert [entry.embedding for entry in decoded.data] == [entry.embedding for entry in numbers.data]
    assert [entry.index for entry in decoded.data] == [0, 1]
    assert math.hypot(*decoded.data[0].embedding) == pytest.approx(1.0)
    assert decoded.usage == numbers.usage
    assert decoded.usage.prompt_tokens == 2


@pytest.mark.parametrize("given", ["one", ["one"], [1, 2, 3], [[1, 2, 3]]], ids=str)
def test_whatever_form_an_input_has_it_becomes_a_vector(
    client: openai.OpenAI, given: str | list[str] | list[int] | list[list[int]]
) -> None:
    answer = client.embeddings.create(model="vectors", input=given)
    assert len(answer.data) == 1
    assert len(answer.data[0].embedding) == 16


def test_vectors_are_as_long_as_they_are_asked_to_be(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="vectors", input=["one", "two"], dimensions=4)
    assert [len(entry.embedding) for entry in answer.data] == [4, 4]


async def test_the_asynchronous_library_gets_the_same_vectors(
    client: openai.OpenAI, aclient: openai.AsyncOpenAI
) -> None:
    answer = await aclient.embeddings.create(model="vectors", input="one")
    assert answer.data == client.embeddings.create(model="vectors", input="one").data


def test_models_are_listed_with_what_they_do_and_whether_they_are_ready(client: openai.OpenAI) -> None:
    models = {model.id: model.model_extra or {} for model in client.models.list()}
    assert models.keys() == {"tesseract", "simulator", "sim", "vectors", "slow", "frail"}
    assert (models["vectors"]["task"], models["vectors"]["state"]) == ("embedding", "ready")
    assert models["sim"]["root"] == "simulator"


def test_a_model_is_found_by_its_name_or_by_another_one(client: openai.OpenAI) -> None:
    for name in ("simulator", "sim"):
        assert client.models.retrieve(name).id == name


async def test_the_asynchronous_library_lists_the_same_models(
    client: openai.OpenAI, aclient: openai.AsyncOpenAI
) -> None:
    assert [model.id async for model in aclient.models.list()] == [model.id for model in client.models.list()]

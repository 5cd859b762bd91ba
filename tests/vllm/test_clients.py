"""Clients of OpenAI's API on the real vLLM behind gateway and worker, and beside it: what vLLM itself answers."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import httpx
import openai
import pytest
from pydantic import BaseModel
from pymongo import MongoClient

from tests.clients.conftest import Site, checked_ahttp, checked_http
from tests.clients.offline import loopback_only
from tests.clients.test_llm_command import run_llm, write_models
from tests.deployments import default_config
from tests.system import System
from tests.vllm.conftest import entry_of
from tests.vllm.processes import seconds_until
from worker.engine_process import socket_in

# Seconds. On a machine that is busy with other things a start takes some minutes.
START = 900
# Of one token in 10 ms; on a busy machine far more.
TIMEOUT = 120.0
HI: Any = [{"role": "user", "content": "hi"}]
ARGS = [
    "--enforce-eager",
    "--logits-processors",
    "habits:Habits",
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "hermes",
    # A model without sense would fill an answer with blanks wherever JSON may have them.
    "--structured-outputs-config",
    json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
]
# Tab, line feed, carriage return and space as the tiny model has them: the grammar of a call allows them anywhere.
NO_BLANKS = dict.fromkeys(("200", "201", "204", "223"), -100)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        # Without it vLLM keeps to the call's form alone.
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["celsius", "kelvin"]}, "daily": {"type": "boolean"}},
            "required": ["unit", "daily"],
            "additionalProperties": False,
        },
    },
}


class Verdict(BaseModel):
    """What even a model of random weights can say, as the grammar leaves it no way out."""

    colour: Literal["red", "green"]
    sure: bool


@contextmanager
def serving(home: Path, uri: str, config: dict[str, Any], model: str) -> Iterator[Site]:
    """A gateway and a worker with ``model``, which is ready, on a database of their own."""
    database = f"test_{uuid4().hex}"
    with System(home, uri, database, config) as system:
        system.start("worker", "--models", model)
        system.gateway()
        system.sign_in()
        path = f"/admin/models/{model}"
        seconds_until(lambda: system.http.get(path).json()["state"] == "ready", START, every=0.2)
        yield Site(system)
    with MongoClient[dict[str, Any]](uri) as client:
        client.drop_database(database)


@pytest.fixture(scope="module")
def site(python: str, tiny: Path, mongod_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    config = default_config()
    config["queue"] |= {"lease": 10, "drain_timeout": 300}
    config["models"] = {"tiny": entry_of(python, tiny, timeout=600, stall_timeout=600, args=ARGS)}
    config["defaults"] = {"chat": ["tiny"]}
    with serving(tmp_path_factory.mktemp("system"), mongod_uri, config, "tiny") as site:
        yield site


@pytest.fixture(autouse=True)
def offline() -> Iterator[None]:
    with loopback_only():
        yield


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=site.url, api_key=site.key, timeout=TIMEOUT, http_client=checked_http()) as client:
        yield client


@pytest.fixture
def engine(site: Site) -> Iterator[httpx.Client]:
    """To the engine itself, past everything that is ours."""
    (directory,) = (site.system.home / "state" / "run" / "engines").iterdir()
    transport = httpx.HTTPTransport(uds=str(socket_in(directory)))
    with httpx.Client(transport=transport, base_url="http://engine", timeout=TIMEOUT) as http:
        yield http


@pytest.fixture
def direct(engine: httpx.Client) -> openai.OpenAI:
    """The same client, at vLLM itself."""
    return openai.OpenAI(base_url="http://engine/v1", api_key="none", http_client=engine, max_retries=0)


Ask = Callable[[openai.OpenAI], BaseModel]


def chat(**options: Any) -> Ask:
    asked = {"model": "tiny", "messages": HI, "max_tokens": 12, "temperature": 0} | options
    return lambda client: client.chat.completions.create(**asked)


def completion(**options: Any) -> Ask:
    asked = {"model": "tiny", "prompt": "hi", "max_tokens": 12, "temperature": 0} | options
    return lambda client: client.completions.create(**asked)


ALIKE: dict[str, Ask] = {
    "a chat at temperature 0": chat(),
    "a chat by its seed": chat(temperature=1.0, seed=7),
    "two choices": chat(n=2, temperature=1.0, seed=7),
    "log probabilities": chat(logprobs=True, top_logprobs=3),
    "until a string": chat(max_tokens=400, temperature=1.0, seed=1, stop=["a", "e"]),
    "a schema": chat(
        max_tokens=100,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "verdict", "schema": Verdict.model_json_schema(), "strict": True},
        },
    ),
    "a named tool": chat(
        max_tokens=100,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        logit_bias=NO_BLANKS,
    ),
    "some tool": chat(
        max_tokens=200, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, logit_bias=NO_BLANKS
    ),
    "a tool where the model wants one": chat(tools=[WEATHER]),
    "parameters of vLLM": chat(
        extra_body={
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.3,
            "min_tokens": 4,
            "ignore_eos": True,
            "bad_words": ["q"],
            "skip_special_tokens": False,
            "include_stop_str_in_output": True,
        }
    ),
    "a completion": completion(),
    "several prompts": completion(prompt=["hi", "ho"], n=2, temperature=1.0, seed=3),
    "a completion with its prompt": completion(echo=True),
    "log probabilities of a completion": completion(logprobs=2),
    "tokens for a prompt": completion(prompt=[10, 20, 30]),
}
# Of each call at random, and vLLM's name for its own build.
_ASIDE = ("id", "created", "system_fingerprint")


def essence(value: Any) -> Any:
    """An answer without what says nothing and what differs each time.

    Beside a call of a tool, vLLM has an empty text or none, ends by ``stop`` or ``tool_calls``, and writes the
    arguments anew or leaves them as generated, by whether it answers whole or as a stream.
    """
    if isinstance(value, list):
        return [essence(item) for item in value]
    if isinstance(value, dict):
        aside = {*_ASIDE, *(("finish_reason",) if (value.get("message") or {}).get("tool_calls") else ())}
        told = {key: inner for key, inner in value.items() if inner not in (None, [], "") and key not in aside}
        if "arguments" in told:
            told["arguments"] = json.loads(told["arguments"])
        return {key: essence(inner) for key, inner in told.items()}
    return value


@pytest.mark.parametrize("ask", ALIKE.values(), ids=ALIKE.keys())
def test_an_answer_is_what_vllm_itself_answers(client: openai.OpenAI, direct: openai.OpenAI, ask: Ask) -> None:
    ours, theirs = ask(client).to_dict(), ask(direct).to_dict()
    assert essence(ours) == essence(theirs)


def test_what_it_was_asked_for_is_there(client: openai.OpenAI) -> None:
    """So that the comparison above is not one of nothing with nothing."""
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=5, n=2, seed=1, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert [len(token.top_logprobs) for token in choice.logprobs.content or ()] == [2] * 5
    echoed = client.completions.create(model="tiny", prompt="hi", max_tokens=3, echo=True, logprobs=1)
    assert echoed.choices[0].text.startswith("hi")
    assert echoed.choices[0].logprobs is not None
    assert echoed.choices[0].logprobs.token_logprobs is not None
    stopped = client.chat.completions.create(model="tiny", messages=HI, max_tokens=900, seed=1, stop=["a", "e"])
    assert stopped.choices[0].finish_reason == "stop"
    assert not {"a", "e"} & set(stopped.choices[0].message.content or "")


def test_the_same_seed_gives_the_same_answer_and_another_another(client: openai.OpenAI) -> None:
    def said(seed: int) -> str | None:
        asked = client.chat.completions.create(model="tiny", messages=HI, max_tokens=20, seed=seed)
        return asked.choices[0].message.content

    assert said(1) == said(1) != said(2)


@pytest.mark.parametrize("name", ["a chat at temperature 0", "log probabilities"])
def test_a_stream_adds_up_to_what_vllm_itself_answers(client: openai.OpenAI, direct: openai.OpenAI, name: str) -> None:
    options = {"logprobs": True, "top_logprobs": 3} if name == "log probabilities" else {}
    whole = chat(**options)(direct)
    *chunks, last = client.chat.completions.create(
        model="tiny",
        messages=HI,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        **options,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content  # type: ignore[attr-defined]
    assert last.usage.total_tokens == whole.usage.total_tokens  # type: ignore[attr-defined]
    if options:
        told = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
        assert told == whole.choices[0].logprobs.content  # type: ignore[attr-defined]


def test_a_schema_is_parsed_into_what_the_program_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=HI, max_tokens=100, temperature=0, response_format=Verdict
    )
    assert isinstance(answer.choices[0].message.parsed, Verdict)
    with client.chat.completions.stream(
        model="tiny", messages=HI, max_tokens=100, temperature=0, response_format=Verdict
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


def test_a_tool_is_called_in_a_stream_and_its_result_is_taken(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny",
        messages=HI,
        max_tokens=100,
        temperature=0,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        logit_bias=NO_BLANKS,
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments).keys() == {"unit", "daily"}
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    after = client.chat.completions.create(model="tiny", messages=[*HI, message, result], max_tokens=5, tools=[WEATHER])
    assert after.choices[0].message.content is not None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "what may end the engine": ({"mm_processor_kwargs": {"size": 1}}, "mm_processor_kwargs"),
    "what is not allowed": ({"prompt_logprobs": 1}, "prompt_logprobs"),
    "more tokens than the context has": ({"max_tokens": 100_000}, "32768"),
    "a schema that is none": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
        "",
    ),
}


@pytest.mark.parametrize(("body", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_not_do_is_a_bad_request_and_the_engine_lives(
    client: openai.OpenAI, engine: httpx.Client, body: dict[str, Any], word: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=word or None):
            client.chat.completions.create(model="tiny", messages=HI, stream=stream, extra_body=body)
    assert engine.get("/health").status_code == 200


async def test_the_asynchronous_library_streams_side_by_side(site: Site) -> None:
    async with openai.AsyncOpenAI(
        base_url=site.url, api_key=site.key, timeout=TIMEOUT, http_client=checked_ahttp()
    ) as client:

        async def said(seed: int, *, stream: bool) -> str:
            asked: Any = {"model": "tiny", "messages": HI, "max_tokens": 20, "seed": seed}
            if not stream:
                return (await client.chat.completions.create(**asked)).choices[0].message.content or ""
            chunks = await client.chat.completions.create(**asked, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

        streamed = await asyncio.gather(*(said(seed, stream=True) for seed in range(5)))
        assert streamed == await asyncio.gather(*(said(seed, stream=False) for seed in range(5)))


def running(engine: httpx.Client) -> float:
    """Requests that the engine runs, by its own count."""
    lines = engine.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running{"))


@pytest.mark.parametrize("stream", [True, False], ids=["in mid-stream", "while it waits"])
def test_the_engine_stops_within_a_second_of_a_client_that_hangs_up(
    site: Site, client: openai.OpenAI, engine: httpx.Client, stream: bool
) -> None:
    assert running(engine) == 0
    endless: Any = {"model": "tiny", "messages": HI, "max_tokens": 20_000, "extra_body": {"ignore_eos": True}}
    if stream:
        with client.chat.completions.create(**endless, stream=True) as answer:
            next(iter(answer))
            seconds_until(lambda: running(engine) == 1, within=20)
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=2.0, max_retries=0).chat.completions.create(**endless)
    took = seconds_until(lambda: running(engine) == 0, within=20)
    assert took < 1, f"{took:.2f} s"


def test_langchain_gets_its_objects_and_its_tool_calls(site: Site) -> None:
    from langchain_openai import ChatOpenAI

    with checked_http() as http:
        model = ChatOpenAI(
            model="tiny",
            base_url=site.url,
            api_key=site.key,
            timeout=TIMEOUT,
            http_client=http,
            temperature=0,
            max_tokens=100,
            logit_bias={int(token): bias for token, bias in NO_BLANKS.items()},
        )
        assert isinstance(model.with_structured_output(Verdict).invoke("hi"), Verdict)
        assert isinstance(
            model.with_structured_output(Verdict, method="function_calling", strict=True).invoke("hi"), Verdict
        )
        message = model.bind_tools([WEATHER], tool_choice="weather").invoke("hi")
        assert [call["name"] for call in message.tool_calls] == ["weather"]
        assert "".join(str(chunk.content) for chunk in model.stream("hi")) == model.invoke("hi").content


def test_litellm_gets_texts_and_tool_calls(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    with checked_http() as http:
        monkeypatch.setattr(litellm, "client_session", http)
        asked: Any = {
            "model": "openai/tiny",
            "messages": HI,
            "api_base": site.url,
            "api_key": site.key,
            "temperature": 0,
            "max_tokens": 50,
            "timeout": TIMEOUT,
        }
        text = litellm.completion(**asked).choices[0].message.content
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)) == text
        )
        # As `tools` of its own it takes them only where the package mcp is installed (litellm 1.106).
        tools = {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}}
        called = litellm.completion(**asked, extra_body=tools)
        assert called.choices[0].message.tool_calls[0].function.name == "weather"
        litellm.in_memory_llm_clients_cache.flush_cache()


def test_the_command_line_llm_gets_texts_and_json(site: Site, tmp_path: Path) -> None:
    write_models(tmp_path / "llm", site.url, site.key, "tiny", supports_schema=True)
    options = ("-m", "my-tiny", "-o", "temperature", "0", "-o", "max_tokens", "50")
    streamed = run_llm(tmp_path, *options, "hi")
    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stdout == run_llm(tmp_path, *options, "--no-stream", "hi").stdout
    told = run_llm(tmp_path, *options, "--schema", json.dumps(Verdict.model_json_schema()), "hi")
    assert Verdict.model_validate_json(told.stdout)

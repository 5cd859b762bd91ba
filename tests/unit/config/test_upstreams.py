"""Entries for upstreams, and fallbacks: what is wrong with them is named with its line."""

from collections.abc import Callable

import pytest

from config import OpenaiSettings, Settings
from config.fallbacks import chain, loop

Load = Callable[..., Settings]
Refusal = Callable[..., list[str]]

ENTRY = """
models:
  m:
    task: chat
    engine: openai
"""


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("", "3: models.m.base_url: missing"),
        ("    backends: []\n", "3: models.m.base_url: missing"),
        (
            "    base_url: http://h/v1\n    backends: [{name: a, base_url: 'http://a/v1'}]\n",
            "6: models.m.base_url: goes into each of the backends, where there are some",
        ),
        (
            "    api_key: hunter2\n    backends: [{name: a, base_url: 'http://a/v1'}]\n",
            "6: models.m.api_key: goes into each of the backends, where there are some",
        ),
        ("    backends: [{name: a}]\n", "6: models.m.backends[0].base_url: missing"),
        (
            "    backends: [{name: a, base_url: 'http://a', wieght: 2}]\n",
            "6: models.m.backends[0].wieght: unknown key (did you mean weight?)",
        ),
        (
            "    backends: [{name: a, base_url: 'http://a', api_base: x}]\n",
            "6: models.m.backends[0].api_base: unknown key (here it is called base_url)",
        ),
        (
            "    backends:\n      - {name: a, base_url: 'http://a'}\n      - {name: a, base_url: 'http://b'}\n",
            "8: models.m.backends[1].name: another backend is already called 'a'",
        ),
        (
            "    balance: weight\n    backends: [{name: a, base_url: 'http://a', weight: 1e-16}]\n",
            "7: models.m.backends[0].weight: must be at least 0.001",
        ),
        (
            "    backends: [{name: a, base_url: 'http://a', weight: 3}]\n",
            "6: models.m.backends[0].weight: counts only with balance: weight",
        ),
        (
            "    base_url: http://h/v1\n    balance: least_busy\n",
            "7: models.m.balance: chooses among backends, and there are none",
        ),
        (
            "    backends: [{name: a, base_url: 'http://a'}]\n    balance: least_bussy\n",
            "7: models.m.balance: expected round_robin, weight, least_busy or latency (did you mean least_busy?)",
        ),
        (
            "    base_url: http://h/v1\n    breaker: {failurs: 2}\n",
            "7: models.m.breaker.failurs: unknown key (did you mean failures?)",
        ),
        (
            "    base_url: http://h/v1\n    conect_timeout: 2\n",
            "7: models.m.conect_timeout: unknown key (did you mean connect_timeout?)",
        ),
        (
            "    base_url: http://h/v1\n    api_key: ''\n",
            "7: models.m.api_key: expected a key of visible ASCII characters, without spaces",
        ),
        (
            "    base_url: http://h/v1\n    headers: {'api key': x}\n",
            "7: models.m.headers.api key: expected the name of an HTTP header",
        ),
        (
            "    base_url: http://h/v1\n    headers: {Transfer-encoding: chunked}\n",
            "7: models.m.headers.Transfer-encoding: each request has this header of its own",
        ),
        (
            "    base_url: http://h/v1\n    api_key: hunter2\n    headers: {authorization: Basic x}\n",
            "8: models.m.headers.authorization: api_key goes in this header: give one of them",
        ),
        (
            "    backends: [{name: a, base_url: 'http://a', api_key: hunter2, headers: {Authorization: x}}]\n",
            "6: models.m.backends[0].headers.Authorization: api_key goes in this header: give one of them",
        ),
        (
            "    base_url: http://h/v1\n    timeout: 10\n    read_timeout: 1m\n",
            "3: models.m: read_timeout may not be longer than timeout (10 s)",
        ),
    ],
)
def test_what_is_wrong_with_an_upstream_is_named_with_its_line(refusal: Refusal, lines: str, problem: str) -> None:
    assert refusal(ENTRY + lines) == [f"config.yaml:{problem}"]


@pytest.mark.parametrize(
    "address", ["http://:8000/v1", "http://h:99999/v1", "http://h:0/v1", "http://h:port/v1", "http://[::1/v1"]
)
def test_an_address_that_nobody_can_have_is_refused(refusal: Refusal, address: str) -> None:
    [problem] = refusal(f"{ENTRY}    base_url: '{address}'\n")
    assert problem == "config.yaml:6: models.m.base_url: expected an address with a host and a port that there can be"


@pytest.mark.parametrize("address", ["http://h", "https://[::1]:8000/v1", "http://10.0.0.1:65535/v1"])
def test_an_address_may_do_without_what_is_usual(load: Load, address: str) -> None:
    entry = load(f"{ENTRY}    base_url: '{address}'\n").models["m"]
    assert isinstance(entry, OpenaiSettings)
    assert entry.base_url == address


FALLBACKS = """
models:
  a: {task: chat, engine: simulator, fallbacks: [b, c, beta]}
  b: {task: chat, engine: simulator, aliases: [beta], fallbacks: [b]}
  c: {task: chat, engine: simulator, fallbacks: [d]}
  d: {task: chat, engine: simulator, fallbacks: [e, page, c]}
  page: {task: ocr, engine: tesseract}
"""


def test_fallbacks_that_cannot_stand_in_are_refused(refusal: Refusal) -> None:
    assert refusal(FALLBACKS) == [
        "config.yaml:3: models.a.fallbacks[2]: 'beta' is an alias: write the model's name, b",
        "config.yaml:4: models.b.fallbacks[0]: a model cannot stand in for itself",
        "config.yaml:5: models.c.fallbacks: go in a circle: c → d → c",
        "config.yaml:6: models.d.fallbacks[0]: there is no model 'e'",
        "config.yaml:6: models.d.fallbacks[1]: the task of 'page' is ocr, not chat",
    ]


def test_a_circle_is_told_of_once(refusal: Refusal) -> None:
    names = {"a": "b", "b": "c", "c": "a"}
    text = "models:\n" + "".join(
        f"  {name}: {{task: chat, engine: simulator, fallbacks: [{other}]}}\n" for name, other in names.items()
    )
    assert refusal(text) == ["config.yaml:2: models.a.fallbacks: go in a circle: a → b → c → a"]


def test_secrets_of_backends_are_not_in_the_repr(load: Load) -> None:
    settings = load(
        """
models:
  m:
    task: chat
    engine: openai
    backends:
      - {name: a, base_url: "http://a/v1", api_key: hunter2, headers: {api-key: "${env:KEY}"}, query: {api-version: 1}}
""",
        KEY="hunter2",
    )
    entry = settings.models["m"]
    assert isinstance(entry, OpenaiSettings)
    [server] = entry.servers("m")
    assert server.headers["api-key"].get_secret_value() == "hunter2"
    assert server.query == {"api-version": "1"}
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_a_key_is_taken_without_the_line_end_that_mounted_secrets_have(load: Load) -> None:
    keys = "    api_key: ${env:KEY}\n    headers: {x-key: '${env:KEY}', x-as: 'a b'}\n"
    entry = load(f"{ENTRY}    base_url: http://h/v1\n{keys}", KEY="  sk-hunter2\r\n").models["m"]
    assert isinstance(entry, OpenaiSettings)
    [server] = entry.servers("m")
    assert server.api_key is not None
    assert server.api_key.get_secret_value() == "sk-hunter2"
    assert {name: value.get_secret_value() for name, value in server.headers.items()} == {
        "x-key": "sk-hunter2",
        "x-as": "a b",
    }


@pytest.mark.parametrize("key", ["sk-hunter2\nsk-other", "sk-hunter2 x", "sk-hünter2", "sk-\x00hunter2"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(refusal: Refusal, key: str) -> None:
    text = ENTRY + "    base_url: http://h/v1\n    api_key: ${env:KEY}\n"
    [problem] = refusal(text, KEY=key)
    assert problem.startswith("config.yaml:7: models.m.api_key: ")
    assert "visible ASCII" in problem
    assert "sk-" not in problem


def test_a_header_that_cannot_be_sent_is_refused_without_being_shown(refusal: Refusal) -> None:
    text = ENTRY + "    base_url: http://h/v1\n    headers: {api-key: '${env:KEY}'}\n"
    [problem] = refusal(text, KEY="sk-hunter2\nx")
    assert problem.startswith("config.yaml:7: models.m.headers.api-key: ")
    assert "sk-" not in problem


def test_an_entry_with_one_upstream_is_a_backend_of_its_name(load: Load) -> None:
    settings = load(ENTRY + "    base_url: http://h/v1\n    api_key: k\n    query: {a: b}\n")
    entry = settings.models["m"]
    assert isinstance(entry, OpenaiSettings)
    [server] = entry.servers("m")
    assert (server.name, server.base_url, server.query) == ("m", "http://h/v1", {"a": "b"})
    assert server.api_key is not None


GRAPH = {"a": ["b", "d"], "b": ["c"], "c": [], "d": ["c", "e"], "e": []}


def test_a_chain_follows_each_fallback_to_its_end_and_names_none_twice() -> None:
    assert chain("a", GRAPH.__getitem__) == ("b", "c", "d", "e")
    assert loop("a", GRAPH.__getitem__) is None
    assert loop("a", {**GRAPH, "e": ["a"]}.__getitem__) == ["a", "d", "e", "a"]


def test_circles_are_looked_for_in_the_densest_of_graphs() -> None:
    names = [f"m{number}" for number in range(60)]
    dense = {name: names[number + 1 :] for number, name in enumerate(names)}
    assert [loop(name, dense.__getitem__) for name in names] == [None] * 60
    dense[names[-1]] = [names[30]]
    way = loop(names[30], dense.__getitem__)
    assert way is not None
    assert (way[0], way[-1], len(set(way))) == (names[30], names[30], len(way) - 1)

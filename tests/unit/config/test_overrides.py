from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import OpenaiSettings, Settings, SimulatorSettings, VllmSettings
from config.overrides import find_overrides, put, read_named

Load = Callable[..., Settings]
Refusal = Callable[..., list[str]]

MODELS = """
server: {host: 127.0.0.2, port: 1111}
models:
  deepseek-ocr: {task: ocr, engine: vllm, env: {HF_HOME: /a}}
  llama3.1:8b: {task: chat, engine: simulator}
  up: {task: chat, engine: openai, base_url: http://localhost:11434/v1}
"""


def test_a_named_variable_wins_over_the_file(load: Load) -> None:
    settings = load(MODELS, SERVER_PORT="2222", SERVER_HOST="0.0.0.0", MONGODB_URI="mongodb://db")
    assert (settings.server.port, settings.server.host) == (2222, "0.0.0.0")
    assert settings.mongodb.uri == "mongodb://db"


def test_a_key_named_by_the_rule_wins_over_both(load: Load) -> None:
    settings = load(MODELS, SERVER_PORT="2222", ROUNDHOUSE__SERVER__PORT="3333")
    assert settings.server.port == 3333
    assert settings.server.host == "127.0.0.2"


def test_an_empty_named_variable_counts_as_unset(load: Load) -> None:
    environ = dict.fromkeys(["SERVER_PORT", "SERVER_HOST", "MONGODB_URI", "ROUNDHOUSE_HOME"], "")
    settings = load(MODELS, **environ, ROUNDHOUSE_CONFIG="")
    assert settings.server.port == 1111
    assert settings.mongodb.uri is None


def test_the_value_of_an_override_is_yaml(load: Load) -> None:
    settings = load(
        MODELS,
        ROUNDHOUSE__RATE_LIMIT__ENABLED="false",
        ROUNDHOUSE__DEFAULTS__CHAT="[up, 'llama3.1:8b']",
        ROUNDHOUSE__SERVER__MAX_UPLOAD="20MB",
        ROUNDHOUSE__QUEUE="{lease: 5s, retry_backoff: 2}",
        ROUNDHOUSE__QUEUE__LEASE="6s",
    )
    assert settings.rate_limit.enabled is False
    assert settings.defaults.chat == ["up", "llama3.1:8b"]
    assert settings.server.max_upload == 20 * 2**20
    assert (settings.queue.lease, settings.queue.retry_backoff) == (6, 2)


@pytest.mark.parametrize(
    ("written", "key"),
    [("12345", "12345"), ("[a:b#c]", "[a:b#c]"), ("@x", "@x"), ('"quoted"', "quoted"), ("true", "true")],
)
def test_the_value_for_a_text_key_is_taken_as_it_is(load: Load, written: str, key: str) -> None:
    model = load(MODELS, ROUNDHOUSE__MODELS__UP__API_KEY=written).models["up"]
    assert isinstance(model, OpenaiSettings)
    assert model.api_key is not None
    assert model.api_key.get_secret_value() == key


@pytest.mark.parametrize("nothing", ["", "null", "~"])
def test_a_key_that_may_be_unset_can_be_unset(load: Load, nothing: str) -> None:
    settings = load("mongodb: {uri: mongodb://db}", ROUNDHOUSE__MONGODB__URI=nothing)
    assert settings.mongodb.uri is None


def test_names_match_in_any_case_and_with_underscores(load: Load) -> None:
    settings = load(
        MODELS,
        roundhouse__models__deepseek_ocr__max_waiting="500",
        ROUNDHOUSE__MODELS__LLAMA3_1_8B__TOKENS="7",
        ROUNDHOUSE__MODELS__DEEPSEEK_OCR__ENV__HF_HOME="/b",
        ROUNDHOUSE__MODELS__DEEPSEEK_OCR__ENV__HF_Token="t",
        ROUNDHOUSE__AUTH__ROLES__USER__MAX_PRIORITY="low",
    )
    vllm, llama = settings.models["deepseek-ocr"], settings.models["llama3.1:8b"]
    assert isinstance(vllm, VllmSettings)
    assert isinstance(llama, SimulatorSettings)
    assert vllm.max_waiting == 500
    assert vllm.env == {"HF_HOME": "/b", "HF_Token": "t"}
    assert llama.tokens == 7
    assert settings.auth.roles["user"].max_priority == "low"
    assert settings.auth.roles["admin"].max_priority == "high"


def test_a_name_with_two_underscores_is_found(load: Load) -> None:
    text = "models: {a: {task: chat, engine: simulator}, a__b: {task: chat, engine: simulator}}"
    settings = load(text, ROUNDHOUSE__MODELS__A__B__TIMEOUT="9", ROUNDHOUSE__MODELS__A__TIMEOUT="8")
    assert settings.models["a__b"].timeout == 9
    assert settings.models["a"].timeout == 8


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        ("ROUNDHOUSE__SERVER__PROT", "there is no key 'prot' in server (did you mean port?)"),
        ("ROUNDHOUSE__SERVR__PORT", "there is no key 'servr' (did you mean server?)"),
        ("ROUNDHOUSE__MODELS__UPP__TASK", "there is no key 'upp' in models (did you mean up?)"),
        ("ROUNDHOUSE__MODELS__UP__LANGUAGES", "there is no key 'languages' in models.up"),
        ("ROUNDHOUSE__SERVER__PORT__X", "there is no key 'x' in server.port"),
        ("ROUNDHOUSE__SERVER__", "ends in __: name a key"),
        ("ROUNDHOUSE__", "names no key"),
        ("ROUNDHOUSE__HOME", "names no key of the file (did you mean ROUNDHOUSE_HOME?)"),
        ("ROUNDHOUSE__JWT_SECRET", "there is no key 'jwt_secret'"),
    ],
)
def test_an_override_that_names_no_key_is_refused(refusal: Refusal, variable: str, problem: str) -> None:
    assert refusal(MODELS, **{variable: "1"}) == [f"{variable}: {problem}"]


def test_an_override_of_two_possible_names_is_refused(refusal: Refusal) -> None:
    text = "models: {a-b: {task: chat, engine: simulator}, a.b: {task: chat, engine: simulator}}"
    assert refusal(text, ROUNDHOUSE__MODELS__A_B__TOKENS="1") == [
        "ROUNDHOUSE__MODELS__A_B__TOKENS: could mean a-b or a.b: change it in the file instead"
    ]


def test_two_overrides_of_one_key_are_refused(refusal: Refusal) -> None:
    assert refusal("", ROUNDHOUSE__SERVER__PORT="1", roundhouse__server__port="2") == [
        "roundhouse__server__port: names the same key as ROUNDHOUSE__SERVER__PORT: keep one of them"
    ]


def test_a_wrong_value_names_the_variable_that_gave_it(refusal: Refusal) -> None:
    problems = refusal(MODELS, SERVER_PORT="http", ROUNDHOUSE__QUEUE="{lease: x}", ROUNDHOUSE__AUTH__ISSUER="")
    assert problems == [
        "SERVER_PORT: server.port: expected a whole number, got text",
        "ROUNDHOUSE__QUEUE: queue.lease: expected a duration: seconds as a number, or 30s, 5m, 2h, 15d",
        "ROUNDHOUSE__AUTH__ISSUER: auth.issuer: may not be empty",
    ]


def test_an_override_that_is_not_yaml_is_refused_without_its_value(refusal: Refusal) -> None:
    [problem] = refusal("", ROUNDHOUSE__SERVER__PORT="[hunter2")
    assert problem.startswith("ROUNDHOUSE__SERVER__PORT: not valid YAML: ")
    assert "hunter2" not in problem


def test_an_override_does_not_hide_a_section_of_the_wrong_type(refusal: Refusal) -> None:
    assert refusal("server: 5", SERVER_PORT="99") == ["config.yaml:1: server: expected a mapping, got a number"]


def test_an_override_mends_a_wrong_value_of_the_file(load: Load) -> None:
    assert load("server: {port: x}", SERVER_PORT="99").server.port == 99


@pytest.mark.parametrize("password", ["", " ", "admin", "Admin"])
def test_an_empty_or_customary_admin_password_is_refused(refusal: Refusal, password: str) -> None:
    [problem] = refusal("", ADMIN_PASSWORD=password)
    assert problem.startswith("ADMIN_PASSWORD: may not be empty or 'admin'")


@pytest.mark.parametrize("password", ["hunter2", "x" * 1025])
def test_an_admin_password_that_no_user_may_have_is_refused_without_showing_it(refusal: Refusal, password: str) -> None:
    [problem] = refusal("", ADMIN_PASSWORD=password)
    assert problem == (
        "ADMIN_PASSWORD: a password has 8 to 1024 characters: choose another, or unset it and one is generated"
    )


@pytest.mark.parametrize("secret", ["", "hunter2", "x" * 31])
def test_a_short_signing_key_is_refused_without_showing_it(refusal: Refusal, secret: str) -> None:
    [problem] = refusal("", JWT_SECRET=secret)
    assert problem == "JWT_SECRET: too short: a signing key has at least 32 characters"


def test_good_secrets_are_read_and_hidden(load: Load) -> None:
    settings = load("", JWT_SECRET="s" * 32, ADMIN_PASSWORD="hunter22")
    assert settings.jwt_secret is not None
    assert settings.admin_password is not None
    assert settings.jwt_secret.get_secret_value() == "s" * 32
    assert settings.admin_password.get_secret_value() == "hunter22"
    assert "s" * 32 not in repr(settings)
    assert "hunter22" not in repr(settings)


def test_only_the_given_environment_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_PORT", "1")
    named, problems = read_named({"SERVER_HOST": "h"})
    assert (named.server_host, named.server_port, problems) == ("h", None, [])


def test_put_makes_the_sections_it_needs_and_stops_at_other_values() -> None:
    data: dict[str, object] = {"a": None, "b": 1}
    assert put(data, ("a", "x"), 1)
    assert put(data, ("c", "y", "z"), 2)
    assert not put(data, ("b", "x"), 3)
    assert data == {"a": {"x": 1}, "b": 1, "c": {"y": {"z": 2}}}


@given(st.text(max_size=30), st.text(max_size=10))
def test_any_variable_is_either_understood_or_refused(rest: str, value: str) -> None:
    data = {"models": {"a": {"engine": "vllm"}}}
    for override in find_overrides(data, {f"ROUNDHOUSE__{rest}": value, f"ROUNDHOUSE__MODELS__A__{rest}": value}):
        assert bool(override.path) != bool(override.problem)

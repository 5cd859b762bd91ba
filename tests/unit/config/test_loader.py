import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from config import ConfigError, OpenaiSettings, Settings, TesseractSettings, VllmSettings, load_settings

Load = Callable[..., Settings]
Refusal = Callable[..., list[str]]


def model(*lines: str) -> str:
    """A file with one model, m, whose keys stand on lines 3 and following."""
    return "models:\n  m:\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize("text", ["", "# nothing\n", "server:\nmodels:\ndefaults:\n  ocr:\n", "{}"])
def test_a_file_that_says_nothing_means_the_defaults(load: Load, tmp_path: Path, text: str) -> None:
    settings = load(text)
    assert settings.config_path == tmp_path / "config.yaml"
    assert settings.home == tmp_path / ".roundhouse"
    assert not settings.home.exists()
    server, queue, auth = settings.server, settings.queue, settings.auth
    assert (server.host, server.port, server.workers) == ("127.0.0.1", 8080, 1)
    assert (server.max_upload, server.max_wait) == (10 * 1024 * 1024, 120.0)
    assert (settings.mongodb.uri, settings.mongodb.database) == (None, "roundhouse")
    assert (queue.lease, queue.poll_interval, queue.drain_timeout) == (30.0, 1.0, 30.0)
    assert (queue.retry_backoff, queue.retry_backoff_max) == (1.0, 60.0)
    assert (auth.issuer, auth.audience) == ("roundhouse", "roundhouse")
    assert (auth.access_token_ttl, auth.refresh_token_ttl) == (3600.0, 30 * 86400.0)
    assert {name: role.max_priority for name, role in auth.roles.items()} == {
        "admin": "high",
        "service": "high",
        "user": "normal",
    }
    assert (settings.rate_limit.enabled, settings.rate_limit.requests_per_minute) == (True, 60)
    assert (settings.rate_limit.burst, settings.rate_limit.exempt_roles) == (10, ["service"])
    assert settings.history.retention == 15 * 86400.0
    assert (settings.auto_switch.enabled, settings.auto_switch.pattern_window_days) == (True, 7)
    assert settings.models == {}
    assert (settings.defaults.ocr, settings.defaults.chat) == ([], [])
    assert settings.jwt_secret is None
    assert settings.admin_password is None


def test_a_model_entry_has_its_engines_keys_and_the_common_ones(load: Load) -> None:
    settings = load(model("task: ocr", "engine: tesseract", "languages: [eng, chi_sim, script/Latin]", "timeout: 5m"))
    entry = settings.models["m"]
    assert isinstance(entry, TesseractSettings)
    assert (entry.languages, entry.dpi, entry.max_pages) == (["eng", "chi_sim", "script/Latin"], 300, 500)
    assert (entry.max_concurrent, entry.max_waiting, entry.max_retries, entry.timeout) == (10, 10, 3, 300.0)
    assert (entry.model, entry.aliases, entry.description) == (None, [], "")


def test_numbers_among_arguments_and_variables_become_text(load: Load) -> None:
    entry = load(model("task: chat", "engine: vllm", "args: [--seed, 7]", "env: {OMP_NUM_THREADS: 4}")).models["m"]
    assert isinstance(entry, VllmSettings)
    assert (entry.args, entry.env) == (["--seed", "7"], {"OMP_NUM_THREADS": "4"})


def test_settings_cannot_be_changed(load: Load) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load("").server.port = 1  # type: ignore[misc]


def test_a_name_or_an_alias_resolves_to_the_model(load: Load) -> None:
    settings = load(model("task: chat", "engine: simulator", "aliases: [gpt-4, a/b]"))
    assert [settings.resolve(name) for name in ("m", "gpt-4", "a/b", "M", "")] == ["m", "m", "m", None, None]


def test_an_adapter_resolves_to_the_model_that_it_belongs_to(load: Load) -> None:
    settings = load(model("task: chat", "engine: vllm", "aliases: [big]", "lora: {law: /lora/law}"))
    assert [settings.resolve(name) for name in ("big", "law")] == ["m", "m"]
    assert [settings.adapter(name) for name in ("law", "big", "m", None)] == ["law", None, None, None]


def test_an_adapter_may_not_be_called_as_another_model(refusal: Refusal) -> None:
    assert refusal(model("task: chat", "engine: vllm", "aliases: [law]", "lora: {m: /a, law: /b}")) == [
        "config.yaml:6: models.m.lora.m: 'm' is already the name of a model",
        "config.yaml:6: models.m.lora.law: 'law' is already another name of m",
    ]


def test_an_added_role_leaves_the_others(load: Load) -> None:
    roles = load("auth: {roles: {batch: {max_priority: low}, user: {max_priority: low}}}").auth.roles
    assert {name: role.max_priority for name, role in roles.items()} == {
        "admin": "high",
        "service": "high",
        "user": "low",
        "batch": "low",
    }


def test_a_reference_takes_the_type_that_its_key_wants(load: Load) -> None:
    text = """
server: {port: "${env:PORT}", max_wait: "${env:WAIT:-90s}", host: "${env:HOST}"}
rate_limit: {enabled: "${env:LIMIT}"}
models:
  m: {task: "${env:TASK}", engine: "${env:ENGINE}", base_url: "http://${env:HOST}/v1", api_key: "${env:KEY}",
      aliases: "${env:ALIASES}", model: "${env:MODEL:-}"}
"""
    environ = {"PORT": "81", "HOST": "1", "LIMIT": "false", "TASK": "chat", "ENGINE": "openai", "KEY": "007"}
    settings = load(text, **environ, ALIASES="[a, b]")
    entry = settings.models["m"]
    assert isinstance(entry, OpenaiSettings)
    assert (settings.server.port, settings.server.max_wait, settings.server.host) == (81, 90.0, "1")
    assert settings.rate_limit.enabled is False
    assert (entry.base_url, entry.aliases, entry.model) == ("http://1/v1", ["a", "b"], None)
    assert entry.api_key is not None
    assert entry.api_key.get_secret_value() == "007"


def test_a_reference_to_a_value_of_the_wrong_type_is_refused(refusal: Refusal) -> None:
    text = "server:\n  port: ${env:A}\n  workers: ${env:B}\n  max_wait: ${env:C:-}\n"
    assert refusal(text, A="hunter2", B="[hunter2") == [
        "config.yaml:2: server.port: expected a whole number, got text",
        "config.yaml:3: server.workers: expected a whole number, got text",
        "config.yaml:4: server.max_wait: expected a number, got nothing",
    ]


def test_secrets_are_not_in_the_repr(load: Load) -> None:
    settings = load(
        """
mongodb: {uri: "mongodb://u:hunter2@h"}
models:
  a: {task: chat, engine: openai, base_url: "http://h/v1", api_key: hunter2}
  b: {task: chat, engine: vllm, env: {HF_TOKEN: hunter2}, args: [--api-key, hunter2]}
"""
    )
    assert settings.mongodb.uri == "mongodb://u:hunter2@h"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["max_concurent: 3"], "5: models.m.max_concurent: unknown key (did you mean max_concurrent?)"),
        (["zzz: 3"], "5: models.m.zzz: unknown key"),
        (["languages: [eng]"], "5: models.m.languages: unknown key for this engine (it belongs to tesseract)"),
        (["num_retries: 3"], "5: models.m.num_retries: unknown key (here it is called max_retries)"),
        (
            ["concurrencyLimit: 3"],
            "5: models.m.concurrencyLimit: unknown key (here it is called max_concurrent)",
        ),
        (['max_waiting: "3"'], "5: models.m.max_waiting: expected a whole number, got text"),
        (["max_waiting: 3.5"], "5: models.m.max_waiting: expected a whole number, got a number"),
        (["max_waiting: true"], "5: models.m.max_waiting: expected a whole number, got true or false"),
        (["max_waiting: [1]"], "5: models.m.max_waiting: expected a whole number, got a list"),
        (["max_waiting:"], "5: models.m.max_waiting: expected a whole number, got nothing"),
        (["max_waiting: 100001"], "5: models.m.max_waiting: must be at most 100000"),
        (["max_concurrent: 0"], "5: models.m.max_concurrent: must be at least 1"),
        (["timeout: 0"], "5: models.m.timeout: must be more than 0"),
        (["faults: yes"], "5: models.m.faults: expected true or false, got text"),
        (["description: 5"], "5: models.m.description: expected text, got a number"),
        (["aliases: gpt"], "5: models.m.aliases: expected a list, got text"),
        (['model: ""'], "5: models.m.model: may not be empty"),
        (
            ["description: ${env:NO}"],
            "5: models.m.description: the environment variable NO is not set: set it, or write ${env:NO:-default}",
        ),
    ],
)
def test_a_wrong_key_is_named_with_its_path_and_line(refusal: Refusal, lines: list[str], problem: str) -> None:
    assert refusal(model("task: chat", "engine: simulator", *lines)) == [f"config.yaml:{problem}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            model("task: chat", "engine: tesseract"),
            "3: models.m.task: the engine tesseract does only the task ocr",
        ),
        (
            model("task: oct", "engine: openai", "base_url: http://h"),
            "3: models.m.task: expected chat, ocr or embedding (did you mean ocr?)",
        ),
        (model("engine: simulator"), "2: models.m.task: missing"),
        (model("task: chat"), "2: models.m.engine: missing: one of tesseract, rapidocr, openai, simulator, vllm"),
        (
            model("task: chat", "engine: vlm"),
            "4: models.m.engine: unknown engine (did you mean vllm?): "
            "one of tesseract, rapidocr, openai, simulator, vllm",
        ),
        (model("task: chat", "engine: openai"), "2: models.m.base_url: missing"),
        ("models:\n  m:\n", "2: models.m: expected a mapping, got nothing"),
        ("models: [a]\n", "1: models: expected a mapping, got a list"),
        ("models: {m: [a]}\n", "1: models.m: expected a mapping, got a list"),
        ("auth: {roles: [a]}\n", "1: auth.roles: expected a mapping, got a list"),
        ("server: {}\nserver: {}\n", "2: server: duplicate key (first on line 1)"),
        ("model_list: []\n", "1: model_list: unknown key (here it is called models)"),
        ("home: /x\n", "1: home: unknown key"),
        ("jwt_secret: hunter2\n", "1: jwt_secret: unknown key"),
        ("- a\n", "1: expected a mapping of sections (server, models, ...)"),
        ("queue: {retry_backoff: 2m}\n", "1: queue: retry_backoff may not be longer than retry_backoff_max"),
        (
            "auth: {access_token_ttl: 60d}\n",
            "1: auth: access_token_ttl may not be longer than refresh_token_ttl",
        ),
        (
            "rate_limit:\n  exempt_roles:\n    - usr\n",
            "3: rate_limit.exempt_roles[0]: there is no role 'usr' in auth.roles (did you mean user?)",
        ),
    ],
)
def test_a_wrong_section_is_named_with_its_path_and_line(refusal: Refusal, text: str, problem: str) -> None:
    assert refusal(text) == [f"config.yaml:{problem}"]


@pytest.mark.parametrize(
    "name", ["a b", "", "-a", "a" * 129, "ä", "a?b"], ids=["blank", "empty", "dash", "long", "umlaut", "mark"]
)
def test_a_model_needs_a_name_that_fits_into_a_url(refusal: Refusal, name: str) -> None:
    [problem] = refusal(f'models:\n  "{name}": {{task: chat, engine: simulator}}\n')
    assert problem.startswith(f"config.yaml:2: models.{name}: expected a name: ")


@pytest.mark.parametrize("code", ["eng+deu", "../x", "-l", "/etc/x", "a b", "eng\\n"])
def test_a_language_cannot_be_an_option_or_a_path(refusal: Refusal, code: str) -> None:
    [problem] = refusal(model("task: ocr", "engine: tesseract", f'languages: ["{code}"]'))
    assert problem.startswith("config.yaml:5: models.m.languages[0]: expected one of Tesseract's language codes")


@pytest.mark.parametrize("url", ["h:11434/v1", "ftp://h", "http://u:hunter2@h/v1", "http://h/?key=hunter2", "http://"])
def test_an_upstream_needs_a_plain_address(refusal: Refusal, url: str) -> None:
    [problem] = refusal(model("task: chat", "engine: openai", f'base_url: "{url}"'))
    assert problem == (
        "config.yaml:5: models.m.base_url: expected an http:// or https:// address without credentials"
        " (a key goes in api_key)"
    )


ALIASES = """
models:
  a: {task: chat, engine: simulator, aliases: [b, x, x]}
  b: {task: ocr, engine: simulator, aliases: [x]}
defaults:
  ocr: [b, a, tesseract]
  chat: [x]
"""


def test_colliding_aliases_and_unfitting_defaults_are_refused(refusal: Refusal) -> None:
    assert refusal(ALIASES) == [
        "config.yaml:3: models.a.aliases[0]: 'b' is already the name of a model",
        "config.yaml:3: models.a.aliases[2]: 'x' is already another name of a",
        "config.yaml:4: models.b.aliases[0]: 'x' is already another name of a",
        "config.yaml:6: defaults.ocr[1]: the task of 'a' is chat, not ocr",
        "config.yaml:6: defaults.ocr[2]: there is no model 'tesseract'",
        "config.yaml:7: defaults.chat[0]: 'x' is an alias: write the model's name, b",
    ]


def test_what_is_said_of_documents_is_refused_of_a_model_that_reads_none(refusal: Refusal) -> None:
    entry = 'models:\n  m: {task: chat, engine: openai, base_url: "http://h/v1", dpi: 300}\n'
    (problem,) = refusal(entry)
    assert problem.endswith("models.m.dpi: only a model whose task is ocr reads documents")
    (problem,) = refusal("models:\n  m: {task: chat, engine: vllm, resolution: base}\n")
    assert problem.endswith("models.m.resolution: only a model whose task is ocr reads documents")


EVERYTHING_WRONG = """\
server:
  port: x
  port: y
modls: {}
models:
  a: {task: chat, engine: simulator, dpi: 1, aliases: [b]}
  b: {task: ocr, engine: teseract, timout: 3, max_waiting: -1, dpi: 300}
  c: {task: ocr, engine: tesseract, description: "${env:NO_SUCH}"}
defaults: {ocr: [a]}
"""


def test_all_that_is_wrong_is_reported_together_in_the_order_of_the_file(refusal: Refusal) -> None:
    problems = refusal(EVERYTHING_WRONG, JWT_SECRET="short", ROUNDHOUSE__NO="1")
    assert [problem.split(": ")[:2] for problem in problems] == [
        ["config.yaml:3", "server.port"],
        ["config.yaml:4", "modls"],
        ["config.yaml:6", "models.a.dpi"],
        ["config.yaml:6", "models.a.aliases[0]"],
        ["config.yaml:7", "models.b.engine"],
        ["config.yaml:7", "models.b.max_waiting"],
        ["config.yaml:7", "models.b.timout"],
        ["config.yaml:8", "models.c.description"],
        ["config.yaml:9", "defaults.ocr[0]"],
        ["ROUNDHOUSE__NO", "there is no key 'no'"],
        ["JWT_SECRET", "too short"],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "mongodb: {uri: 'postgres://u:hunter2@h'}",
        "mongodb: {database: 'hunter2 hunter2'}",
        "models: {m: {task: chat, engine: openai, base_url: http://h, api_key: [hunter2]}}",
        "models: {m: {task: chat, engine: vllm, env: {TOKEN: [hunter2]}, args: [{x: hunter2}]}}",
        "server: {port: hunter2, max_wait: hunter2, max_upload: hunter2, host: [hunter2]}",
        "server: {port: '${env:SECRET}', max_wait: '${env:SECRET}'}",
        "models: {m: {task: '${env:SECRET}', engine: '${env:SECRET}'}}",
        "models: {m: {task: '${env:SECRET}', engine: simulator, timeout: '${env:SECRET}'}}",
        "server: hunter2",
        "hunter2",
        "password: *hunter2",
    ],
)
def test_an_error_never_shows_a_value(refusal: Refusal, text: str) -> None:
    assert "hunter2" not in "\n".join(refusal(text, SECRET="hunter2"))


def test_a_chain_of_errors_does_not_show_a_value_either(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load("server: {port: hunter2}")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_settings_made_without_a_file_are_checked_too(load: Load) -> None:
    sections = load(model("task: chat", "engine: simulator"), JWT_SECRET="s" * 32).model_dump()
    with pytest.raises(ValidationError, match=r"defaults.ocr.0: the task of 'm' is chat, not ocr"):
        Settings.model_validate(sections | {"defaults": {"ocr": ["m"]}})


def test_a_file_in_another_directory_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "other.yaml").write_text("a: 1")
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "other.yaml", {})
    assert caught.value.message == f"{tmp_path}/other.yaml:1: a: unknown key"


def test_the_file_given_explicitly_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    for path, environ in ((Path("no.yaml"), {}), (None, {"ROUNDHOUSE_CONFIG": "no.yaml"})):
        with pytest.raises(ConfigError) as caught:
            load_settings(path, environ)
        assert caught.value.message == "no.yaml: cannot be read: No such file or directory"


def test_the_path_given_wins_over_the_variable_and_that_over_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for port, name in enumerate(["config.yaml", "variable.yaml", "argument.yaml"], start=1):
        (tmp_path / name).write_text(f"server: {{port: {port}}}")
    environ = {"ROUNDHOUSE_CONFIG": "variable.yaml"}
    assert load_settings(Path("argument.yaml"), environ).server.port == 3
    assert load_settings(None, environ).server.port == 2
    assert load_settings(None, {}).server.port == 1


def test_without_a_file_the_error_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("config.loader.__file__", str(tmp_path / "site" / "config" / "loader.py"))
    with pytest.raises(ConfigError) as caught:
        load_settings(None, {})
    assert caught.value.message == (
        f"no config.yaml: looked for {tmp_path}/config.yaml and {tmp_path}/site/config.yaml; "
        "set ROUNDHOUSE_CONFIG to the file's path"
    )


def test_the_environment_of_the_process_is_the_default(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    file = load("").config_path
    for variable in [name for name in os.environ if name.upper().startswith("ROUNDHOUSE")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("SERVER_PORT", "4242")
    assert load_settings(file).server.port == 4242


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: 1\nb: \xff\n", "config.yaml:2: not UTF-8 text"),
        (b"a: 1\nb: \x00\n", "config.yaml:2: a character that YAML does not allow"),
        (
            b"a: 1\n\tb: 2\n",
            "config.yaml:2: not valid YAML: found character '\\t' that cannot start any token",
        ),
    ],
)
def test_a_file_that_is_not_yaml_is_named_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_settings(None, {})
    assert caught.value.message == problem


def test_a_directory_in_place_of_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").mkdir()
    with pytest.raises(ConfigError, match=r"^dir: cannot be read: Is a directory$"):
        load_settings(Path("dir"), {})


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xef\xbb\xbfserver: {port: 5}\n")
    assert load_settings(tmp_path / "config.yaml", {}).server.port == 5


def test_the_state_directory_is_absolute_and_beside_the_file_unless_given(load: Load, tmp_path: Path) -> None:
    assert load("").home == tmp_path / ".roundhouse"
    assert load("", ROUNDHOUSE_HOME="state").home == tmp_path / "state"
    assert load("", ROUNDHOUSE_HOME="/var/x").home == Path("/var/x")
    assert load("", ROUNDHOUSE_HOME="~/x").home == Path.home() / "x"


def test_the_state_directory_lies_beside_the_link_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.yaml").write_text("")
    (tmp_path / "config.yaml").symlink_to("data/config.yaml")
    assert load_settings(tmp_path / "config.yaml", {}).home == tmp_path / ".roundhouse"

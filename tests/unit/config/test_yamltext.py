import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config.values import Raw
from config.yamltext import YamlProblem, parse, parse_value


def test_every_key_and_item_has_its_line() -> None:
    parsed = parse("a:\n  b: 1\n  c:\n    - x\n    - y: 2\n", {})
    assert parsed.data == {"a": {"b": 1, "c": ["x", {"y": 2}]}}
    assert parsed.lines == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1): 5,
        ("a", "c", 1, "y"): 5,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("12", 12),
        ("-3", -3),
        ("0.5", 0.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ('"12"', "12"),
        ("'true'", "true"),
        # YAML 1.1 makes something else of these.
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("=", "="),
        ("9" * 5000, float("inf")),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_a_duplicate_key_is_reported_with_both_lines() -> None:
    parsed = parse("a: 1\nb:\n  c: 1\n  c: 2\n", {})
    assert parsed.problems == [(("b", "c"), 4, "duplicate key (first on line 3)")]


def test_a_merge_key_fills_in_what_is_not_said() -> None:
    parsed = parse("x: &x {p: 1, q: 2}\ny: &y {q: 3, r: 4}\nz:\n  <<: [*x, *y]\n  p: 9\n", {})
    assert parsed.data == {"x": {"p": 1, "q": 2}, "y": {"q": 3, "r": 4}, "z": {"p": 9, "q": 2, "r": 4}}
    assert parsed.lines["z", "p"] == 5
    assert not parsed.problems


def test_a_merge_key_takes_only_mappings() -> None:
    assert parse("a:\n  <<: 3\n", {}).problems == [(("a",), 2, "<< takes a mapping or a list of mappings")]


def test_a_value_that_contains_itself_is_refused() -> None:
    assert parse("a: &a [*a]\n", {}).problems == [(("a", 0), 1, "refers to itself")]


def test_a_key_that_is_no_text_is_refused() -> None:
    assert parse("? [a]\n: 1\n", {}).problems == [((), 1, "a key must be text")]


@pytest.mark.parametrize(
    "text",
    [
        "a: *hunter2hunter2",
        'a: "hunter2hunter2',
        "a: b: hunter2hunter2",
        "a: {hunter2hunter2",
        "%hunter2hunter2",
        "a: hunter2hunter2\n\tb: c",
        "a: hunter2hunter2\0",
        "--- hunter2hunter2\n--- b",
        "a: [hunter2hunter2: }",
        "a: !x!hunter2hunter2 b",
        "[" * 5000 + "hunter2hunter2",
    ],
)
def test_what_is_not_yaml_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(YamlProblem) as caught:
        parse(text, {})
    assert caught.value.line >= 1
    assert "hunter2" not in caught.value.message


def test_a_tag_is_refused_without_quoting_it() -> None:
    parsed = parse("a: 1\nb: !hunter2 x\n", {})
    assert parsed.problems == [(("b",), 2, "YAML tags are not supported: quote a value that starts with !")]
    with pytest.raises(YamlProblem, match="tags are not supported"):
        parse_value("!hunter2 x")


def test_references_take_their_values_from_the_environment() -> None:
    environ = {"A": "x", "EMPTY": ""}
    text = 'a: ${env:A}\nb: "${env:A}/${env:A}"\nc: ${env:B:-y}\nd: ${env:EMPTY:-z}\n'
    text += "e: ${env:EMPTY}\nf: ${env:B:-}\n"
    parsed = parse(text, environ)
    assert parsed.data == {"a": "x", "b": "x/x", "c": "y", "d": "z", "e": "", "f": ""}
    assert isinstance(parsed.data, dict)
    assert all(type(value) is Raw for value in parsed.data.values())
    assert not parsed.problems


def test_a_value_from_the_environment_is_not_itself_looked_into() -> None:
    parsed = parse("a: ${env:A}", {"A": "${env:B}", "B": "secret"})
    assert parsed.data == {"a": "${env:B}"}
    assert not parsed.problems


def test_an_unset_variable_is_named_with_its_line() -> None:
    [(path, line, message)] = parse("a: 1\nb: ${env:NO_SUCH}\n", {}).problems
    assert (path, line) == (("b",), 2)
    assert message == "the environment variable NO_SUCH is not set: set it, or write ${env:NO_SUCH:-default}"


@pytest.mark.parametrize("text", ["a: ${env:}", "a: ${env:A", "a: ${env:A:b}"])
def test_a_malformed_reference_is_refused(text: str) -> None:
    [(_, _, message)] = parse(text, {"A": "x"}).problems
    assert message == "write ${env:NAME} or ${env:NAME:-default}"


@given(st.text(max_size=60))
def test_any_text_is_either_read_or_refused(text: str) -> None:
    try:
        line = max(parse(text, {}).lines.values(), default=1)
    except YamlProblem as problem:
        line = problem.line
    assert 1 <= line <= len(text.splitlines()) + 1


_LEAVES = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text("abc é:#'\"{}[]-\n0", max_size=8)
_KEYS = st.text("abc-_0", min_size=1, max_size=5)


@given(st.recursive(_LEAVES, lambda d: st.lists(d, max_size=3) | st.dictionaries(_KEYS, d, max_size=3)))
def test_what_pyyaml_writes_is_read_back(data: object) -> None:
    assert parse(yaml.safe_dump(data, allow_unicode=True), {}).data == data

"""YAML text → plain data plus the line of every key.

The nodes are composed by PyYAML and read here, for four reasons: the line of each key, duplicate keys,
``${env:NAME}``, and the plain scalars of YAML 1.2 (in 1.1, which PyYAML speaks, ``no`` is false, ``12:30`` a
number and ``010`` eight).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from config.consistency import Path
from config.values import Raw

_STR: Final = "tag:yaml.org,2002:str"
_MERGE: Final = "tag:yaml.org,2002:merge"
_REFERENCE: Final = re.compile(r"\$\{env:([^}:]+)(?::-([^}]*))?\}")
_PLAIN: Final = re.compile(
    r"(?P<null>~|null|Null|NULL|)|(?P<true>true|True|TRUE)|(?P<false>false|False|FALSE)"
    r"|(?P<int>[-+]?(?:0|[1-9][0-9]{0,18}))"
    r"|(?P<float>[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?)"
)


class YamlProblem(Exception):
    """The text is not YAML; ``line`` counts from 1. The message never quotes the text: it may be a secret."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass
class Parsed:
    """The data of a text, where each key stands, and what is wrong with single values."""

    data: object = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[tuple[Path, int, str]] = field(default_factory=list)


def parse(text: str, environ: Mapping[str, str]) -> Parsed:
    """Read a YAML document, with ``${env:NAME}`` and ``${env:NAME:-default}`` replaced in its values.

    Raises YamlProblem when the text is not YAML at all.
    """
    parsed = Parsed()
    node = _compose(text)
    if node is not None:
        parsed.data = _Reader(parsed, environ).read(node, ())
    return parsed


def parse_value(text: str) -> object:
    """Read the YAML of one value. Raises YamlProblem."""
    parsed = Parsed()
    node = _compose(text)
    value = None if node is None else _Reader(parsed, None).read(node, ())
    if parsed.problems:
        _, line, message = parsed.problems[0]
        raise YamlProblem(line, message)
    return value


def _compose(text: str) -> yaml.Node | None:
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlProblem(line, "a character that YAML does not allow") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # PyYAML's own text may quote the file, for example a password that starts with `*`.
        what = re.sub(r"'(?!\\t'|<[a-z ]+>').{2,}'", "…", error.problem or "syntax error")
        raise YamlProblem(mark.line + 1 if mark else 1, f"not valid YAML: {what}") from None
    except RecursionError:
        raise YamlProblem(1, "not usable YAML: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Reader:
    def __init__(self, parsed: Parsed, environ: Mapping[str, str] | None) -> None:
        self._parsed = parsed
        self._environ = environ
        self._open: set[int] = set()

    def read(self, node: yaml.Node, path: Path) -> object:
        if id(node) in self._open:
            self._problem(path, node, "refers to itself")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return self._sequence(node, path)
            return self._scalar(node, path)
        finally:
            self._open.discard(id(node))

    def _problem(self, path: Path, node: yaml.Node, message: str) -> None:
        self._parsed.problems.append((path, node.start_mark.line + 1, message))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged |= self._merge(value_node, path)
            elif not isinstance(key_node, yaml.ScalarNode):
                self._problem(path, key_node, "a key must be text")
            elif key_node.value in own:
                first = self._parsed.lines[*path, key_node.value]
                self._problem((*path, key_node.value), key_node, f"duplicate key (first on line {first})")
            else:
                here = (*path, key_node.value)
                self._parsed.lines[here] = key_node.start_mark.line + 1
                own[key_node.value] = self.read(value_node, here)
        return merged | own

    def _merge(self, node: yaml.Node, path: Path) -> dict[str, object]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, object] = {}
        for source in reversed(sources):
            if isinstance(source, yaml.MappingNode):
                kept = dict(self._parsed.lines)
                value = self.read(source, path)
                self._parsed.lines |= kept
                merged |= value if isinstance(value, dict) else {}
            else:
                self._problem(path, source, "<< takes a mapping or a list of mappings")
        return merged

    def _sequence(self, node: yaml.SequenceNode, path: Path) -> list[object]:
        items = []
        for index, item in enumerate(node.value):
            self._parsed.lines[*path, index] = item.start_mark.line + 1
            items.append(self.read(item, (*path, index)))
        return items

    def _scalar(self, node: yaml.Node, path: Path) -> object:
        text: str = node.value
        if self._environ is not None and "${env:" in text:
            return self._interpolated(node, path, self._environ)
        plain = getattr(node, "style", None) is None
        if plain and node.tag.startswith("tag:yaml.org,2002:"):
            return _plain_value(text)
        if node.tag != _STR:
            self._problem(path, node, "YAML tags are not supported: quote a value that starts with !")
        return text

    def _interpolated(self, node: yaml.Node, path: Path, environ: Mapping[str, str]) -> Raw:
        def replace(match: re.Match[str]) -> str:
            name, default = match[1], match[2]
            value = environ.get(name)
            # As in a shell, `:-` stands in for an empty variable too.
            if default is not None and not value:
                return default
            if value is None:
                hint = f"set it, or write ${{env:{name}:-default}}"
                self._problem(path, node, f"the environment variable {name} is not set: {hint}")
                return ""
            return value

        text, found = _REFERENCE.subn(replace, node.value)
        if found < node.value.count("${env:"):
            self._problem(path, node, "write ${env:NAME} or ${env:NAME:-default}")
        return Raw(text)


def _plain_value(text: str) -> Any:
    match = _PLAIN.fullmatch(text)
    match match.lastgroup if match else None:
        case "null":
            return None
        case "true":
            return True
        case "false":
            return False
        case "int":
            return int(text)
        case "float":
            return float(text)
        case _:
            return text

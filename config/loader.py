"""config.yaml and the environment → Settings, or one ConfigError with everything that is wrong."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from config import consistency
from config.errors import ConfigError
from config.explain import engines_with, explain
from config.models import ModelSettings
from config.overrides import NamedVariables, find_overrides, put, read_named
from config.settings import ConfigFile, Settings
from config.values import Raw
from config.yamltext import Parsed, YamlProblem, parse


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration: file < SERVER_HOST, SERVER_PORT, MONGODB_URI < ROUNDHOUSE__SECTION__KEY.

    ``path`` wins over ROUNDHOUSE_CONFIG, which wins over ``config.yaml`` in the working directory, then
    beside the package. ``environ`` is this process's environment unless given. Nothing is written.

    Raises ConfigError; its ``details["problems"]`` has one line for each thing that is wrong.
    """
    environ = os.environ if environ is None else environ
    named, secret_problems = read_named(environ)
    file = _locate(path, named)
    reading = _Reading(file, environ)
    reading.apply(named)
    checked = reading.check()
    problems = [*reading.report(), *secret_problems]
    if problems or checked is None:
        raise _refusal(problems)
    sections = {name: getattr(checked, name) for name in ConfigFile.model_fields}
    home = Path(named.home).expanduser() if named.home else file.parent / ".roundhouse"
    return Settings(
        **sections,
        config_path=file,
        home=home.absolute(),
        jwt_secret=named.jwt_secret,
        admin_password=named.admin_password,
    )


def _refusal(problems: list[str]) -> ConfigError:
    return ConfigError("\n".join(problems), problems=problems)


def _locate(path: Path | None, named: NamedVariables) -> Path:
    if path is None and named.config:
        path = Path(named.config).expanduser()
    if path is not None:
        # Not resolve(): a mounted ConfigMap is a link, and `home` lies beside the link.
        return path.absolute()
    places = [Path.cwd() / "config.yaml", Path(__file__).resolve().parent.parent / "config.yaml"]
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(str(place) for place in dict.fromkeys(places))
    raise _refusal([f"no config.yaml: looked for {looked}; set ROUNDHOUSE_CONFIG to the file's path"])


def _shown(file: Path) -> str:
    """The path as short as it can be said."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


class _Reading:
    """One file on its way to settings: its data, where each value came from, and what is wrong."""

    def __init__(self, file: Path, environ: Mapping[str, str]) -> None:
        self._name = _shown(file)
        self._environ = environ
        self._variables: dict[consistency.Path, str] = {}
        self._problems: list[tuple[int, str]] = []
        self._parsed = self._parse(file)
        self._refused = {path for path, _, _ in self._parsed.problems}
        for path, line, message in self._parsed.problems:
            self._problems.append((line, f"{self._name}:{line}: {_dotted(path)}{message}"))
        data = {} if self._parsed.data is None else self._parsed.data
        if not isinstance(data, dict):
            raise _refusal([f"{self._name}:1: expected a mapping of sections (server, models, ...)"])
        self._data: dict[str, object] = data

    def _parse(self, file: Path) -> Parsed:
        try:
            text = file.read_bytes().decode("utf-8-sig")
            return parse(text, self._environ)
        except OSError as error:
            raise _refusal([f"{self._name}: cannot be read: {error.strerror}"]) from None
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise _refusal([f"{self._name}:{line}: not UTF-8 text"]) from None
        except YamlProblem as problem:
            raise _refusal([f"{self._name}:{problem.line}: {problem.message}"]) from None

    def apply(self, named: NamedVariables) -> None:
        """Put the environment's values over the file's."""
        for variable, path, value in named.in_file():
            self._put(variable, path, Raw(value))
        for override in find_overrides(self._data, self._environ):
            if override.problem is not None:
                self._problems.append((_LAST, f"{override.variable}: {override.problem}"))
            else:
                self._put(override.variable, override.path, override.value)

    def _put(self, variable: str, path: consistency.Path, value: object) -> None:
        if put(self._data, path, value):
            for inner in [p for p in self._variables if p[: len(path)] == path]:
                del self._variables[inner]
            self._variables[path] = variable

    def check(self) -> ConfigFile | None:
        try:
            return ConfigFile.model_validate(self._data)
        except ValidationError as error:
            details = error.errors(include_url=False)
        for finding in details:
            if finding["type"] != "inconsistent":
                self._add(*explain(finding, self._data))
            if finding["type"].startswith("union_tag_"):
                self._check_common(finding["loc"], finding["input"])
        for path, message in consistency.inconsistencies(self._data):
            self._add(path, message)
        return None

    def _check_common(self, loc: tuple[int | str, ...], entry: object) -> None:
        """Without its engine a model entry is only checked for what all engines have in common."""
        try:
            ModelSettings.model_validate(entry)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                known = detail["type"] == "extra_forbidden" and engines_with(str(detail["loc"][0]))
                if detail["loc"] != ("engine",) and not known:
                    self._add(*explain(detail | {"loc": (*loc, *detail["loc"])}, self._data))

    def _add(self, path: consistency.Path, message: str) -> None:
        """Note a problem, unless the value there could not even be read."""
        if any(path[: len(refused)] == refused for refused in self._refused):
            return
        for length in range(len(path), 0, -1):
            if path[:length] in self._variables:
                self._problems.append((_LAST, f"{self._variables[path[:length]]}: {_dotted(path)}{message}"))
                return
            if path[:length] in self._parsed.lines:
                line = self._parsed.lines[path[:length]]
                self._problems.append((line, f"{self._name}:{line}: {_dotted(path)}{message}"))
                return
        self._problems.append((0, f"{self._name}: {_dotted(path)}{message}"))

    def report(self) -> list[str]:
        """All problems, in the order of the file, then those of variables."""
        return [text for _, text in sorted(self._problems, key=lambda problem: problem[0])]


_LAST = 10**9


def _dotted(path: consistency.Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"{text}: " if text else ""

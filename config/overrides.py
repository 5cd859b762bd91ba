"""Environment variables that stand in for keys of the file.

Three kinds: the named ones (``SERVER_PORT``), the secrets, which never stand in the file, and the rule for
every other key: ``ROUNDHOUSE__SECTION__KEY``, in any case, with ``_`` for every character of a name that is
neither a letter nor a digit. Its value is read as YAML.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from config.consistency import Path, did_you_mean
from config.settings import AdminPassword, ConfigFile, JwtSecret
from config.shape import is_text, map_value, section_of
from config.values import Raw
from config.yamltext import YamlProblem, parse_value

PREFIX: Final = "ROUNDHOUSE__"


class NamedVariables(BaseSettings):
    """The variables with a name of their own."""

    model_config = SettingsConfigDict(case_sensitive=True, extra="ignore", hide_input_in_errors=True)

    server_host: str | None = Field(default=None, validation_alias="SERVER_HOST")
    server_port: str | None = Field(default=None, validation_alias="SERVER_PORT")
    mongodb_uri: str | None = Field(default=None, validation_alias="MONGODB_URI", repr=False)
    home: str | None = Field(default=None, validation_alias="ROUNDHOUSE_HOME")
    config: str | None = Field(default=None, validation_alias="ROUNDHOUSE_CONFIG")
    jwt_secret: JwtSecret | None = Field(default=None, validation_alias="JWT_SECRET")
    admin_password: AdminPassword | None = Field(default=None, validation_alias="ADMIN_PASSWORD")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # read_named() gives the environment as arguments: it need not be the one of this process.
        return (init_settings,)

    def in_file(self) -> Iterator[tuple[str, Path, str]]:
        """Variable, path of the key and value, for those that stand in for a key of the file."""
        for variable, path, value in (
            ("SERVER_HOST", ("server", "host"), self.server_host),
            ("SERVER_PORT", ("server", "port"), self.server_port),
            ("MONGODB_URI", ("mongodb", "uri"), self.mongodb_uri),
        ):
            if value:  # compose files pass `SERVER_PORT: ${SERVER_PORT:-}`: empty is unset
                yield variable, path, value


def read_named(environ: Mapping[str, str]) -> tuple[NamedVariables, list[str]]:
    """The named variables, and one line for each secret that may not be used."""
    source = EnvSettingsSource(NamedVariables)
    source.env_vars = environ
    given = source()
    try:
        return NamedVariables(**given), []
    except ValidationError as error:
        problems = {str(e["loc"][0]): e["msg"] for e in error.errors(include_input=False, include_url=False)}
        rest = {name: value for name, value in given.items() if name not in problems}
        return NamedVariables(**rest), [f"{name}: {message}" for name, message in problems.items()]


@dataclass(frozen=True)
class Override:
    """One ``ROUNDHOUSE__…`` variable: the key it names and its value, or why it cannot be used."""

    variable: str
    path: Path = ()
    value: object = None
    problem: str | None = None


def find_overrides(data: Mapping[str, object], environ: Mapping[str, str]) -> list[Override]:
    """The overrides in ``environ`` of the file ``data``, sections before the keys within them."""
    found: list[Override] = []
    taken: dict[Path, str] = {}
    for variable in sorted(environ):
        if not variable.upper().startswith(PREFIX):
            continue
        override = _override(variable, environ[variable], data)
        if override.problem is None and override.path in taken:
            problem = f"names the same key as {taken[override.path]}: keep one of them"
            override = Override(variable, problem=problem)
        taken.setdefault(override.path, variable)
        found.append(override)
    return sorted(found, key=lambda o: len(o.path))


def put(data: dict[str, object], path: Path, value: object) -> bool:
    """Set the value at ``path`` in place; False where the file holds no mapping on the way there."""
    here = data
    for key in path[:-1]:
        below = here.get(str(key))
        if below is None:
            below = here[str(key)] = {}
        if not isinstance(below, dict):
            return False
        here = below
    here[str(path[-1])] = value
    return True


def _override(variable: str, text: str, data: Mapping[str, object]) -> Override:
    try:
        path, annotation = _target(variable[len(PREFIX) :], ConfigFile, data)
    except LookupError as error:
        return Override(variable, problem=str(error.args[0]))
    # For a key that is text, `123` and `a: b` are text too, and quotes are taken off.
    if is_text(annotation) and text.lstrip()[:1] not in ('"', "'"):
        return Override(variable, path, Raw(text))
    try:
        value = parse_value(text)
    except YamlProblem as problem:
        return Override(variable, problem=problem.message)
    return Override(variable, path, value)


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def _target(rest: str, annotation: Any, data: object) -> tuple[Path, Any]:
    """Follow the words of a variable through the shape of the settings. Raises LookupError(message)."""
    path: list[str] = []
    default: object = ConfigFile()
    while True:
        section, values = section_of(annotation, data), map_value(annotation)
        known = [name for names in (data, default) if isinstance(names, Mapping) for name in names]
        if section is not None:
            names = list(section.model_fields)
        elif values is not None:
            names = list(dict.fromkeys(known))
        else:
            raise LookupError(_unknown(path, rest, []))
        key, left = _first_word(rest, names)
        if key is None:
            if values is None or not is_text(values) or not rest:
                raise LookupError(_unknown(path, rest, names))
            key, left = rest, ""  # a mapping of free names to text (`env`) takes new names
        path.append(key)
        annotation = section.model_fields[key].annotation if section is not None else values
        data = data.get(key) if isinstance(data, Mapping) else None
        default = default.get(key) if isinstance(default, Mapping) else getattr(default, key, None)
        if not left:
            return tuple(path), annotation
        rest = left


def _first_word(rest: str, names: list[str]) -> tuple[str | None, str]:
    """The name that ``rest`` starts with (the longest, as a name may hold ``__``), and what follows it."""
    normal = _normal(rest)
    fitting = [n for n in names if normal == _normal(n) or normal.startswith(_normal(n) + "__")]
    if not fitting:
        return None, rest
    longest = max(len(_normal(n)) for n in fitting)
    best = [n for n in fitting if len(_normal(n)) == longest]
    if len(best) > 1:
        raise LookupError(f"could mean {' or '.join(best)}: change it in the file instead")
    left = rest[longest + 2 :]
    if len(rest) > longest and not left:
        raise LookupError("ends in __: name a key")
    return best[0], left


def _unknown(path: list[str], rest: str, names: list[str]) -> str:
    word = rest.split("__")[0]
    where = f" in {'.'.join(path)}" if path else ""
    if not path and word.lower() in ("home", "config"):
        return f"names no key of the file (did you mean ROUNDHOUSE_{word.upper()}?)"
    hint = did_you_mean(_normal(word), [_normal(name) for name in names])
    return f"there is no key {word.lower()!r}{where}{hint}" if word else f"names no key{where}"

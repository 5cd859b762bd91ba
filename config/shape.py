"""The shape of the settings, asked of the models themselves: what is at a path, and is it text?"""

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from config.values import Raw
from config.yamltext import YamlProblem, parse_value


def members(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation without ``Annotated``; a ``Literal`` as the types of its values."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for argument in get_args(annotation):
            yield from members(argument)
    elif origin is Literal:
        yield from {type(value) for value in get_args(annotation)}
    else:
        yield annotation


def is_text(annotation: Any) -> bool:
    return any(member in (str, SecretStr) for member in members(annotation))


def is_optional(annotation: Any) -> bool:
    return NoneType in members(annotation)


def map_value(annotation: Any) -> Any:
    """The type of the values when the annotation is a mapping of free names, else None."""
    for member in members(annotation):
        if get_origin(member) is dict:
            return get_args(member)[1]
    return None


def item_of(annotation: Any) -> Any:
    """The type of what is in a mapping of free names or in a list, else None."""
    for member in members(annotation):
        if get_origin(member) in (dict, list):
            return get_args(member)[-1]
    return None


def section_of(annotation: Any, data: object) -> type[BaseModel] | None:
    """The model that a mapping at this place is checked against; a model entry's engine decides."""
    sections = [m for m in members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
    if len(sections) < 2:
        return sections[0] if sections else None
    engine = data.get("engine") if isinstance(data, Mapping) else None
    for section in sections:
        if engine in get_args(section.model_fields["engine"].annotation):
            return section
    return None


def _is_container(annotation: Any) -> bool:
    return any(
        get_origin(member) in (dict, list) or (isinstance(member, type) and issubclass(member, BaseModel))
        for member in members(annotation)
    )


def settle(fields: Mapping[str, FieldInfo], data: Any) -> Any:
    """Give text from the environment the type that its key wants.

    A mapping or list whose lines are all commented out reads as null in YAML: the default is meant.
    """
    if not isinstance(data, dict):
        return data
    settled = {}
    for key, value in data.items():
        annotation = fields[key].annotation if key in fields else None
        if isinstance(value, Raw):
            value = _typed(value, annotation)
        if value is None and annotation and _is_container(annotation) and not is_optional(annotation):
            continue
        settled[key] = value
    return settled


def _typed(value: Raw, annotation: Any) -> object:
    if is_optional(annotation) and value.strip() in ("", "~", "null"):
        return None
    if is_text(annotation):
        return str(value)
    try:
        return parse_value(value)
    except YamlProblem:
        return str(value)  # the field's own type check refuses it and knows the place

"""What of JSON a document of the database can hold: BSON's names, numbers and depth are narrower than JSON's."""

from collections.abc import Iterable, Iterator, Mapping

# MongoDB takes 180 levels or so; those of the documents around it are counted as well.
DEEPEST = 100
_NUMBERS = range(-(2**63), 2**63)


def levels(value: object) -> Iterator[list[object]]:
    """``value``, then all that is directly in it, and so on: as many as it is nested deep."""
    level = [value]
    while level:
        yield level
        level = [inner for outer in level for inner in _inside(outer)]


def unstorable(value: object, deepest: int = DEEPEST) -> str | None:
    """Why no document can hold ``value``, which JSON has carried, as the end of a sentence that begins with «it»."""
    for depth, level in enumerate(levels(value)):
        if depth > deepest:
            return "is nested too deep"
        for each in level:
            if isinstance(each, int) and each not in _NUMBERS:
                return "has a number beyond 64 bits"
            if isinstance(each, Mapping) and any("\0" in key for key in each):
                return "has a NUL character in a name"
    return None


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()

"""Numbers of pages as people write them: ``1-3,7``."""

import re
from collections.abc import Iterable, Sequence

LONGEST = 1000
"""Characters of what may be asked for."""

_PART = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")

Ranges = Sequence[tuple[int, int]]
"""First and last of each, ascending, with a gap between any two."""


def parse(text: str, longest: int = LONGEST) -> Ranges:
    """What ``text`` says, in whatever order. Blanks around numbers do not count. Raises ValueError."""
    if len(text) > longest:
        raise ValueError(f"longer than {longest} characters")
    found = []
    for part in text.split(","):
        match = _PART.fullmatch("".join(part.split()))
        if match is None:
            raise ValueError(f"{part[:20]!r} is neither a number nor a range")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last:
            raise ValueError(f"{part[:20]!r} counts down or from 0")
        found.append((first, last))
    return merged(found)


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same pages, ascending, in as few ranges as can be."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = result[-1][0], max(result[-1][1], last)
        else:
            result.append((first, last))
    return result


def of(numbers: Iterable[int]) -> Ranges:
    return merged((number, number) for number in numbers)


def written(ranges: Iterable[tuple[int, int]]) -> str:
    """The canonical form, in which each set of pages is written in one way."""
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges)


def contains(ranges: Iterable[tuple[int, int]], number: int) -> bool:
    return any(first <= number <= last for first, last in ranges)

"""Which models stand in for which, in which order; as plain data, so that it can be checked before it is settings."""

from collections.abc import Callable, Iterable


def chain(name: str, fallbacks: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    """The models to try after ``name``, each once: its fallbacks, each followed by its own."""
    found: dict[str, None] = {}

    def follow(model: str) -> None:
        for other in fallbacks(model):
            if other != name and other not in found:
                found[other] = None
                follow(other)

    follow(name)
    return tuple(found)


def loop(name: str, fallbacks: Callable[[str], Iterable[str]]) -> list[str] | None:
    """The way from ``name`` over fallbacks back to it, or None."""
    seen, ways = {name}, [[name]]
    while ways:
        way = ways.pop()
        for other in fallbacks(way[-1]):
            if other == name:
                return [*way, other]
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return None

"""The pages that a client asks for: ``1-3,7``."""

import re

from ocr.protocol import Refusal, too_many_pages

RANGE = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", re.ASCII)


def parse(text: str) -> tuple[tuple[int, int], ...]:
    """The ranges (first, last; from 1) that `text` names. Raises `ValueError` for anything else."""
    ranges = []
    for part in text.split(","):
        match = RANGE.fullmatch(part)
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        if not 1 <= first <= last:
            raise ValueError(f"{part.strip()[:40]!r} is not a page or a range of pages, as in 1-3,7.")
        ranges.append((first, last))
    return tuple(ranges)


def chosen(text: str | None, page_count: int, most: int | None = None) -> tuple[int, ...]:
    """The numbers that `text` names (None: all) of a document of `page_count` pages, ascending, each once.

    Raises `Refusal` where one of them is not there, or where they are more than `most`.
    """
    ranges = [(1, page_count)] if text is None else sorted(parse(text))
    last = ranges[-1][1] if text is None else max(last for _, last in ranges)
    if last > page_count:
        message = f"Page {last:,} was asked for, and the document has {page_count:,}."
        raise Refusal("no_such_page", message, pages=page_count)
    numbers: list[int] = []
    for first, last in ranges:
        begin = max(first, numbers[-1] + 1 if numbers else 1)
        if most is not None and len(numbers) + last - begin + 1 > most:
            raise too_many_pages(page_count, most, asked=text is not None)
        numbers.extend(range(begin, last + 1))
    return tuple(numbers)

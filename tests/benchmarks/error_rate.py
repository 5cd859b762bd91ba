"""How far a text is from what the page says."""

import unicodedata

from tests.benchmarks.pages_of_languages import UNSPACED

NORMALISATION = (
    "Texts are compared in Unicode's form NFC, with each run of white space as one space (in Chinese, which has none "
    "between words, without any), and nothing else is forgiven: case, accents, punctuation and order count."
)


def normal(text: str, language: str) -> str:
    return ("" if language in UNSPACED else " ").join(unicodedata.normalize("NFC", text).split())


def character_error_rate(read: str, truth: str, language: str) -> float:
    """Edits (Levenshtein) per character of the truth."""
    expected = normal(truth, language)
    return edits(normal(read, language), expected) / len(expected)


def edits(left: str, right: str) -> int:
    """Letters to insert, delete or replace. A column of the table is two numbers whose bits say where it rises and
    falls; each letter costs a few operations on them (Myers 1999, as Hyyrö 2003 has it for whole texts)."""
    if not left or not right:
        return len(left) + len(right)
    places: dict[str, int] = {}
    for index, letter in enumerate(left):
        places[letter] = places.get(letter, 0) | 1 << index
    everything, last = (1 << len(left)) - 1, 1 << (len(left) - 1)
    rising, falling, distance = everything, 0, len(left)
    for letter in right:
        same = places.get(letter, 0)
        kept = same | falling
        level = (((same & rising) + rising) ^ rising) | same
        up = falling | (~(level | rising) & everything)
        down = rising & level
        distance += bool(up & last) - bool(down & last)
        up = (up << 1 | 1) & everything
        rising = (down << 1 & everything) | (~(kept | up) & everything)
        falling = up & kept
    return distance

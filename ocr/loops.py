"""Finds out, while a model's output grows, that it says the same again and again.

The n-gram guard of DeepSeek-OCR sees what repeats within 90 tokens and lets empty table cells pass; vision models
without one have loops of any length. What repeats is found by its distance: as long as each character is the one that
stood ``d`` characters before, the output has the period ``d``. A distance that fails is replaced by that to the last
place with the same `_CONTEXT` characters. So each character costs the same, whatever the period.

How long a repetition has to be depends on what is repeated, as pages do repeat: leaders of dots, ruled lines, tables of
sixty empty or equal rows, refrains, source code. Where in doubt the output goes on: it ends at its limit anyway.
"""

import re
from dataclasses import dataclass

# Characters by which the last place of the same kind is found.
_CONTEXT = 16
# Characters that are looked back on: the longest period.
_WINDOW = 8192

# Repetitions by kind, at least; no page has as many.
_CELLS = 100
"""Of cells in one row of a table."""
_ROWS = 120
"""Of equal rows of a table, or of lines without a letter."""
_LINES = 100
"""Of short equal lines."""
_TEXTS = 8
"""Of anything else with letters, of `_TEXT_LENGTH` characters in all, or of a part at the same place of the page."""
_TEXT_LENGTH = 1200
_SIGNS_LENGTH = 4000
"""Characters of signs and digits on one line."""
_SHORT_LINE = 40
_LETTERS = 5
"""Of so many characters one is a letter, where they are words."""

_BEGINS = re.compile(r"(?=<[a-z])|\n")


@dataclass(frozen=True)
class Loop:
    """`start`: index of the output at which the repetition begins. `unit`: what is repeated."""

    start: int
    unit: str

    @property
    def end_of_first(self) -> int:
        """The output up to there holds what is repeated once."""
        return self.start + len(self.unit)

    def describe(self) -> str:
        shown = self.unit if len(self.unit) <= 60 else f"{self.unit[:57]}..."
        return f"{shown!r} ({len(self.unit)} characters) is repeated without an end"


def repetition_needed(unit: str) -> int:
    """Characters of output with the period ``unit``, from anywhere in it, that are taken for a loop."""
    period = len(unit)
    if "<|det|>" in unit + unit:
        return period * _TEXTS
    cyclic = unit + unit[:2]
    rows = cyclic.count("<tr")
    cells = cyclic.count("<td") + cyclic.count("<th")
    if rows:
        return period * _ROWS // rows
    if cells:
        return period * _CELLS // cells
    lines, words = unit.count("\n"), _is_words(unit)
    if lines and (unit.count("|") >= lines or not words):
        return period * _ROWS // lines
    if not words:
        return _SIGNS_LENGTH
    if lines and period < lines * _SHORT_LINE:
        return period * _LINES // lines
    return max(_TEXT_LENGTH, period * _TEXTS)


def _is_words(unit: str) -> bool:
    """And no leaders, rules, numbers or codes, which have letters in between at most."""
    return _LETTERS * sum(character.isalpha() for character in unit) >= len(unit)


class LoopDetector:
    """Of one output."""

    def __init__(self) -> None:
        self._tail = ""
        self._base = 0
        """Index in the output of the tail's first character."""
        self._last: dict[str, int] = {}
        self._distance = 0
        self._begin = 0
        """Index in the output of the first character that is the one before `_distance`."""
        self._needed: int | None = None
        """Known only once the period has come twice: looking at what is repeated costs its length."""

    def feed(self, delta: str) -> Loop | None:
        """The loop in which the output is after ``delta``, if it is in one."""
        begin = len(self._tail)
        self._tail += delta
        for index in range(begin, len(self._tail)):
            if not self._distance or self._tail[index] != self._tail[index - self._distance]:
                self._look_back(index)
            if index + 1 >= _CONTEXT:
                self._last[self._tail[index + 1 - _CONTEXT : index + 1]] = self._base + index
        loop = self._loop() if self._is_long_enough() else None
        self._forget()
        return loop

    def _is_long_enough(self) -> bool:
        same = self._base + len(self._tail) - self._begin
        if not self._distance or same < self._distance:
            return False
        if self._needed is None:
            self._needed = repetition_needed(self._tail[-self._distance :])
        return same + self._distance >= self._needed

    def _look_back(self, index: int) -> None:
        """The character at ``index`` begins something new: where was it last?"""
        place = self._last.get(self._tail[max(0, index + 1 - _CONTEXT) : index + 1])
        self._distance = 0 if place is None else self._base + index - place
        if self._distance > min(index, _WINDOW):
            self._distance = 0
        if self._distance:
            self._begin = self._base + index + 1 - _CONTEXT
            self._needed = None

    def _loop(self) -> Loop:
        start = max(self._base, self._begin - self._distance)
        unit = self._tail[start - self._base :][: self._distance]
        # Where it begins is by chance: not within a tag or a line, where it has one.
        begins = _BEGINS.search(unit)
        offset = begins.end() if begins else 0
        return Loop(start + offset, unit[offset:] + unit[:offset])

    def _forget(self) -> None:
        if len(self._tail) > 3 * _WINDOW:
            cut = len(self._tail) - _WINDOW - _CONTEXT
            self._tail, self._base = self._tail[cut:], self._base + cut
            self._last = {words: place for words, place in self._last.items() if place >= self._base}

import random
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocr.loops import Loop, LoopDetector, repetition_needed

RANDOM = random.Random(5)


def words(length: int) -> str:
    """Text without a repetition."""
    letters = string.ascii_lowercase + "     "
    return "".join(RANDOM.choice(letters) for _ in range(length))


def watch(output: str, step: int = 5) -> tuple[Loop, int] | None:
    """The loop, and how much of the output there was when it was found."""
    detector = LoopDetector()
    for begin in range(0, len(output), step):
        if (loop := detector.feed(output[begin : begin + step])) is not None:
            return loop, begin + step
    return None


ROW = "<tr><td>{}</td><td></td><td></td><td></td><td></td><td></td></tr>"
PAGES = {
    "an empty table of sixty rows": f"<table>{ROW.format('') * 60}</table>",
    "a wide empty table": f"<table>{('<tr>' + '<td></td>' * 31 + '</tr>') * 40}</table>",
    "a table with the same word in each of sixty rows": f"<table>{ROW.format('not available') * 60}</table>",
    "a table of zeros": "| 0.00 | 0.00 | 0.00 | 0.00 | 0.00 | 0.00 |\n" * 60,
    "a table of words": "| yes | no | yes | yes | not applicable | yes |\n" * 70,
    "an empty table in markdown": "| | | | | | | |\n" * 80,
    "a table of contents": "".join(
        f"{number}.{part} Of the {words(12)} {'.' * (90 - part)} {number * 7 + part}\n"
        for number in range(1, 12)
        for part in range(1, 7)
    ),
    "leaders with spaces": "".join(f"Chapter {number} {'. ' * 80}{number * 13}\n" for number in range(40)),
    "rules": ("_" * 90 + "\n") * 30 + "\n" + "=" * 200,
    "a long rule": "-" * 2000,
    "lines of a form": ("Name: " + "." * 60 + "\n") * 40,
    "a hex dump": "".join(f"{line * 16:08x}: {'00 ' * 16}\n" for line in range(60)),
    "bytes of zeros": "0x00, " * 600,
    "source code": "".join(
        f"    if value[{n}] is None:\n        return None\n    else:\n        total += value[{n}]\n" for n in range(60)
    ),
    "closing brackets": "    }\n" * 60,
    "a refrain": "".join(
        f"{words(150)}\nWe all live here by the sea,\nby the sea, by the sea,\nwe all live here by the sea.\n\n"
        for _ in range(9)
    ),
    "a chorus": "la la la la la, " * 24 + "\n" + "Hallelujah! " * 30,
    "sixty lines of the same": "not available\n" * 60,
    "labels": "Mr. A. Person\n12 Some Street\nA Town 12345\n\n" * 24,
    "numbered lines": "".join(f"{n}. The same words in each of the lines\n" for n in range(1, 120)),
    "separators": f"| a | b |\n|{'---|' * 40}\n",
    "nothing": "",
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_that_repeat_are_no_loops(name: str) -> None:
    for step in (1, 7, 1000):
        assert watch(words(300) + PAGES[name] + words(300), step) is None


PERIODS = [1, 2, 3, 5, 15, 16, 17, 40, 61, 62, 100, 150, 300, 500, 900]


@pytest.mark.parametrize("period", PERIODS)
def test_what_is_said_again_and_again_is_a_loop_whatever_its_length(period: int) -> None:
    unit = ("ab" + words(period))[:period].replace(" ", "x")
    found = watch(words(700) + unit * (20_000 // period))
    assert found is not None
    loop, seen = found
    assert len(loop.unit) == period
    assert sorted(loop.unit) == sorted(unit)
    assert 680 <= loop.start <= 700 + period
    assert seen - 700 <= max(1200, 8 * period) + 40


LOOPS = {
    "cells": ("<table><tr>", "<td></td>", 1200),
    "cells with a word": ("<table><tr>", "<td>none</td>", 1500),
    "cells with a number": ("<table><tr>", "<td>0</td>", 1300),
    "rows": ("<table>", "<tr><td></td><td></td></tr>", 3500),
    "rows that begin with a word": ("<table>", ROW.format("Total"), 9000),
    "rows of two kinds": ("<table>", ROW.format("Total") + ROW.format("12"), 9500),
    "rows in markdown": ("| a | b |\n|---|---|\n", "| | |\n", 900),
    "dots": ("1. The beginning ", ".", 4100),
    "dots with spaces": ("1. The beginning ", ". ", 4100),
    "zeros": ("0.", "0", 4100),
    "line ends": ("The end", "\n", 300),
    "a place": ("", "<|ref|>text<|/ref|><|det|>[[57, 43, 388, 71]]<|/det|>\nThe same.\n\n", 550),
    "Chinese": ("第一章", "这是一个很长的句子。", 1300),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_of_pages_are_found_in_time(name: str) -> None:
    before, unit, within = LOOPS[name]
    found = watch(words(400) + before + unit * (30_000 // len(unit)))
    assert found is not None
    loop, seen = found
    assert seen - 400 <= within
    assert len(loop.unit) == len(unit)


def test_the_first_of_what_is_repeated_belongs_to_the_page() -> None:
    output = "<table><tr><td>A</td>" + "<td></td>" * 300
    found = watch(output)
    assert found is not None
    assert output[: found[0].end_of_first] == "<table><tr><td>A</td><td></td>"
    output = "A title\n" + "The first line\nand the second\n" * 100
    found = watch(output)
    assert found is not None
    assert output[: found[0].end_of_first] == "A title\nThe first line\nand the second\n"
    assert "30 characters" in found[0].describe()


def test_what_came_before_the_loop_does_not_hide_it() -> None:
    unit = words(200)
    assert watch(unit + words(9000) + unit + words(500) + unit * 12) is not None


def test_a_period_longer_than_what_is_looked_back_on_is_not_found() -> None:
    assert watch(words(9000) * 20) is None


@pytest.mark.parametrize(
    ("unit", "needed"),
    [
        ("<td></td>", 900),
        ("td></td><", 900),
        ("<tr><td></td></tr>", 18 * 120),
        ("></tr><tr><td></td", 18 * 120),
        ("word ", 1200),
        ("w" * 300, 2400),
        (".", 4000),
        ("1.5 ", 4000),
        ("\n", 120),
        ("yes\n", 400),
    ],
)
def test_how_much_is_needed_depends_on_what_is_repeated(unit: str, needed: int) -> None:
    assert repetition_needed(unit) == needed


@settings(max_examples=100, derandomize=True)
@given(st.text(max_size=400), st.text(min_size=1, max_size=60), st.integers(1, 90), st.integers(0, 200))
def test_what_is_found_is_there(before: str, unit: str, step: int, times: int) -> None:
    output = before + unit * times
    if (found := watch(output, step)) is not None:
        loop, seen = found
        shown = output[: seen - seen % step] if seen > len(output) else output[:seen]
        repeated = output[loop.start : min(seen, len(output))]
        assert repeated.startswith(loop.unit)
        assert all(a == b for a, b in zip(repeated, repeated[len(loop.unit) :], strict=False)), shown


@pytest.mark.parametrize(
    "output",
    [
        "ab" * 500_000,
        words(1_000_000),
        "".join(RANDOM.choice("ab") for _ in range(1_000_000)),
        "1,23 " * 200_000,
        "".join(f"<td>{RANDOM.randint(0, 99)}</td>" for _ in range(90_000)),
    ],
    ids=["two letters", "words", "two letters at random", "a number", "cells"],
)
def test_a_megabyte_costs_seconds_whatever_it_holds(output: str) -> None:
    detector, begin = LoopDetector(), time.process_time()
    for index in range(0, len(output), 50):
        detector.feed(output[index : index + 50])
    assert time.process_time() - begin < 20

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.documents import page_ranges

NUMBERS = st.sets(st.integers(1, 60))


@given(NUMBERS)
def test_any_set_of_pages_comes_back_from_its_written_form(numbers: set[int]) -> None:
    written = page_ranges.written(page_ranges.of(numbers))
    ranges = page_ranges.parse(written) if written else []
    assert {number for number in range(1, 62) if page_ranges.contains(ranges, number)} == numbers
    assert page_ranges.written(ranges) == written


@given(NUMBERS, NUMBERS)
def test_no_two_ranges_touch(one: set[int], other: set[int]) -> None:
    ranges = page_ranges.merged([*page_ranges.of(one), *page_ranges.of(other)])
    assert all(before[1] + 1 < after[0] for before, after in pairwise(ranges))


@pytest.mark.parametrize("text", ["", "a", "1,,2", "2-1", "0", "1-2-3", "-1", "1" * 7, "1," * 600 + "1"])
def test_what_names_no_pages_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"longer|neither|counts"):
        page_ranges.parse(text)

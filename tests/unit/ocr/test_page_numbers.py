"""Which pages a client asks for."""

import pytest

from ocr.page_numbers import chosen, parse
from ocr.protocol import Refusal


def test_ranges_are_read_as_they_are_written() -> None:
    assert parse("1-3,7") == ((1, 3), (7, 7))
    assert parse(" 12 , 2 - 2 ") == ((12, 12), (2, 2))


@pytest.mark.parametrize(
    "text", ["", ",", "0", "3-1", "1-", "-3", "1--2", "a", "1;2", "1.5", "9999999999", "٣", "1-3,"]
)
def test_what_is_no_page_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a page or a range of pages, as in 1-3,7"):
        parse(text)


def test_chosen_pages_come_once_and_in_order() -> None:
    assert chosen("7,1-3,2-4,7", 9) == (1, 2, 3, 4, 7)
    assert chosen("1-9,3", 9) == tuple(range(1, 10))
    assert chosen(None, 3) == (1, 2, 3)


def test_a_page_beyond_the_end_is_refused_with_how_many_there_are() -> None:
    with pytest.raises(Refusal, match=r"Page 12 was asked for, and the document has 9\.") as caught:
        chosen("1,12", 9)
    assert (caught.value.code, caught.value.details, caught.value.permanent) == ("no_such_page", {"pages": 9}, True)


def test_only_so_many_pages_are_taken_and_billions_are_not_counted_out() -> None:
    assert len(chosen("1-500", 200_000, 500)) == 500
    for text in ("1-501", None, "1-3,100-700"):
        with pytest.raises(Refusal) as caught:
            chosen(text, 999_999_999, 500)
        assert caught.value.code == "too_many_pages"

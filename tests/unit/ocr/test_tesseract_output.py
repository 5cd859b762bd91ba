"""From hOCR, as Tesseract writes it, to blocks, text and markdown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr.markdown import escaped
from ocr.page import Block, Word
from ocr.tesseract_output import Straightening, blocks_of, confidence_of, joined_words, markdown_of, text_of

AS_IT_IS = Straightening(0.0, 1000, 800)


def word(text: str, box: str = "10 20 60 40", confidence: int = 90) -> str:
    return f"<span class='ocrx_word' id='word_1_1' title='bbox {box}; x_wconf {confidence}'>{text}</span>"


def line(*words: str, kind: str = "ocr_line", size: float = 20) -> str:
    title = f"bbox 10 20 300 40; baseline 0 -5; x_size {size}; x_descenders 5; x_ascenders 5"
    return f"<span class='{kind}' id='line_1_1' title=\"{title}\">{' '.join(words)}</span>"


def paragraph(*lines: str, box: str = "10 20 300 100") -> str:
    return f"<p class='ocr_par' id='par_1_1' lang='eng' title=\"bbox {box}\">{''.join(lines)}</p>"


def page(*parts: str) -> str:
    area = "<div class='ocr_carea' id='block_1_1' title=\"bbox 10 20 300 100\">"
    return f"<div class='ocr_page' title='image \"p.png\"; bbox 0 0 1000 800'>{area}{''.join(parts)}</div></div>"


def photo(box: str) -> str:
    return f"<div class='ocr_photo' id='block_1_2' title=\"bbox {box}\"></div>"


def test_a_paragraph_is_a_block_with_its_lines_words_and_confidence() -> None:
    hocr = page(paragraph(line(word("One"), word("two&amp;&#39;s", confidence=50)), line(word("<em>three</em>"))))
    [block] = blocks_of(hocr, AS_IT_IS)
    assert (block.type, block.text, block.bbox) == ("text", "One two&'s\nthree", (10, 20, 300, 100))
    assert block.words[1] == Word("two&'s", (10, 20, 60, 40), 0.5)
    assert block.confidence == round((3 * 0.9 + 6 * 0.5 + 5 * 0.9) / 14, 4)


def test_what_stands_out_is_a_title_what_belongs_to_a_picture_a_caption() -> None:
    body = paragraph(*[line(word("much"), word("text"))] * 4)
    blocks = blocks_of(
        page(
            paragraph(line(word("Title"), size=32)),
            body,
            photo("100 100 500 400"),
            paragraph(line(word("Figure"), kind="ocr_caption")),
            photo("5 5 20 20"),
            paragraph(line()),
        ),
        AS_IT_IS,
    )
    assert [block.type for block in blocks] == ["title", "text", "figure", "caption"]
    assert text_of(blocks) == "Title\n\n" + "\n".join(["much text"] * 4) + "\n\nFigure"
    parts = ["## Title", "\n".join(["much text"] * 4), "![](page-0003-figure-01.png)", "Figure"]
    assert markdown_of(blocks, 3) == "\n\n".join(parts)


def test_a_page_without_words_has_no_blocks_and_no_confidence() -> None:
    assert blocks_of(page(paragraph(line(word(" ")))), AS_IT_IS) == ()
    assert confidence_of(()) is None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["早上", "五", "，", "院子"], "早上五，院子"),  # noqa: RUF001
        (["これ", "は", "PDF", "です"], "これは PDF です"),
        (["Seite", "5"], "Seite 5"),
        (["서울", "역"], "서울 역"),
        ([], ""),
    ],
)
def test_words_are_parted_by_spaces_where_their_script_has_them(words: list[str], text: str) -> None:
    assert joined_words(words) == text


def test_a_place_on_a_straightened_page_is_found_on_the_page_as_it_was() -> None:
    # A letter at the right edge of a page that was turned by 90 degrees to the left comes to its top.
    assert Straightening(90, 100, 100).undone((40, 0, 60, 10)) == (90, 40, 100, 60)
    assert Straightening(0, 100, 100).undone((40, 0, 60, 10)) == (40, 0, 60, 10)


@given(st.floats(-10, 10), st.tuples(*[st.integers(-50, 250)] * 4))
def test_no_place_lies_outside_the_page(angle: float, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = Straightening(angle, 200, 100).undone(box)
    assert 0 <= left < right <= 200
    assert 0 <= top < bottom <= 100


@given(st.text(alphabet="<>/='\";&#apocr_linewdtbx 019\n", max_size=300))
def test_damaged_output_never_fails(hocr: str) -> None:
    blocks_of(page(paragraph(line(hocr))) + hocr, AS_IT_IS)


def test_blocks_are_kept_as_json_with_short_words() -> None:
    block = Block("text", "One", (1, 2, 3, 4), 0.9, (Word("One", (1, 2, 3, 4), 0.9),))
    assert block.to_json() == {
        "type": "text",
        "text": "One",
        "bbox": [1, 2, 3, 4],
        "confidence": 0.9,
        "words": [["One", [1, 2, 3, 4], 0.9]],
    }


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("5 * 3 = 15 [see] <b>", "5 \\* 3 = 15 \\[see\\] \\<b>"),
        (
            "# 5\n- five\n+ six\n> seven\n1. eight\n2) nine",
            "\\# 5\n\\- five\n\\+ six\n\\> seven\n1\\. eight\n2\\) nine",
        ),
        ("Title\n---", "Title\n\\---"),
        ("snake_case and _this_", "snake_case and \\_this\\_"),
        ("R&D, &amp; and a#b, 3.5 - 2", "R&D, \\&amp; and a#b, 3.5 - 2"),
        ("C:\\dir `x` ~y~ a|b", "C:\\\\dir \\`x\\` \\~y\\~ a\\|b"),
    ],
)
def test_text_that_markdown_would_take_for_its_own_is_escaped(text: str, markdown: str) -> None:
    assert escaped(text) == markdown

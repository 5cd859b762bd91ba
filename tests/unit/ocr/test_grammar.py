import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocr.grammar import END_OF_SENTENCE, MAX_BOXES, MAX_FIGURES, Refs, read_grounded, read_plain
from ocr.page import Block, Reading
from ocr.plain_text import plain_text

WIDTH, HEIGHT = 1000, 2000


def test_lines_that_look_like_the_rule_of_a_table_take_time_by_their_length() -> None:
    for line in (" " * 200_000 + "x|", "|" + " " * 200_000 + "-x", "-|" * 100_000 + "x", "-" * 200_000 + "x|"):
        began = time.process_time()
        assert plain_text(line) != ""
        assert time.process_time() - began < 1.0


@pytest.mark.parametrize("rule", ["|---|---|", "--|--", " | :-: | -: |", "---|", ":--|  |"])
def test_the_rule_of_a_table_is_no_text(rule: str) -> None:
    assert plain_text(f"a|b\n{rule}\nc|d") == "a|b\nc|d"


@pytest.mark.parametrize("line", ["|---", "- - | -", "a | ---", "---", "|", "||"])
def test_what_is_no_rule_of_a_table_stays(line: str) -> None:
    assert plain_text(f"above\n{line}\nbelow").split("\n")[1] != "below"


def ref(label: str, *numbers: int) -> str:
    boxes = [list(numbers[index : index + 4]) for index in range(0, len(numbers), 4)]
    return f"<|ref|>{label}<|/ref|><|det|>{boxes}<|/det|>"


def read(output: str, refs: Refs = Refs.KINDS) -> Reading:
    return read_grounded(output, 3, WIDTH, HEIGHT, refs)


def test_a_page_is_read_into_blocks_with_places_in_pixels() -> None:
    reading = read(
        f"{ref('title', 0, 0, 999, 100)}\n# A *report*\n\n"
        f"{ref('text', 100, 110, 500, 200)}\nSome **text**.\n\n"
        f"{ref('image', 0, 300, 499, 600)}\n"
        f"{ref('image_caption', 0, 610, 499, 640)}\n<center>Figure 1: it &amp; more</center>{END_OF_SENTENCE}"
    )
    assert reading.blocks == (
        Block("title", "A report", (0, 0, 1000, 201)),
        Block("text", "Some text.", (100, 220, 501, 401)),
        Block("figure", "", (0, 600, 500, 1202)),
        Block("caption", "Figure 1: it & more", (0, 1221, 500, 1282)),
    )
    assert reading.text == "A report\n\nSome text.\n\nFigure 1: it & more"
    assert reading.markdown.split("\n\n") == [
        "# A *report*",
        "Some **text**.",
        "![](page-0003-figure-01.png)",
        "<center>Figure 1: it &amp; more</center>",
    ]
    assert reading.warnings == ()


@pytest.mark.parametrize(
    ("label", "kind"),
    [("sub_title", "title"), ("equation", "formula"), ("table_footnote", "footer"), ("aside_note", "other")],
)
def test_kinds_are_those_of_blocks(label: str, kind: str) -> None:
    assert read(f"{ref(label, 1, 1, 2, 2)}\nwords").blocks[0].type == kind


def test_a_label_that_is_no_kind_is_text() -> None:
    reading = read(f"{ref('Dear Sir,', 1, 1, 2, 2)}\n{ref('max_tokens', 1, 1, 2, 2)}\n")
    assert reading.text == "Dear Sir,\n\nmax_tokens"
    assert [block.type for block in reading.blocks] == ["text", "other"]


def test_lines_of_text_with_their_places_stay_lines() -> None:
    reading = read(f"{ref('title', 0, 0, 9, 9)}\n{ref('image', 0, 10, 9, 19)}\n", Refs.TEXTS)
    assert reading.text == reading.markdown == "title\nimage"
    assert [block.type for block in reading.blocks] == ["text", "text"]


def test_what_was_located_at_several_places_is_a_block_at_each() -> None:
    reading = read(ref("a word", 0, 0, 9, 9, 100, 100, 109, 109), Refs.TEXTS)
    assert [block.text for block in reading.blocks] == ["a word", ""]
    assert len({block.bbox for block in reading.blocks}) == 2
    assert reading.text == "a word"


def test_a_paragraph_in_two_columns_is_one_block_around_both() -> None:
    (block,) = read(f"{ref('text', 0, 0, 99, 99, 500, 0, 999, 500)}words").blocks
    assert block.bbox == (0, 0, 1000, 1002)


def test_figures_are_numbered_in_their_order() -> None:
    reading = read(f"{ref('image', 0, 0, 9, 9, 20, 20, 30, 30)}{ref('image', 40, 40, 50, 50)}")
    assert [block.type for block in reading.blocks] == ["figure"] * 3
    assert reading.markdown.count("page-0003-figure-03.png") == 1


def test_the_whole_page_is_999_and_a_place_has_at_least_a_pixel() -> None:
    assert read_grounded(f"{ref('text', 0, 0, 999, 999)}x", 1, 123, 77).blocks[0].bbox == (0, 0, 123, 77)
    assert read_grounded(f"{ref('text', 999, 999, 999, 999)}x", 1, 123, 77).blocks[0].bbox == (122, 76, 123, 77)
    assert read_grounded(f"{ref('text', 5, 5, 5, 5)}x", 1, 10, 10).blocks[0].bbox == (0, 0, 1, 1)


DAMAGED = [
    ("# A\n<|ref|>tex", "# A"),
    ("# A\n<|ref|>text<|/re", "# A"),
    ("A\n<|re", "A"),
    ("A\n<|", "A"),
    ("<|ref|>text<|/ref|><|det|>[[1, 2, 3", ""),
    ("<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]\nA", "A"),
    ("<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4\n2024 was", "2024 was"),
    ("<|ref|>text<|/ref|><|det|>[[1, 2, one]]<|/det|>A", "one]]A"),
    ("<|ref|>text<|/ref|><|det|>[[1, 2, 3]]<|/det|>A", "A"),
    ("<|ref|>text<|/ref|><|det|><|/det|>A", "A"),
    ("<|/ref|>A<|/det|>B", "AB"),
    ("<|ref|>A<|ref|>B<|/ref|>C<|/ref|>", "A\n\nBC"),
    ("<|det|>A<|det|>[[1,2,3,4]]<|/det|>B", "AB"),
    (f"{ref('text', 900, 900, 100, 100)}A", "A"),
    (f"{ref('text', -5, 0, 1200, 100)}A", "A"),
    (f"<|ref|>text<|/ref|><|det|>[[{'9' * 5000},0,1,1]]<|/det|>A", "A"),
    ("<|ref|>image<|/ref|>A", "A"),
]


@pytest.mark.parametrize(("output", "markdown"), DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_output_gives_what_is_there_and_a_warning(output: str, markdown: str) -> None:
    reading = read(output)
    assert reading.markdown == markdown
    assert reading.warnings
    for block in reading.blocks:
        if block.bbox is not None:
            left, top, right, bottom = block.bbox
            assert 0 <= left < right <= WIDTH
            assert 0 <= top < bottom <= HEIGHT


def test_places_beside_their_list_are_read_without_damage() -> None:
    for places in ("[[1,2,3,4]], ", "[1,2,3,4]", "1, 2, 3, 4", "[[1.0, 2.5, 3, 4]]"):
        reading = read(f"<|ref|>text<|/ref|><|det|>{places}<|/det|>A")
        assert (reading.text, reading.warnings) == ("A", ()), places


def test_angle_brackets_of_the_page_are_text() -> None:
    assert read("if a < b and <| c").text == "if a < b and <| c"
    assert read("a <").warnings == ()


def test_so_many_figures_and_places_are_not_believed() -> None:
    reading = read(ref("image", *([1, 1, 9, 9] * (MAX_FIGURES + 50))) + "A")
    assert sum(block.type == "figure" for block in reading.blocks) == MAX_FIGURES
    assert reading.text == "A"
    reading = read(ref("text", *([1, 1, 9, 9] * (MAX_BOXES + 50)), 0, 0, 999, 999) + "A", Refs.TEXTS)
    assert len(reading.blocks) == MAX_BOXES
    assert [block.text for block in reading.blocks if block.text] == ["textA"], "it is not written down for each place"
    assert reading.warnings


def test_an_answer_without_places_is_its_markdown() -> None:
    assert read_plain("# A\n\nb\n").markdown == "# A\n\nb"
    assert read_plain("```markdown\n# A\n```\n") == Reading("A", "# A", (Block("text", "A"),))
    assert read_plain("```markdown\n# A").markdown == "```markdown\n# A"
    assert read_plain("```\na\n```\nand\n```\nb\n```").markdown.startswith("```\na\n```\nand")
    assert read_plain("  ") == Reading("", "")


WORDS = st.text(string.ascii_letters, min_size=1, max_size=8).map(lambda word: f"w{word}w")
_TAGS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", END_OF_SENTENCE, "[[1, 2, 3, 4]]", "[[", "]]")
_WHOLE = ("<|ref|>text<|/ref|>", "<|ref|>image<|/ref|>", "<|det|>[[5, 6, 7, 8]]<|/det|>")
_MARKS = ("\n", " ", "# ", "|", "<td>", "*", "> ")
TAGS = st.sampled_from((*_TAGS, *_WHOLE, *_MARKS))
PIECES = st.lists(st.one_of(WORDS, TAGS), max_size=60)
FUZZ = settings(max_examples=400, derandomize=True)


@FUZZ
@given(PIECES, st.sampled_from(Refs))
def test_no_word_outside_tags_is_lost_or_moved(pieces: list[str], refs: Refs) -> None:
    output = "".join(f"{piece} " if piece.startswith("w") else piece for piece in pieces)
    reading = read_grounded(output, 1, WIDTH, HEIGHT, refs)
    words = [piece for piece in pieces if piece.startswith("w")]
    for text in (reading.text, reading.markdown):
        place = 0
        for word in words:
            place = text.find(word, place) + len(word)
            assert place >= len(word), (word, text)


@FUZZ
@given(
    st.text(
        alphabet=st.sampled_from([*"<|>/refdt[]0123456789,.-+ \n#*`&;_é大", "\uff5c", "\u2581", "\0"]), max_size=300
    )
)
def test_nothing_makes_it_fail(output: str) -> None:
    for refs in Refs:
        for cut in range(0, len(output), 7):
            read_grounded(output[:cut], 1, 3, 2, refs)
    read_plain(output)


_UNITS = ("[[1,2,3,4]]", "<|det|>[", "<|det|>[[9", "<|", "<", "9", "[a](", "![", "&", "&#9", "<td ", "<table><tr><td>")
_LINES = ("<|ref|>a<|/ref|><|det|>[[1,2,3,4]]<|/det|>b\n", "```\n", "\n", "#", "> ", "|-", "| a ", "|", "\\", " ")


@pytest.mark.parametrize("unit", [*_UNITS, *_LINES, *_TAGS, "*", "**", "*a", "`", "_"])
def test_the_time_is_linear(unit: str) -> None:
    """Two megabytes: what is quadratic would take hours."""
    output = unit * (1_000_000 // len(unit))
    begin = time.process_time()
    read_grounded(output, 1, WIDTH, HEIGHT)
    read_grounded("<|det|>" + output, 1, WIDTH, HEIGHT)
    assert time.process_time() - begin < 15


def test_tables_become_rows_of_cells() -> None:
    rows = "<tr><th>A</th><th colspan=2>B</th></tr><tr><td>1 &lt; 2</td><td></td><td>x<br/>y</td></tr>"
    assert plain_text(f'<table border="1">{rows}</table>') == "A\tB\n1 < 2\t\tx\ny"
    assert plain_text("| a | b |\n|---|:-:|\n| 1 | |\n| 2 | c |") == "a\tb\n1\n2\tc"


def test_marks_are_taken_off_and_text_is_not() -> None:
    assert plain_text("## A *fine* **day** `x*y*z`") == "A fine day x*y*z"
    assert (
        plain_text("2*3*4 = 24, a * b * c, snake_case_name, __init__")
        == "2*3*4 = 24, a * b * c, snake_case_name, __init__"
    )
    assert plain_text("see [here](http://x.y/z) and ![a cat](cat.png)") == "see here and a cat"
    assert plain_text("a < b > c <i>d</i> <name@x.y>") == "a < b > c d <name@x.y>"
    assert plain_text(r"\(x^2\) and \[ y \] and \*") == r"\(x^2\) and \[ y \] and *"
    assert plain_text("```python\n# no heading\n*x*\n```\nafter") == "# no heading\n*x*\nafter"
    assert plain_text("- one\n- two\n\n\n\n\nthree") == "- one\n- two\n\nthree"
    assert plain_text(f"&#{'9' * 7}; &#{'9' * 8}; &nosuch;") == f"\ufffd &#{'9' * 8}; &nosuch;"

"""The text that a PDF carries, taken out by the real poppler, and what makes it doubtful."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from ocr.decoder import PageDecoder, read_embedded
from ocr.embedded import MOST_BLOCKS, MOST_TEXT, Layout, Line, Surroundings, Word, doubts_of, embedded_text, parsed
from ocr.ink import Marks
from ocr.page import Block
from ocr.protocol import DecodeLimits, Embedded, Page, TextSource
from tests.documents import one_page_pdf, page_png, picture, scanned_page, stream, typed

PDF = "application/pdf"
LETTER = (
    "Dear reader of this page, the quick brown fox jumps over\n"
    "the lazy dog, and every letter that you see here has been\n"
    "drawn by a font that knows the names of what it draws."
)
LIMITS = DecodeLimits(dpi=100)


async def page_of(data: bytes, text: TextSource = "auto", limits: DecodeLimits = LIMITS) -> Page:
    async with PageDecoder(data, PDF, limits, text=text) as decoder:
        return await decoder.page(1)


async def carried(data: bytes) -> Embedded:
    embedded = (await page_of(data)).embedded
    assert embedded is not None
    return embedded


def to_unicode(first: int, characters: str) -> bytes:
    """A table that calls the codes from `first` on by the names of `characters`."""
    entries = b"".join(
        b"<%02x> <%b>\n" % (first + i, c.encode("utf-16-be").hex().encode()) for i, c in enumerate(characters)
    )
    return stream(
        b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /T def /CMapType 2 def\n"
        b"1 begincodespacerange <00> <ff> endcodespacerange\n"
        b"%d beginbfchar\n%bendbfchar endcmap end end" % (len(characters), entries)
    )


async def test_the_text_of_a_typed_page_is_sound_and_in_order() -> None:
    content = typed("A Title in Large Letters", y=740, size=22) + typed(LETTER) + typed("Second paragraph.", y=600)
    embedded = await carried(one_page_pdf(content))
    assert embedded.doubts == ()
    assert embedded.sound
    assert embedded.text == f"A Title in Large Letters\n\n{LETTER}\n\nSecond paragraph."
    assert embedded.markdown == f"## A Title in Large Letters\n\n{LETTER}\n\nSecond paragraph."
    assert [block.type for block in embedded.blocks] == ["title", "text", "text"]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("crop", [b"", b"/CropBox [60 560 500 780]"])
async def test_boxes_are_where_the_page_shows_the_text(turn: int, crop: bytes) -> None:
    data = one_page_pdf(typed(LETTER), page=b"/Rotate %d %b" % (turn, crop))
    async with PageDecoder(data, PDF, LIMITS) as decoder:
        page = await decoder.page(1)
        with Image.open(page.path) as image:
            ink = image.convert("L").point(lambda level: 255 if level < 128 else 0).getbbox()
    assert page.embedded is not None
    assert page.embedded.sound
    (block,) = page.embedded.blocks
    assert ink is not None
    assert block.bbox is not None
    assert all(abs(mine - shown) <= 8 for mine, shown in zip(block.bbox, ink, strict=True))


async def test_boxes_follow_a_page_that_was_reduced() -> None:
    data = one_page_pdf(typed(LETTER, x=5000, y=9000, size=200), box="0 0 14400 14400")
    page = await page_of(data, limits=DecodeLimits(page_pixels=18_000_000))
    assert page.embedded is not None
    (block,) = page.embedded.blocks
    assert block.bbox is not None
    assert abs(block.bbox[0] - page.width * 5000 / 14400) < 5


async def test_a_page_asked_for_by_ocr_and_a_picture_have_no_embedded_text() -> None:
    assert (await page_of(one_page_pdf(typed(LETTER)), "ocr")).embedded is None
    async with PageDecoder(page_png(), "image/png") as decoder:
        assert (await decoder.page(1)).embedded is None


async def test_an_empty_page_is_blank_and_says_that_it_carries_nothing() -> None:
    page = await page_of(one_page_pdf(b""))
    assert page.blank
    assert page.embedded == Embedded("", "", (), False, ("The page carries no text.",))


async def test_text_that_nobody_sees_is_doubtful_and_does_not_make_a_page_full_unless_one_insists() -> None:
    invisible = one_page_pdf(typed(LETTER, mode=3))
    for page in (await page_of(invisible), await page_of(one_page_pdf(b"1 g " + typed(LETTER)))):
        assert page.blank
        assert page.embedded is not None
        assert "cannot be seen on the page" in page.embedded.doubts[0]
    assert not (await page_of(invisible, "embedded")).blank


async def test_white_text_on_a_dark_ground_is_seen() -> None:
    assert (await carried(one_page_pdf(b"0.1 0.1 0.4 rg 0 0 612 792 re f 1 g " + typed(LETTER)))).sound


async def test_a_scan_with_a_layer_of_text_is_doubtful() -> None:
    drawn = b"q 612 0 0 792 0 0 cm /I Do Q "
    for layer in (typed(LETTER, mode=3), typed("17", y=20)):
        data = one_page_pdf(
            drawn + layer, resources=b"/XObject << /I 6 0 R >>", objects=[picture(scanned_page(LETTER))]
        )
        embedded = await carried(data)
        assert not embedded.sound
        assert any("Pictures cover" in doubt for doubt in embedded.doubts)


async def test_a_scanned_letter_within_a_typed_page_is_doubtful() -> None:
    scan = scanned_page(LETTER + "\n\n" + LETTER + "\n\n" + LETTER).crop((0, 100, 1275, 800))
    drawn = b"q 500 0 0 250 50 100 cm /I Do Q " + typed("Enclosed: the letter that we were sent.")
    embedded = await carried(one_page_pdf(drawn, resources=b"/XObject << /I 6 0 R >>", objects=[picture(scan)]))
    assert any("is not in its text" in doubt for doubt in embedded.doubts)


async def test_letters_drawn_as_shapes_are_missed_in_the_text() -> None:
    shapes = b" ".join(
        b"%d %d m %d %d l S" % (x, y, x + 5, y + 7) for x in range(80, 500, 9) for y in range(100, 600, 14)
    )
    embedded = await carried(one_page_pdf(shapes + b" " + typed("The only line that is text.")))
    assert any("is not in its text" in doubt for doubt in embedded.doubts)


async def test_rules_tables_and_coloured_areas_are_not_missed() -> None:
    lines = b" ".join(b"60 %d m 550 %d l S" % (y, y) for y in range(400, 720, 20))
    lines += b" ".join(b" %d 400 m %d 700 l S" % (x, x) for x in range(60, 551, 98))
    ground = b"0.8 0.9 1 rg 60 650 490 60 re f 0 g "
    cells = b" ".join(typed(f"cell {x} {y}", x=62 + 98 * x, y=405 + 20 * y) for x in range(5) for y in range(12))
    embedded = await carried(one_page_pdf(ground + lines + b" " + cells))
    assert embedded.doubts == ()
    assert "cell 3 4" in embedded.text


@pytest.mark.parametrize("names", ["\ue000\ue001\ue002\ue003", "\ufffd\ufffd\ufffd\ufffd", "\x01\x02\x03\x04"])
async def test_characters_without_a_name_are_doubtful(names: str) -> None:
    data = one_page_pdf(typed("ABCD DCBA " * 5), font=b"/ToUnicode 6 0 R", objects=[to_unicode(0x41, names)])
    embedded = await carried(data)
    assert not embedded.sound


async def test_a_table_of_names_that_lies_gives_garbled_words() -> None:
    garbage = "".join(chr(0x21 + code) for code in range(26))
    embedded = await carried(
        one_page_pdf(
            typed("\n".join(["THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG"] * 4)),
            font=b"/ToUnicode 6 0 R",
            objects=[to_unicode(0x41, garbage)],
        )
    )
    assert any("do not look like words" in doubt for doubt in embedded.doubts)


async def test_a_font_whose_codes_are_glyphs_without_names_is_doubtful() -> None:
    font = (
        b"<< /Type /Font /Subtype /Type0 /BaseFont /Nameless /Encoding /Identity-H /DescendantFonts ["
        b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Nameless /CIDSystemInfo << /Registry (Adobe) "
        b"/Ordering (Identity) /Supplement 0 >> /FontDescriptor << /Type /FontDescriptor /FontName /Nameless "
        b"/Flags 4 /FontBBox [0 0 1000 1000] /Ascent 800 /Descent 0 /ItalicAngle 0 /CapHeight 700 /StemV 80 >> >>] >>"
    )
    content = typed(LETTER) + b"BT /N 12 Tf 72 500 Td <002400250026> Tj ET"
    # A second dictionary of fonts in the same resources would hide the first one: the name stands in the page's own.
    data = one_page_pdf(content, objects=[font]).replace(b"/Font << /F 5 0 R >>", b"/Font << /F 5 0 R /N 6 0 R >>")
    assert any("Nameless does not tell" in doubt for doubt in (await carried(data)).doubts)


async def test_text_beside_the_page_is_left_out() -> None:
    embedded = await carried(one_page_pdf(typed(LETTER) + typed("secret words beyond the margin", x=2000)))
    assert "secret" not in embedded.text
    cropped = one_page_pdf(typed(LETTER) + typed("the rest", y=100), page=b"/CropBox [0 600 612 792]")
    assert "rest" not in (await carried(cropped)).text


async def test_hebrew_is_read_from_right_to_left_and_its_numbers_from_left_to_right() -> None:
    alphabet = "".join(chr(code) for code in range(0x05D0, 0x05EA))
    # As it stands on the page, from left to right; the words in small letters are Latin.
    data = one_page_pdf(
        typed("CBA new york 12 FED DEF"), font=b"/ToUnicode 6 0 R", objects=[to_unicode(0x41, alphabet)]
    )
    a, b, c, d, e, f = alphabet[:6]
    assert (await carried(data)).text == f"{f}{e}{d} {d}{e}{f} 12 new york {a}{b}{c}"


async def test_two_columns_are_read_one_after_the_other() -> None:
    left = "\n".join(f"left line number {n}" for n in range(12))
    right = "\n".join(f"right line number {n}" for n in range(12))
    text = (await carried(one_page_pdf(typed(left, x=60) + typed(right, x=340)))).text
    assert text.index("left line number 11") < text.index("right line number 0")


async def test_a_page_with_too_much_text_is_cut_with_a_doubt() -> None:
    lines = "\n".join(["all work and no play makes a very long page indeed " * 3] * 2500)
    embedded = await carried(one_page_pdf(typed(lines, y=790, size=4)))
    assert not embedded.sound or len(embedded.text) < 2_100_000


async def test_markdown_is_text_whatever_stands_there() -> None:
    embedded = await carried(one_page_pdf(typed("# not a title\n1. not a list\n<b>not bold</b> *at* [all] snake_case")))
    assert embedded.text == "# not a title\n1. not a list\n<b>not bold</b> *at* [all] snake_case"
    assert embedded.markdown == "\\# not a title\n1\\. not a list\n\\<b>not bold\\</b> \\*at\\* \\[all\\] snake_case"


def layout(words: Sequence[tuple[str, str]]) -> str:
    return "<block><line>" + "".join(f"<word {sides}>{text}</word>" for text, sides in words) + "</line></block>"


def sides(left: float, top: float, right: float, bottom: float) -> str:
    return f'xMin="{left}" yMin="{top}" xMax="{right}" yMax="{bottom}"'


def test_boxes_that_are_no_numbers_or_off_the_page_cost_their_words_only() -> None:
    words = [
        ("kept", sides(10, 10, 40, 20)),
        ("nowhere", sides(float("nan"), 1, 2, 3)),
        ("infinite", sides(1, 1, float("inf"), 3)),
        ("odd", 'xMin="x" yMin="1" xMax="2" yMax="3"'),
        ("none", ""),
        ("left", sides(-900, 10, -800, 20)),
    ]
    found = parsed(layout(words), 1.0, 100, 100)
    assert [word.text for word in found.words] == ["kept"]
    assert found.outside == found.characters - 4
    page = Image.new("L", (100, 100), 255)
    ImageDraw.Draw(page).text((10, 10), "kept", fill=0)
    assert any("lie outside" in doubt for doubt in doubts_of(found, Marks(page), Surroundings()))


def test_text_is_cut_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocr.embedded.MOST_TEXT", 10)
    found = parsed(layout([("abcdef", sides(0, 0, 9, 9)), ("ghijkl", sides(9, 0, 18, 9))]), 1.0, 100, 100)
    embedded = embedded_text(found, Marks(Image.new("L", (100, 100), 255)), Surroundings())
    assert embedded.text == "abcdef"
    assert "more than 10 characters or 5,000 blocks; the rest is left out" in embedded.doubts[-1]


def test_blocks_are_cut_at_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocr.embedded.MOST_BLOCKS", 2)
    found = parsed("".join(layout([(word, sides(0, 0, 9, 9))]) for word in "abc"), 1.0, 100, 100)
    assert [word.text for word in found.words] == ["a", "b"]
    assert any("2 blocks" in doubt for doubt in doubts_of(found, Marks(Image.new("L", (100, 100))), Surroundings()))


def test_the_fullest_page_fits_into_the_file_that_the_decoder_takes(tmp_path: Path) -> None:
    widest = "\U0001f600"
    lines = [[Line([Word(widest, (29_000,) * 4)]) for _ in range(MOST_TEXT // MOST_BLOCKS)] for _ in range(MOST_BLOCKS)]
    fullest = Layout(lines, MOST_TEXT)
    embedded = embedded_text(fullest, Marks(Image.new("L", (100, 100), 255)), Surroundings())
    path = tmp_path / "page.json"
    path.write_text(json.dumps(asdict(embedded)))
    assert read_embedded(path) == embedded


def test_what_the_child_writes_comes_back_as_it_was() -> None:
    block = Block("text", "abc", (1, 2, 3, 4))
    fields = {"text": "abc", "markdown": "abc", "sound": True, "doubts": [], "blocks": [{**vars(block)}]}
    assert Embedded.from_json(json.loads(json.dumps(fields))) == Embedded("abc", "abc", (block,), True, ())

"""The PDF files of the corpus and what must come of them."""

from functools import partial

from tests.documents import (
    blank_pdf,
    encoded,
    encrypted_pdf,
    endless_pdf,
    giant_page_pdf,
    pdf_that_claims_pages,
    picture,
    scanned_pdf,
    truncated_pdf,
    typed,
    zero_page_pdf,
)
from tests.hostile.case import HURRIED, Case
from tests.hostile.parts import zeros
from tests.hostile.pdfs import (
    MARK,
    appearance_loop,
    boxed,
    broken_font,
    contents_elsewhere,
    cut_in_half,
    dashed,
    deep_tree,
    filters,
    glyphs_that_write,
    groups_in_groups,
    image_of,
    incremental,
    inline_images,
    inverted,
    itself_in_it,
    jpx,
    leaf,
    left_third,
    linearized,
    many_contents,
    many_images,
    many_pages,
    nested_arrays,
    object_stream,
    operators,
    page,
    predictor,
    shading_without_bounds,
    tempting,
    tiling,
    tree,
    with_image,
    without,
    xref_loop,
)

BAD, CUT, BIG, MUCH, SLOW = (
    "unreadable_document",
    "truncated_document",
    "image_too_large",
    "document_too_large",
    "decode_timeout",
)
PDF = "application/pdf"
OK = {"looks": left_third}
DRAWN = ("400x200",)
PDFS: tuple[Case, ...] = (
    # What is in order, however odd.
    Case("owner-locked", PDF, partial(encrypted_pdf, password=""), ("200x200",)),
    *(
        Case(
            f"turned by {turn}",
            PDF,
            partial(page, page=b"/Rotate %d" % turn),
            ("200x400" if turn % 180 else "400x200",),
        )
        for turn in (90, 180, 270, -90, 450)
    ),
    Case("turned by 45", PDF, partial(page, page=b"/Rotate 45"), DRAWN),
    Case("smaller crop box", PDF, partial(page, page=b"/CropBox [0 0 144 72]"), ("200x100",)),
    Case("crop box beside the page", PDF, partial(page, page=b"/CropBox [900 900 950 950]"), ("unreadable_document",)),
    Case("prepended garbage", PDF, lambda: b"\r\n\0garbage" * 40 + page(), DRAWN, **OK),
    Case("appended garbage", PDF, lambda: page() + b"\0garbage" * 4_000, DRAWN, **OK),
    Case("incremental update", PDF, incremental, DRAWN, **OK),
    Case("linearized, with wrong lengths", PDF, linearized, DRAWN, **OK),
    Case("objects in a stream", PDF, partial(object_stream, 0), DRAWN, **OK),
    Case("scripts, programs and files in it", PDF, tempting, DRAWN, **OK),
    Case("no table of objects", PDF, lambda: without(page(), b"startxref"), DRAWN, **OK),
    Case("a table that leads to itself", PDF, xref_loop, DRAWN, **OK),
    Case("lengths of streams wrong", PDF, lambda: page().replace(b"/Length %d" % len(MARK), b"/Length 9"), DRAWN, **OK),
    Case("inline images", PDF, inline_images, DRAWN),
    Case("50,000 tiny images", PDF, many_images, DRAWN),
    Case("contents in 50,000 pieces", PDF, many_contents, DRAWN),
    Case("scanned pages", PDF, partial(scanned_pdf, 2), ("850x1100",) * 2),
    Case("text layer without ink", PDF, lambda: page(typed("invisible", mode=3)), DRAWN),
    Case("200,000 pages, of which three are asked for", PDF, many_pages, DRAWN * 3, pages="1-2,199999", **OK),
    Case("Type 1 font of garbage", PDF, partial(broken_font, b"FontFile"), DRAWN, **OK),
    Case("TrueType font of garbage", PDF, partial(broken_font, b"FontFile2"), DRAWN, **OK),
    Case("CFF font of garbage", PDF, partial(broken_font, b"FontFile3"), DRAWN, **OK),
    Case("unit of a billion points", PDF, partial(page, page=b"/UserUnit 1000000000"), DRAWN, **OK),
    Case("200 x 200 inches", PDF, giant_page_pdf, ("6200x6200",)),
    # What is encrypted, lies about its pages, breaks off.
    Case("opens only with a password", PDF, encrypted_pdf, ("!encrypted_document",)),
    Case("no pages", PDF, zero_page_pdf, ("!no_pages",)),
    Case("claims 200,000 pages", PDF, pdf_that_claims_pages, ("!too_many_pages",)),
    Case(
        "claims 200,000 pages and has ten objects",
        PDF,
        partial(pdf_that_claims_pages, objects=10),
        ("!too_many_pages",),
    ),
    Case(
        "claims 200,000 pages, the first two are asked for", PDF, pdf_that_claims_pages, ("100x100", BAD), pages="1,2"
    ),
    Case("claims two billion pages", PDF, partial(pdf_that_claims_pages, 2_000_000_000, 10), ("!too_many_pages",)),
    Case(
        "claims a negative number of pages",
        PDF,
        lambda: tree(b"4 0 R", -5, leaf(3)),
        ("!no_pages",),
    ),
    Case("claims two pages and has one", PDF, partial(blank_pdf, 1, 2, 288, 144), ("400x200", BAD)),
    Case("a page that is asked for is not there", PDF, page, ("!no_such_page",), pages="1,3"),
    Case("page tree in a circle", PDF, lambda: tree(b"2 0 R", 1), ("unreadable_document",)),
    Case("page tree of 5,000 levels", PDF, deep_tree, ("400x200",)),
    Case("no root", PDF, lambda: without(page(), b"/Root 1 0 R"), ("!unreadable_document",)),
    Case("truncated", PDF, truncated_pdf, (f"!{CUT}",)),
    Case("not a PDF", PDF, lambda: b"%!PS-Adobe-3.0\nshowpage\n" * 60, (f"!{BAD}",)),
    Case("a PDF in name only", PDF, lambda: b"%PDF-1.7\n%%EOF\n", (f"!{BAD}",)),
    Case("an empty file", PDF, lambda: b"", (f"!{BAD}",)),
    # Boxes.
    Case("box from right to left", PDF, partial(boxed, "288 144 0 0"), DRAWN, **OK),
    Case("box of no size", PDF, partial(boxed, "0 0 0 0"), ("850x1100",)),
    Case("box of no height", PDF, partial(boxed, "0 0 288 0"), ("unreadable_document",)),
    Case("box of words", PDF, partial(boxed, "/a /b /c /d"), ("850x1100",)),
    Case("box beyond all numbers", PDF, partial(boxed, "0 0 1e300 1e300"), ("850x1100",)),
    Case("box as thin as a hair", PDF, partial(boxed, "0 0 0.001 100000"), ("1x29167",)),
    Case("no box", PDF, lambda: without(page(), b"/MediaBox [0 0 288 144]"), ("850x1100",)),
    Case("20,000 x 20,000 inches", PDF, partial(giant_page_pdf, 20_000), (BIG,)),
    # What is damaged.
    Case(
        "JBIG2 of garbage",
        PDF,
        lambda: with_image(image_of(bytes(range(256)) * 9, b"/Filter /JBIG2Decode", bits=1)),
        DRAWN,
    ),
    Case(
        "JPX cut off", PDF, lambda: with_image(image_of(cut_in_half(jpx(200)), b"/Filter /JPXDecode", 200, 200)), DRAWN
    ),
    Case(
        "CCITT of garbage",
        PDF,
        lambda: with_image(
            image_of(bytes(range(256)) * 9, b"/Filter /CCITTFaxDecode /DecodeParms << /K -1 /Columns 100 >>", bits=1)
        ),
        DRAWN,
    ),
    Case(
        "JPEG of another size than it says",
        PDF,
        lambda: with_image(picture(inverted()).replace(b"/Width 288", b"/Width 9999")),
        DRAWN,
    ),
    Case(
        "JPEG cut off",
        PDF,
        lambda: with_image(image_of(cut_in_half(encoded(inverted(), "JPEG")), b"/Filter /DCTDecode", 288, 144)),
        DRAWN,
    ),
    Case("a predictor of two billion columns", PDF, predictor, DRAWN),
    Case("contents in another file", PDF, contents_elsewhere, ("400x200",), **OK),
    Case("500 filters on one stream", PDF, filters, ("400x200",)),
    # What never ends, or wants everything.
    Case("2 MB that inflate to 1 GB of drawing", PDF, operators, (SLOW,), limits=HURRIED),
    Case("forms within forms, for ever", PDF, endless_pdf, (SLOW,)),
    Case("a form that draws itself", PDF, itself_in_it, DRAWN),
    Case("a note whose picture draws itself", PDF, appearance_loop, DRAWN),
    Case("glyphs that write themselves", PDF, glyphs_that_write, (f"400x200|{SLOW}|{BAD}",)),
    Case("tiles as small as atoms", PDF, tiling, (f"400x200|{SLOW}|{BAD}|{MUCH}",), limits=HURRIED),
    Case("groups within groups", PDF, groups_in_groups, (f"drawn|{MUCH}|{BAD}|decoder_crashed",)),
    Case("shading without bounds", PDF, shading_without_bounds, ("400x200",)),
    Case("dashes as fine as nothing", PDF, dashed, (f"400x200|{SLOW}|{MUCH}",)),
    Case("100,000 brackets", PDF, nested_arrays, ("400x200|decoder_crashed",)),
    Case(
        "image of 60,000 x 60,000",
        PDF,
        lambda: with_image(image_of(zeros(450_000_000), b"/Filter /FlateDecode", 60_000, 60_000, 1)),
        (f"400x200|{SLOW}|{MUCH}",),
        limits=HURRIED,
    ),
    Case(
        "image of 30,000 x 30,000 in grey",
        PDF,
        lambda: with_image(image_of(zeros(900_000_000), b"/Filter /FlateDecode", 30_000, 30_000)),
        (f"400x200|{SLOW}|{MUCH}",),
        limits=HURRIED,
    ),
    Case("objects in 1 GB", PDF, partial(object_stream, 1 << 30), (f"drawn|!{BAD}|!{SLOW}",), limits=HURRIED),
)

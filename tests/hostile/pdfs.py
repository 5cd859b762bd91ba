"""PDF files of the corpus."""

import zlib
from functools import cache

from PIL import Image

from tests.documents import (
    encoded,
    one_page_pdf,
    stream,
    typed,
    write_pdf,
)
from tests.hostile.parts import inflating

SMALL = "0 0 288 144"
"""400 by 200 pixels at 100 dpi."""
MARK = b"0 0 96 144 re f "
ROOT = b"<< /Type /Catalog /Pages 2 0 R >>"


def left_third(image: Image.Image) -> bool:
    """Whether `MARK` is where it belongs."""
    grey = image.convert("L")
    return image.size == (400, 200) and grey.getpixel((10, 100)) == 0 and grey.getpixel((390, 100)) == 255


def page(content: bytes = MARK, **options: object) -> bytes:
    return one_page_pdf(content, **{"box": SMALL, **options})  # type: ignore[arg-type]


def deflated(body: bytes, extra: bytes = b"") -> bytes:
    return stream(body, b"/Filter /FlateDecode " + extra)


def with_image(image: bytes, extra: bytes = b"") -> bytes:
    drawn = b"q 288 0 0 144 0 0 cm /I Do Q"
    return page(drawn, resources=b"/XObject << /I 6 0 R >>" + extra, objects=[image])


def image_of(body: bytes, filters: bytes, width: int = 100, height: int = 100, bits: int = 8) -> bytes:
    entries = b"/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray /BitsPerComponent %d %b"
    return stream(body, entries % (width, height, bits, filters))


@cache
def operators(size: int = 1 << 30) -> bytes:
    """Some 2 MB that inflate to a gigabyte of strokes."""
    line = b"0 0 m 200 144 l S 9 9 m 100 100 l S\n"
    block = line * (1 << 15)
    body = inflating(block, size // len(block))
    objects = [ROOT, b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>", deflated(body), leaf(3)]
    return write_pdf(objects)


def leaf(content: int, extra: bytes = b"", box: str = SMALL) -> bytes:
    return b"<< /Type /Page /Parent 2 0 R /MediaBox [%b] /Contents %d 0 R %b >>" % (box.encode(), content, extra)


def tree(kids: bytes, count: int, *others: bytes) -> bytes:
    """A document with `kids` in its page tree; object 3 is `MARK`, the others follow from 4 on."""
    return write_pdf([ROOT, b"<< /Type /Pages /Kids [%b] /Count %d >>" % (kids, count), stream(MARK), *others])


def deep_tree(depth: int = 5_000) -> bytes:
    nodes = [
        b"<< /Type /Pages /Parent %d 0 R /Kids [%d 0 R] /Count 1 >>" % (max(2, n - 1), n + 1)
        for n in range(4, 4 + depth)
    ]
    return tree(b"4 0 R", 1, *nodes, leaf(3))


def many_pages(count: int = 200_000) -> bytes:
    """As many pages as it says, in groups of 1,000."""
    groups = count // 1_000
    kids = b" ".join(b"%d 0 R" % (4 + n) for n in range(groups))
    first = 4 + groups
    nodes = [
        b"<< /Type /Pages /Parent 2 0 R /Count 1000 /Kids [%b] >>"
        % b" ".join(b"%d 0 R" % (first + group * 1_000 + n) for n in range(1_000))
        for group in range(groups)
    ]
    return tree(kids, count, *nodes, *([leaf(3)] * count))


def xref_loop() -> bytes:
    data = page()
    table = data.rindex(b"xref\n0 ")
    return data.replace(b"trailer\n<<", b"trailer\n<< /Prev %d" % table)


def object_stream(size: int) -> bytes:
    """Its page lies in a stream of objects that inflates to `size` bytes, with a cross-reference stream as a table."""
    kinds = [ROOT, b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", leaf(4)]
    offsets, body = [], b""
    for number, item in enumerate(kinds, start=1):
        offsets.append(b"%d %d" % (number, len(body)))
        body += item + b"\n"
    head = b" ".join(offsets) + b" "
    out = b"%PDF-1.5\n"
    four = len(out)
    out += b"4 0 obj\n" + stream(MARK) + b"\nendobj\n"
    five = len(out)
    packed = inflating(bytes(1 << 20), size >> 20, head + body)
    out += b"5 0 obj\n" + deflated(packed, b"/Type /ObjStm /N 3 /First %d" % len(head)) + b"\nendobj\n"
    six = len(out)
    rows = [(0, 0, 255), (2, 5, 0), (2, 5, 1), (2, 5, 2), (1, four, 0), (1, five, 0), (1, six, 0)]
    table = b"".join(bytes([kind]) + place.to_bytes(4, "big") + bytes([index]) for kind, place, index in rows)
    out += b"6 0 obj\n" + stream(table, b"/Type /XRef /Size 7 /W [1 4 1] /Root 1 0 R") + b"\nendobj\n"
    return out + b"startxref\n%d\n%%%%EOF\n" % six


def itself_in_it() -> bytes:
    """A form that draws itself."""
    form = stream(
        b"/X Do " + MARK, b"/Type /XObject /Subtype /Form /BBox [0 0 288 144] /Resources << /XObject << /X 6 0 R >> >>"
    )
    return page(b"/X Do", resources=b"/XObject << /X 6 0 R >>", objects=[form])


def glyphs_that_write() -> bytes:
    """A Type 3 font whose glyph is text in the same font."""
    font = (
        b"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 9 9] /FontMatrix [.1 0 0 .1 0 0] /CharProcs << /a 7 0 R >> "
        b"/Encoding << /Differences [97 /a] >> /FirstChar 97 /LastChar 97 /Widths [9] "
        b"/Resources << /Font << /G 6 0 R >> >> >>"
    )
    return page(
        MARK + b"BT /G 20 Tf 9 9 Td (aaaa) Tj ET", objects=[font, stream(b"9 0 d0 BT /G 20 Tf (aaaa) Tj ET")]
    ).replace(b"/Font << /F 5 0 R >>", b"/Font << /F 5 0 R /G 6 0 R >>")


def tiling(step: bytes = b"0.0001") -> bytes:
    pattern = stream(
        b"0 0 1 1 re f",
        b"/Type /Pattern /PatternType 1 /PaintType 1 /TilingType 1 /BBox [0 0 1 1] /XStep %b /YStep %b /Resources << >>"
        % (step, step),
    )
    return page(b"/Pattern cs /P scn 0 0 288 144 re f", resources=b"/Pattern << /P 6 0 R >>", objects=[pattern])


def groups_in_groups(depth: int = 60, box: str = "0 0 2400 2400") -> bytes:
    """Transparent groups, each within the other: each wants a picture of the whole page."""
    forms = []
    for number in range(6, 6 + depth):
        uses = b"/Resources << /XObject << /X %d 0 R >> /ExtGState << /G << /ca 0.5 >> >> >>" % (number + 1)
        inner = b"/G gs /X Do" if number < 5 + depth else MARK
        group = b"/Type /XObject /Subtype /Form /BBox [%b] /Group << /S /Transparency /I true >> " % box.encode()
        forms.append(stream(inner, group + (uses if number < 5 + depth else b"")))
    return one_page_pdf(b"/X Do", box=box, resources=b"/XObject << /X 6 0 R >>", objects=forms)


def shading_without_bounds() -> bytes:
    function = b"<< /FunctionType 2 /Domain [0 1] /C0 [0] /C1 [1] /N 1e30 >>"
    shading = (
        b"<< /ShadingType 2 /ColorSpace /DeviceGray /Coords [0 0 1e-30 1e30] /Function %b /Extend [true true] >>"
        % function
    )
    return page(b"/S sh", resources=b"/Shading << /S 6 0 R >>", objects=[shading])


def many_images(count: int = 50_000) -> bytes:
    drawn = b" ".join(b"q 1 0 0 1 %d %d cm /I Do Q" % (n % 288, n // 288 % 144) for n in range(count))
    image = image_of(b"\0", b"", 1, 1)
    return page(drawn, resources=b"/XObject << /I 6 0 R >>", objects=[image])


def inline_images(count: int = 20_000) -> bytes:
    one = b"q 1 0 0 1 %d %d cm BI /W 1 /H 1 /CS /G /BPC 8 ID \0 EI Q"
    return page(b" ".join(one % (n % 288, n // 288) for n in range(count)))


def many_contents(count: int = 50_000) -> bytes:
    array = b"[%b]" % b" ".join([b"3 0 R"] * count)
    return page(b"0 0 1 1 re f ").replace(b"/Contents 3 0 R", b"/Contents " + array)


def tempting() -> bytes:
    """All that a reader might run or fetch: scripts, programs, forms that are sent off, and files within."""
    actions = (
        b"/OpenAction << /S /JavaScript /JS (app.alert\\(1\\); while \\(true\\) {}) >> "
        b"/AA << /WC << /S /Launch /F (/bin/sh) >> >> "
        b"/Names << /EmbeddedFiles << /Names [(x.exe) << /Type /Filespec /F (x.exe) /EF << /F 6 0 R >> >>] >> >> "
        b"/URI << /Base (http://127.0.0.1:1/) >>"
    )
    annotation = (
        b"/Annots [<< /Type /Annot /Subtype /Link /Rect [0 0 9 9] /A << /S /URI /URI (http://127.0.0.1:1/x) >> >> "
        b"<< /Type /Annot /Subtype /Widget /FT /Btn /Rect [9 9 20 20] "
        b"/A << /S /SubmitForm /F (http://127.0.0.1:1/y) >> >>]"
    )
    data = page(
        page=annotation + b" /AA << /O << /S /GoToR /F (/etc/passwd) /D [0 /Fit] >> >>", objects=[stream(b"MZ")]
    )
    # The longer catalogue moves everything behind it: readers mend the table.
    return data.replace(b"/Type /Catalog", b"/Type /Catalog " + actions)


def contents_elsewhere() -> bytes:
    """A stream that says that its bytes are in another file."""
    return page().replace(b"/Length %d" % len(MARK), b"/Length 0 /F (/etc/passwd) /FFilter /ASCIIHexDecode")


def broken_font(kind: bytes) -> bytes:
    program = stream(bytes(range(256)) * 8, b"/Length1 2048 /Length2 0 /Length3 0")
    described = b"/FontDescriptor << /Type /FontDescriptor /FontName /Broken /Flags 4 /%b 6 0 R >>" % kind
    return page(MARK + typed("Broken letters", 100, 50), font=described, objects=[program])


def incremental() -> bytes:
    """A page that a later edition of the same file has replaced."""
    data = page(b"192 0 96 144 re f")
    place = len(data)
    table = data.rindex(b"xref\n0 ")
    new = b"3 0 obj\n" + stream(MARK) + b"\nendobj\n"
    trailer = b"xref\n3 1\n%010d 00000 n \ntrailer\n<< /Size 6 /Root 1 0 R /Prev %d >>\nstartxref\n%d\n%%%%EOF\n"
    return data + new + trailer % (place, table, place + len(new))


def linearized() -> bytes:
    """It says that it is made for the web, with lengths and places that are all wrong."""
    wrong = b"6 0 obj\n<< /Linearized 1 /L 999 /H [9999 1] /O 3 /E 7777777 /N 5 /T 12 >>\nendobj\n"
    data = page()
    return data[:15] + wrong + data[15:]


def filters(count: int = 500) -> bytes:
    body = MARK
    for _ in range(count):
        body = zlib.compress(body)
    return write_pdf(
        [
            ROOT,
            b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>",
            stream(body, b"/Filter [%b]" % b" ".join([b"/FlateDecode"] * count)),
            leaf(3),
        ]
    )


def jpx(size: int) -> bytes:
    return encoded(Image.effect_noise((size, size), 50), "JPEG2000")


def cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def appearance_loop() -> bytes:
    form = stream(b"/X Do", b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 6 0 R >> >>")
    widget = b"/Annots [<< /Type /Annot /Subtype /Stamp /Rect [0 0 288 144] /AP << /N 6 0 R >> >>]"
    return page(page=widget, objects=[form])


def nested_arrays(depth: int = 100_000) -> bytes:
    return page(MARK + b"[" * depth + b"]" * depth + b" TJ ")


def dashed() -> bytes:
    return page(b"[1e-9 1e-9] 0 d 1 w 0 0 m 288 144 l S " + MARK)


def predictor() -> bytes:
    return with_image(
        image_of(
            zlib.compress(bytes(500)), b"/Filter /FlateDecode /DecodeParms << /Predictor 15 /Columns 2147483647 >>"
        )
    )


def without(data: bytes, what: bytes) -> bytes:
    assert what in data
    return data.replace(what, b" " * len(what))


def boxed(box: str) -> bytes:
    return page(box=box)


def inverted() -> Image.Image:
    return Image.linear_gradient("L").resize((288, 144))

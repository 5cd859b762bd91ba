"""Pages in seven languages as people send them: clean, scanned askew and with noise, upside down, on their side."""

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from tests.benchmarks.prose import PROSE

DPI = 300
A4 = (2480, 3508)
MARGIN = 300
POINTS = 12
TITLE_POINTS = 20
PAPER = 246
INK = 28
JPEG_QUALITY = 40
NOISE = 8.0
"""Standard deviation in grey levels of 256."""

# As Debian's fonts-noto-core and fonts-noto-cjk name them; found wherever the system keeps its fonts.
FONTS: Mapping[str, tuple[str, int]] = {
    "eng": ("NotoSerif-Regular.ttf", 0),
    "deu": ("NotoSans-Regular.ttf", 0),
    "fra": ("NotoSerif-Regular.ttf", 0),
    "rus": ("NotoSans-Regular.ttf", 0),
    "chi_sim": ("NotoSansCJK-Regular.ttc", 2),
    "hin": ("NotoSansDevanagari-Regular.ttf", 0),
    "ara": ("NotoNaskhArabic-Regular.ttf", 0),
}
RIGHT_TO_LEFT = ("ara",)
UNSPACED = ("chi_sim",)
NEVER_FIRST = "，。、；：？！"  # noqa: RUF001
"""Chinese marks that no line begins with."""


@dataclass(frozen=True)
class Kind:
    """How a page has come to us. `skew` in degrees counter-clockwise, `turned` by 0, 90, 180 or 270 of them."""

    name: str
    scanned: bool
    skew: float = 0.0
    turned: int = 0


KINDS = (
    Kind("clean", scanned=False),
    Kind("scanned", scanned=True, skew=1.0),
    Kind("scanned, more askew", scanned=True, skew=-2.0),
    Kind("upside down", scanned=True, skew=1.5, turned=180),
    Kind("on its left side", scanned=True, skew=-1.5, turned=90),
    Kind("on its right side", scanned=True, skew=1.5, turned=270),
)


def truth(language: str) -> str:
    return "\n\n".join(PROSE[language])


def picture(language: str, kind: Kind) -> Image.Image:
    page = drawn(language)
    if kind.scanned:
        page = scanned(page, kind.skew, seed=hash_of(language, kind))
    return page.rotate(kind.turned, expand=True) if kind.turned else page


def encoded(page: Image.Image, kind: Kind) -> tuple[bytes, str]:
    """The picture as a file, and its media type: a PNG where it is clean, else a JPEG."""
    buffer = io.BytesIO()
    if not kind.scanned:
        page.save(buffer, "PNG", dpi=(DPI, DPI))
        return buffer.getvalue(), "image/png"
    page.save(buffer, "JPEG", quality=JPEG_QUALITY, dpi=(DPI, DPI))
    return buffer.getvalue(), "image/jpeg"


@cache
def drawn(language: str) -> Image.Image:
    """An A4 page at 300 dpi: the title, larger, and the paragraphs."""
    page = Image.new("L", A4, PAPER)
    pen = ImageDraw.Draw(page)
    y = MARGIN
    for number, paragraph in enumerate(PROSE[language]):
        size = (TITLE_POINTS if number == 0 else POINTS) * DPI // 72
        font = font_of(language, size)
        for line in lines_of(paragraph, font, language):
            draw_line(pen, y, line, font, language)
            y += size * 8 // 5
        y += size // 2
    assert y < A4[1] - MARGIN // 2, f"the text in {language} does not fit on its page"
    return page


def draw_line(pen: ImageDraw.ImageDraw, y: int, line: str, font: ImageFont.FreeTypeFont, language: str) -> None:
    if language in RIGHT_TO_LEFT:
        pen.text((A4[0] - MARGIN, y), line, fill=INK, font=font, anchor="ra", direction="rtl", language="ar")
    else:
        pen.text((MARGIN, y), line, fill=INK, font=font)


def font_of(language: str, size: int) -> ImageFont.FreeTypeFont:
    name, index = FONTS[language]
    return ImageFont.truetype(name, size, index, layout_engine=ImageFont.Layout.RAQM)


def lines_of(paragraph: str, font: ImageFont.FreeTypeFont, language: str) -> Sequence[str]:
    width = A4[0] - 2 * MARGIN
    spaced = language not in UNSPACED
    lines: list[str] = []
    for piece in paragraph.split() if spaced else paragraph:
        longer = f"{lines[-1]} {piece}" if lines and spaced else "".join(lines[-1:]) + piece
        if lines and (font.getlength(longer) <= width or piece in NEVER_FIRST):
            lines[-1] = longer
        else:
            lines.append(piece)
    return lines


def scanned(page: Image.Image, skew: float, seed: int) -> Image.Image:
    """Turned by `skew` degrees, softened as optics do, with noise over it."""
    turned = page.rotate(skew, Image.Resampling.BICUBIC, fillcolor=PAPER)
    quantiles = [round(128 + NOISE * NormalDist().inv_cdf((value + 0.5) / 256)) for value in range(256)]
    raw = random.Random(seed).randbytes(page.width * page.height)
    noise = Image.frombytes("L", page.size, raw).point(quantiles)
    return ImageChops.add(turned.filter(ImageFilter.GaussianBlur(0.6)), noise, offset=-128)


def hash_of(language: str, kind: Kind) -> int:
    """The same in each run, unlike `hash`."""
    return int.from_bytes(f"{language} {kind.name}".encode(), "big")

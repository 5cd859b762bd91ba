"""Make samples/letter.pdf, a two-page letter with the look of a scan, and samples/letter.txt, its truth.

    python samples/make_sample.py [DIRECTORY]

The pages are drawn, turned by 1 to 2 degrees, blurred, strewn with noise and stored as JPEG of quality 40,
all from a fixed seed: the same Pillow gives the same bytes. The font is the one inside Pillow, so nothing
on the machine changes the result.
"""

import random
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

DPI = 200
SEED = 1887
PAPER = 246
INK = 28
EPOCH = time.gmtime(1_700_000_000)


class Leaf(NamedTuple):
    """One page: its paragraphs, and how the scanner held it (skew in degrees, counter-clockwise)."""

    paragraphs: Sequence[str]
    skew: float


LETTER = (
    Leaf(
        (
            "The Roundhouse at Elm Junction",
            "Dear visitor,",
            "When you walk up from the station you will see a low brick building that bends like a horse"
            "shoe. That is our roundhouse. Twenty-two stalls stand side by side, and every one of them opens "
            "toward the same spot: a turntable, 85 feet long, sunk in a shallow pit.",
            "A locomotive is slow to warm. From cold iron to full steam took a crew most of a night, so the "
            "engines that would be wanted soon were kept simmering, and the others slept. The foreman had a "
            "slate by the door. On it he wrote which engine stood in which stall, how hot it was, and which "
            "train was waiting for it.",
            "His rule was simple: never turn the table twice when once will do. If three trains wanted the "
            "same engine, they went out one after another, and the table rested.",
            "No order was ever spoken and forgotten. Each one was chalked up first, and wiped off only when "
            "the train had left.",
        ),
        skew=1.4,
    ),
    Leaf(
        (
            "How the Table Turns",
            "The bridge of the table weighs 60 tons, yet one person can move it. The secret is balance. The "
            "driver creeps forward until the weight sits right above the centre pin, and the wheels at both "
            "ends barely touch the ring rail. Then a push on a long wooden lever is enough.",
            "In 1911 a small electric motor took over from the lever. It is still there, painted green, and "
            "it starts on the first try about nine days out of ten. On the tenth day we use the lever.",
            "People ask what happened when the power failed with an engine halfway round. The answer is in "
            "the slate: nobody had to remember anything. The next foreman read it, finished the turn, and "
            "went on with the list.",
            "Come on a Sunday at 2:30 and you may try it yourself. Children push for free; grown-ups pay "
            "one coin, which buys oil.",
            "With warm regards,",
            "The keepers of stall number 7",
        ),
        skew=-1.7,
    ),
)


def wrapped(paragraph: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break a paragraph into lines that are at most `width` pixels wide in `font`."""
    lines: list[str] = []
    for word in paragraph.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def draw_page(paragraphs: Iterable[str], dpi: int = DPI) -> tuple[Image.Image, str]:
    """Draw paragraphs in 13 point on a Letter-sized grey page; return it and the text line by line.

    Paragraphs are set apart by an empty line, in the picture as in the text.
    """
    font = ImageFont.load_default(dpi * 13 / 72)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    page = Image.new("L", (round(8.5 * dpi), 11 * dpi), PAPER)
    pen = ImageDraw.Draw(page)
    leading = round(dpi * 19 / 72)
    blocks: list[str] = []
    y = dpi
    for paragraph in paragraphs:
        lines = wrapped(paragraph, font, 6.3 * dpi)
        for line in lines:
            pen.text((1.1 * dpi, y), line, fill=INK, font=font)
            y += leading
        y += leading // 2
        blocks.append("\n".join(lines))
    return page, "\n\n".join(blocks) + "\n"


def scanned(page: Image.Image, skew: float, seed: int, sigma: float = 8.0) -> Image.Image:
    """Turn the page by `skew` degrees, soften it as optics do, and add noise of `sigma` grey levels."""
    turned = page.rotate(skew, Image.Resampling.BICUBIC, fillcolor=PAPER)
    quantiles = [round(128 + sigma * NormalDist().inv_cdf((value + 0.5) / 256)) for value in range(256)]
    raw = random.Random(seed).randbytes(page.width * page.height)
    noise = Image.frombytes("L", page.size, raw).point(quantiles)
    return ImageChops.add(turned.filter(ImageFilter.GaussianBlur(0.6)), noise, offset=-128)


def save_pdf(pages: Sequence[Image.Image], path: Path, dpi: int = DPI, quality: int = 40) -> None:
    """Write the pages as one PDF of JPEG pictures, without a date that would change from run to run."""
    pages[0].save(
        path,
        "PDF",
        save_all=True,
        append_images=pages[1:],
        resolution=dpi,
        quality=quality,
        title="The Roundhouse at Elm Junction",
        creationDate=EPOCH,
        modDate=EPOCH,
    )


def main(directory: Path) -> None:
    pages: list[Image.Image] = []
    texts: list[str] = []
    for number, leaf in enumerate(LETTER):
        page, text = draw_page(leaf.paragraphs)
        pages.append(scanned(page, leaf.skew, SEED + number))
        texts.append(text)
    save_pdf(pages, directory / "letter.pdf")
    (directory / "letter.txt").write_text("\n".join(texts), encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)

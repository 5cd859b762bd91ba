"""How far a page lies askew, and what is done about it. Runs in child processes only.

Lines of text that lie straight leave rows (or, on a page on its side, columns) that are either full of ink or empty. So
the page is turned by one small angle after the other, and the one is taken at which neighbouring rows differ most.
Measured on the pages of ``tests.benchmarks.ocr``: never wrong by more than the finest step.
"""

from itertools import pairwise

from PIL import Image

MOST = 10.0
"""Degrees to either side that are looked at; phones and hasty people do not come further."""
COARSE, FINE = 0.5, 0.1
"""Steps in degrees: the first on a picture of `COARSE_SIDE` pixels, the second around its best on `FINE_SIDE`."""
COARSE_SIDE, FINE_SIDE = 350, 700
SMALLEST = 0.25
"""Tesseract does not mind less; from 1 degree on it loses lines of Arabic and Hindi, from 2 on of any language."""
CLEARER = 1.5
"""How much clearer the rows must be than on the page as it lies: they are twice as clear from 0.3 degrees on, and a
photograph has no angle."""
DENSE = 8
"""Mean level of the ink, of 255: pages of text have 8 to 20 in their densest third, a page with one line has 1."""
PAPER_NOISE = 40
"""Grey levels by which paper differs from itself."""


def skew_of(page: Image.Image) -> float:
    """Degrees, counter-clockwise, by which to turn the page for its lines to run along its sides; 0 if they do."""
    grey = page.convert("L")
    low, fine = _ink(grey, COARSE_SIDE), _ink(grey, FINE_SIDE)
    steps = round(MOST / COARSE)
    rough = max((step * COARSE for step in range(-steps, steps + 1)), key=lambda angle: _clearness(low, angle))
    around = round(COARSE / FINE)
    angles = (rough + step * FINE for step in range(-around, around + 1))
    clearness, angle = max((_clearness(fine, angle), angle) for angle in angles)
    if abs(angle) < SMALLEST or clearness <= CLEARER * _clearness(fine, 0.0):
        return 0.0
    return round(angle, 1)


def _ink(grey: Image.Image, side: int) -> Image.Image:
    """The page, small, its ink light on black paper."""
    small = grey.reduce(max(1, max(grey.size) // side))
    paper = _paper(small)
    return small.point([min(255, max(0, paper - PAPER_NOISE - value) * 2) for value in range(256)])


def _clearness(ink: Image.Image, angle: float) -> int:
    # Between pixels nothing is made up: that takes eight times as long and finds the same angle.
    turned = ink.rotate(angle, Image.Resampling.NEAREST) if angle else ink
    rows = turned.resize((1, ink.height), Image.Resampling.BOX).tobytes()
    columns = turned.resize((ink.width, 1), Image.Resampling.BOX).tobytes()
    return max(sum((a - b) ** 2 for a, b in pairwise(line)) for line in (rows, columns))


def straightened(page: Image.Image, angle: float) -> Image.Image:
    """The page turned by `angle`, as large as before; what comes in at the corners looks like its paper."""
    if not angle:
        return page
    paper = _paper(page.convert("L"))
    fill = paper if page.mode == "L" else (paper,) * len(page.getbands())
    return page.rotate(angle, Image.Resampling.BILINEAR, fillcolor=fill)


def telling_part(page: Image.Image) -> Image.Image:
    """The third of a grey page, from side to side, with the most ink, where that is as much as of dense text: enough
    for finding out how the page lies. Else the whole page."""
    ink = _ink(page, COARSE_SIDE)
    rows = ink.resize((1, ink.height), Image.Resampling.BOX).tobytes()
    part = ink.height // 3
    inks, top = max((sum(rows[top : top + part]), -top) for top in range(ink.height - part + 1))
    if not part or inks < DENSE * part:
        return page
    top = -top * page.height // ink.height
    return page.crop((0, top, page.width, top + page.height // 3))


def _paper(grey: Image.Image) -> int:
    """The level that most of the page has."""
    histogram = grey.histogram()
    return histogram.index(max(histogram))

"""Whether there is anything on a page. Runs in the decoding child only.

The page is reduced and softened, and each pixel compared with the one `LAG` beside it and below it: text changes within
that distance, paper and light that falls off do not. What is left on a blank page is noise, and that is alike all over
it, so a page is blank where no cell of it stands out of its quieter ones. Along the edges only changes that run along
the edge count: the shadow that a scanner casts there has none, the letters of a line there have.

Measured on A4 pages with noise of up to 8 grey levels, stored as JPEG of quality 30 to 75: the strongest cell of a
blank page has at most 3 at 300 dpi, 8 at 150 and 22 at 100 (beyond the limit: such a page is read in vain), that of a
page with one figure "1" in 9 point 45 to 92, with a word in pencil that is 20 levels darker than the paper 20 to 50.
"""

from collections.abc import Sequence

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ocr.page import Box

SIDE = 1_000
"""About so many pixels has the longer side of the page that is looked at."""
SOFTNESS = 1.5
LAG = 3
CELL = 8
"""The side of a square cell in pixels: about as large as a letter."""
CLIP = 12
"""A change of more grey levels counts as one of so many, lest a grain of dust be as strong as a word in pencil."""
FLOOR = 8
"""The mean square of changes that a cell may have on any page."""
RATIO = 1
"""How much of the quiet cells' changes is added to it."""
NOISY = 3
"""Where even quiet cells change so much, nothing can be said."""
QUIET = 0.25
EDGE = 0.045
"""The part of a side in which shadows fall."""
CORNER = 0.03
"""The part of both sides in which two shadows cross, and no printer prints."""

CONTRAST = 24
"""Grey levels by which a letter differs, at least, from what it stands on."""
DRAWN = 12
"""The mean (of 255) of strong changes in both directions that a cell with something drawn has at least."""
FEW_CELLS = 12
"""So little may lie beside the text: a logo, a signature."""


def without_ink(page: Image.Image) -> bool:
    """True only for a page (L or RGB) on which nobody would find a letter."""
    grey = page.convert("L")
    grey = grey.reduce(max(1, round(max(grey.size) / SIDE)))
    low, high = grey.getextrema()
    if low == high:
        return True
    grey = grey.filter(ImageFilter.GaussianBlur(SOFTNESS))
    if min(grey.size) < 4 * CELL:
        return False
    cells = changes(grey).reduce(CELL).histogram()
    quiet = quantile(cells, QUIET)
    strongest = max(level for level, count in enumerate(cells) if count)
    return quiet <= NOISY and strongest <= FLOOR + RATIO * quiet


def changes(grey: Image.Image) -> Image.Image:
    """The square of each pixel's change, at most `CLIP` squared, where it tells of ink."""
    width, height = grey.width - LAG, grey.height - LAG
    here = grey.crop((0, 0, width, height))
    across = ImageChops.difference(here, grey.crop((LAG, 0, LAG + width, height)))
    down = ImageChops.difference(here, grey.crop((0, LAG, width, LAG + height)))
    change = ImageChops.lighter(across, down)
    edge_x, edge_y = round(width * EDGE), round(height * EDGE)
    for left in (0, width - edge_x):
        change.paste(down.crop((left, 0, left + edge_x, height)), (left, 0))
    for top in (0, height - edge_y):
        change.paste(across.crop((0, top, width, top + edge_y)), (0, top))
        for left in (0, width - edge_x):
            square = (left, top, left + edge_x, top + edge_y)
            change.paste(ImageChops.darker(across.crop(square), down.crop(square)), (left, top))
    corner_x, corner_y = round(width * CORNER), round(height * CORNER)
    for left in (0, width - corner_x):
        for top in (0, height - corner_y):
            change.paste(0, (left, top, left + corner_x, top + corner_y))
    return change.point([min(level, CLIP) ** 2 for level in range(256)])


def quantile(histogram: Sequence[int], share: float) -> int:
    """The lowest level that at least `share` of what is counted does not exceed."""
    wanted = max(1.0, sum(histogram) * share)
    for level, count in enumerate(histogram):
        wanted -= count
        if wanted <= 0:
            return level
    return len(histogram) - 1


class Marks:
    """Where something is drawn on a page (L or RGB), by cells, to compare it with a text."""

    def __init__(self, page: Image.Image) -> None:
        grey = page.convert("L")
        self._factor = max(1, round(max(grey.size) / SIDE))
        self._grey = grey.reduce(self._factor)

    def visible(self, box: Box) -> bool:
        """Whether the page, within a box in its pixels, is not of one shade."""
        left, top, right, bottom = (side // self._factor for side in box)
        shades = self._grey.crop((left, top, max(right, left + 1) + 1, max(bottom, top + 1) + 1)).histogram()
        return quantile(shades, 1.0) - quantile(shades, 0.0) >= CONTRAST

    def uncovered(self, boxes: Sequence[Box]) -> float:
        """The part, from 0 to 1, of what is drawn that lies outside of all the boxes.

        Only what changes both across and down counts, as letters and pictures do: lines and areas do not.
        """
        width, height = self._grey.width - LAG, self._grey.height - LAG
        if min(width, height) < 4 * CELL:
            return 0.0
        here = self._grey.crop((0, 0, width, height))
        sides = (self._grey.crop((LAG, 0, LAG + width, height)), self._grey.crop((0, LAG, width, LAG + height)))
        strong = [0 if level < CONTRAST else 255 for level in range(256)]
        across, down = (ImageChops.difference(here, side).point(strong).reduce(CELL) for side in sides)
        drawn = ImageChops.darker(across, down).point([0 if level < DRAWN else 1 for level in range(256)])
        everything = drawn.histogram()[1]
        pen = ImageDraw.Draw(drawn)
        cell = self._factor * CELL
        for left, top, right, bottom in boxes:
            pen.rectangle((left // cell - 1, top // cell - 1, right // cell + 1, bottom // cell + 1), fill=0)
        rest = drawn.histogram()[1]
        return rest / everything if rest >= FEW_CELLS else 0.0

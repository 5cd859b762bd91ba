"""Blank pages and pages that are nearly so, made and looked at in many ways."""

import io
import random
from functools import cache
from statistics import NormalDist

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from ocr.ink import without_ink

PAPER = 246


@cache
def noise(size: tuple[int, int], sigma: float) -> Image.Image:
    levels = [round(128 + sigma * NormalDist().inv_cdf((value + 0.5) / 256)) for value in range(256)]
    return Image.frombytes("L", size, random.Random(5).randbytes(size[0] * size[1])).point(levels)


def a4(dpi: int) -> Image.Image:
    return Image.new("L", (round(8.27 * dpi), round(11.69 * dpi)), PAPER)


def with_text(dpi: int, text: str, x: float, y: float, points: float, shade: int) -> Image.Image:
    """A page with text that begins at the part `x` of its width and `y` of its height."""
    page = a4(dpi)
    font = ImageFont.load_default(dpi * points / 72)
    ImageDraw.Draw(page).text((x * page.width, y * page.height), text, fill=shade, font=font)
    return page


def scan(page: Image.Image, sigma: float, quality: int) -> Image.Image:
    soft = page.filter(ImageFilter.GaussianBlur(0.6))
    buffer = io.BytesIO()
    ImageChops.add(soft, noise(page.size, sigma), offset=-128).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        return image.convert("L")


def shaded(page: Image.Image, level: int, slant: float) -> Image.Image:
    """A scanner's shadow on the left and at the bottom, of a page that lay askew by `slant`."""
    width, height = page.size
    shadow = Image.new("L", page.size, 255)
    pen = ImageDraw.Draw(shadow)
    pen.polygon([(0, 0), (width * 0.02 + slant * height, 0), (width * 0.02, height), (0, height)], fill=level)
    pen.rectangle((0, height * 0.99, width, height), fill=level)
    return ImageChops.multiply(page, shadow.filter(ImageFilter.GaussianBlur(4)))


@pytest.mark.parametrize(("sigma", "quality"), [(0.0, 40), (3.0, 60), (8.0, 30), (8.0, 75)])
@pytest.mark.parametrize("dpi", [150, 200, 300])
def test_a_scanned_page_with_nothing_on_it_is_blank(dpi: int, sigma: float, quality: int) -> None:
    assert without_ink(scan(a4(dpi), sigma, quality))


@pytest.mark.parametrize(("level", "slant"), [(40, 0.0), (120, 0.0), (120, 0.01), (200, 0.01)])
@pytest.mark.parametrize("dpi", [150, 300])
def test_shadows_at_the_edges_are_no_ink(dpi: int, level: int, slant: float) -> None:
    assert without_ink(scan(shaded(a4(dpi), level, slant), 3, 60))


@pytest.mark.parametrize("dpi", [150, 300])
def test_what_shines_through_slightly_is_no_ink(dpi: int) -> None:
    lines = "\n".join(["Through the paper shines what is printed on its back."] * 40)
    back = with_text(dpi, lines, 0.1, 0.1, 11, 28).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    page = Image.blend(a4(dpi), back.filter(ImageFilter.GaussianBlur(dpi / 75)), 0.03)
    assert without_ink(scan(page, 3, 60))


def test_light_that_falls_off_is_no_ink() -> None:
    page = ImageChops.multiply(a4(200), Image.linear_gradient("L").point(lambda v: 155 + v * 0.4).resize(a4(200).size))
    assert without_ink(scan(page, 3, 75))


FAINT = {
    "a page number": ("7", 0.5, 0.95, 10, 28),
    "the figure one": ("1", 0.5, 0.96, 9, 28),
    "the figure one in grey": ("1", 0.5, 0.96, 9, 120),
    "a lone letter l": ("l", 0.5, 0.5, 10, 120),
    "a single short line": ("See over.", 0.1, 0.1, 11, 28),
    "a tiny line": ("printed in the smallest letters", 0.3, 0.9, 6, 60),
    "pencil": ("a note by hand", 0.2, 0.3, 14, 200),
    "thin pencil": ("a note by hand", 0.2, 0.3, 14, 222),
    "a number close to the corner": ("12", 0.955, 0.975, 8, 60),
}


@pytest.mark.parametrize(("sigma", "quality"), [(0.0, 40), (5.0, 30), (8.0, 75)])
@pytest.mark.parametrize("dpi", [100, 150, 300])
@pytest.mark.parametrize("what", FAINT)
def test_a_page_with_little_on_it_is_never_blank(what: str, dpi: int, sigma: float, quality: int) -> None:
    assert not without_ink(scan(with_text(dpi, *FAINT[what]), sigma, quality))


@pytest.mark.parametrize("dpi", [100, 200])
@pytest.mark.parametrize("place", [(0.005, 0.4), (0.2, 0.001), (0.4, 0.985), (0.97, 0.2)])
def test_text_that_touches_an_edge_is_ink_even_in_a_shadow(place: tuple[float, float], dpi: int) -> None:
    page = shaded(with_text(dpi, "Cut off words\nof two lines", *place, 11, 28), 160, 0.0)
    assert not without_ink(scan(page, 3, 60))


@pytest.mark.parametrize("shade", [28, 150, 222])
def test_a_page_full_of_text_is_not_taken_for_noise(shade: int) -> None:
    lines = "\n".join(["no margin, no picture, and words all over it, line by line " * 4] * 200)
    for points in (8, 11, 24):
        assert not without_ink(scan(with_text(150, lines, 0, 0, points, shade), 3, 60))


def test_white_on_black_and_colour_on_colour_are_ink() -> None:
    page = with_text(150, "A line", 0.3, 0.3, 11, 28)
    assert not without_ink(ImageChops.invert(page))
    assert without_ink(ImageChops.invert(scan(a4(150), 3, 60)))
    red = Image.merge("RGB", (page, Image.new("L", page.size, 60), Image.new("L", page.size, 60)))
    assert not without_ink(red)


def test_one_shade_is_blank_at_any_size_and_a_scrap_with_two_shades_is_not() -> None:
    assert without_ink(Image.new("L", (3, 2), 7))
    assert without_ink(Image.new("RGB", (4000, 5000), "navy"))
    scrap = Image.new("L", (30, 12), PAPER)
    scrap.putpixel((4, 4), 0)
    assert not without_ink(scrap)

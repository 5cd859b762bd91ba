"""How far pages lie askew."""

import pytest
from PIL import Image

from ocr.skew import skew_of, straightened, telling_part
from samples.make_sample import draw_page, scanned

TEXT = (
    "The foreman had a slate by the door. On it he wrote which engine stood in which stall, how hot it was, "
    "and which train was waiting for it. Nobody had to remember anything."
)


@pytest.mark.parametrize("askew", [0.0, 0.5, -2.0, 7.3])
@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_the_angle_of_lines_is_found_however_the_page_lies(askew: float, turned: int) -> None:
    page = scanned(draw_page([TEXT], dpi=150)[0], askew, seed=1, sigma=5).rotate(turned, expand=True)
    assert skew_of(page) == pytest.approx(-askew, abs=0.11)


@pytest.mark.parametrize("level", [0, 30, 128, 255])
def test_a_page_without_lines_has_no_angle(level: int) -> None:
    assert skew_of(Image.new("L", (850, 1100), level)) == 0
    assert skew_of(Image.effect_noise((850, 1100), 40)) == 0


def test_a_straightened_page_lies_straight_and_has_its_paper_in_the_corners() -> None:
    page = scanned(draw_page([TEXT], dpi=150)[0], 3.0, seed=1, sigma=0)
    straight = straightened(page, skew_of(page))
    assert straight.size == page.size
    assert skew_of(straight) == 0
    assert straight.getpixel((0, 0)) == page.getpixel((600, 1500))
    colour = straightened(Image.merge("RGB", [page] * 3), -3.0)
    assert colour.mode == "RGB"


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (2001, 2), (1, 5000), (30_000, 3)])
def test_of_a_scrap_that_is_hardly_a_page_the_whole_is_the_telling_part(size: tuple[int, int]) -> None:
    scrap = Image.new("L", size, 255)
    scrap.putpixel((0, 0), 0)
    assert (skew_of(scrap), telling_part(scrap).size) == (0, size)

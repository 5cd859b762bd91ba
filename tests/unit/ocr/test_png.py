"""PNG files that are written whole show what was written."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from ocr.png import write_png
from tests.benchmarks.error_rate import edits
from tests.documents import character_error_rate


@pytest.mark.parametrize(("mode", "size"), [("L", (1, 1)), ("L", (7, 3)), ("RGB", (5, 9)), ("RGB", (1, 4))])
@pytest.mark.parametrize("dpi", [None, 300])
def test_a_picture_comes_back_as_it_was(mode: str, size: tuple[int, int], dpi: int | None, tmp_path: Path) -> None:
    count = size[0] * size[1] * len(mode)
    page = Image.frombytes(mode, size, bytes(37 * index % 256 for index in range(count)))
    write_png(page, tmp_path / "page.png", dpi)
    with Image.open(tmp_path / "page.png", formats=("PNG",)) as read:
        assert read.mode == mode
        assert ImageChops.difference(page, read).getbbox() is None
        assert [round(side) for side in read.info.get("dpi", ())] == ([dpi, dpi] if dpi else [])


@given(st.text("abc", max_size=20), st.text("abc", min_size=1, max_size=20))
def test_the_benchmarks_quick_count_of_errors_is_the_plain_one(read: str, truth: str) -> None:
    assert edits(read, truth) == round(character_error_rate(read, truth) * len(truth))

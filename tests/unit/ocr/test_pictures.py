"""Pictures of every kind, decoded by the real child process."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from ocr.decoder import PageDecoder
from ocr.errors import ImageTooLarge, UnreadableDocument, UnsupportedDocument
from ocr.protocol import DecodeLimits
from tests.documents import encoded, png_bomb, scanned_page, tiff

TEXT = "Seven green engines wait for steam."


def page() -> Image.Image:
    return scanned_page(TEXT, dpi=100)


def sixteen_bits(image: Image.Image) -> Image.Image:
    return image.convert("I").point(lambda value: value * 257.0).convert("I;16")


async def decoded(data: bytes, media_type: str, number: int = 1, **limits: Any) -> Image.Image:
    async with PageDecoder(data, media_type, DecodeLimits(**limits)) as decoder:
        drawn = await decoder.page(number)
        with Image.open(drawn.path) as image:
            image.load()
            assert (image.format, image.size) == ("PNG", (drawn.width, drawn.height))
            return image.copy()


def difference(left: Image.Image, right: Image.Image) -> float:
    """The mean difference in grey levels."""
    assert left.size == right.size
    return float(ImageStat.Stat(ImageChops.difference(left.convert("L"), right.convert("L"))).mean[0])


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        pytest.param("image/png", lambda: encoded(page()), id="grey PNG"),
        pytest.param("image/png", lambda: encoded(sixteen_bits(page())), id="16-bit PNG"),
        pytest.param("image/png", lambda: encoded(page().quantize(64)), id="palette PNG"),
        pytest.param("image/png", lambda: encoded(page().convert("RGB")), id="grey PNG stored as RGB"),
        pytest.param("image/jpeg", lambda: encoded(page(), "JPEG", quality=90), id="grey JPEG"),
        pytest.param("image/jpeg", lambda: encoded(page().convert("CMYK"), "JPEG", quality=90), id="CMYK JPEG"),
        pytest.param("image/jpeg", lambda: encoded(page(), "MPO", save_all=True, append_images=[page()]), id="MPO"),
        pytest.param("image/webp", lambda: encoded(page().convert("RGB"), "WEBP", quality=90), id="WebP"),
        pytest.param("image/bmp", lambda: encoded(page(), "BMP"), id="BMP"),
        pytest.param("image/tiff", lambda: encoded(page(), "TIFF", compression="tiff_lzw"), id="LZW TIFF"),
        pytest.param("image/tiff", lambda: encoded(sixteen_bits(page()), "TIFF"), id="16-bit TIFF"),
    ],
)
async def test_a_picture_comes_out_as_it_looks(media_type: str, data: Any) -> None:
    assert difference(await decoded(data(), media_type), page()) < 4


async def test_grey_stays_grey_and_colour_stays_colour() -> None:
    colourful = page().convert("RGB")
    colourful.paste((200, 30, 30), (10, 10, 60, 60))
    assert (await decoded(encoded(page().convert("RGB")), "image/png")).mode == "L"
    kept = await decoded(encoded(colourful), "image/png")
    assert kept.mode == "RGB"
    assert kept.getpixel((20, 20)) == (200, 30, 30)


async def test_a_photo_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    on_its_side = encoded(page().rotate(90, expand=True), "JPEG", quality=90, exif=exif)
    assert difference(await decoded(on_its_side, "image/jpeg"), page()) < 4


async def test_alpha_is_laid_on_white() -> None:
    ink = ImageChops.invert(page())
    clear = Image.merge("LA", (Image.new("L", ink.size, 0), ink))
    assert difference(await decoded(encoded(clear), "image/png"), page()) < 2
    assert difference(await decoded(encoded(clear.convert("RGBA"), "WEBP", lossless=True), "image/webp"), page()) < 2


async def test_each_frame_of_a_fax_is_a_page_that_can_be_drawn_in_any_order() -> None:
    frames = [Image.new("1", (64, 64 + number), number % 2) for number in range(5)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:], compression="group4")
    async with PageDecoder(data, "image/tiff") as decoder:
        assert decoder.page_count == 5
        heights = [(await decoder.page(number)).height for number in (5, 1, 3, 3)]
    assert heights == [68, 64, 66, 66]


async def test_a_resolution_is_believed_only_if_it_can_be_true() -> None:
    for claimed, believed in ((200, 200), (72, None), (None, None)):
        options = {"dpi": (claimed, claimed)} if claimed else {}
        async with PageDecoder(encoded(page(), "JPEG", **options), "image/jpeg") as decoder:
            assert (await decoder.page(1)).dpi == believed


async def test_a_large_page_is_reduced_to_the_clamp_and_so_is_its_resolution() -> None:
    data = encoded(page(), "PNG", dpi=(200, 200))
    async with PageDecoder(data, "image/png", DecodeLimits(page_pixels=page().width * page().height // 4)) as decoder:
        drawn = await decoder.page(1)
    assert (drawn.width, drawn.height, drawn.dpi) == (page().width // 2, page().height // 2, 100)


async def test_an_image_between_the_limit_and_twice_the_limit_is_refused_and_not_only_warned_of() -> None:
    data = png_bomb(1000, 1500)
    with pytest.raises(ImageTooLarge, match="more than 1,000,000 pixels") as caught:
        await decoded(data, "image/png", image_pixels=1_000_000)
    assert caught.value.permanent
    assert (await decoded(data, "image/png", image_pixels=1_500_000)).size == (1000, 1500)


async def test_a_page_after_a_refused_one_can_still_be_drawn() -> None:
    frames = [(8, 8, b"\xff" * 8), (60_000, 60_000, b"\xff" * 8), (8, 9, b"\xff" * 9)]
    async with PageDecoder(tiff(frames), "image/tiff") as decoder:
        with pytest.raises(ImageTooLarge) as caught:
            await decoder.page(2)
        assert caught.value.details["page"] == 2
        assert (await decoder.page(3)).height == 9


@pytest.mark.parametrize("disguise", ["GIF", "TIFF", "PPM", "EPS", "ICNS", "PCX"])
async def test_another_format_than_the_one_declared_is_refused(disguise: str) -> None:
    mode = "RGB" if disguise in ("EPS", "ICNS", "PPM") else "L"
    with pytest.raises(UnreadableDocument, match="not a PNG image"):
        await decoded(encoded(Image.new(mode, (64, 64)), disguise), "image/png")


async def test_an_unknown_media_type_is_refused_before_anything_is_started() -> None:
    with pytest.raises(UnsupportedDocument, match="image/gif is not read; send one of application/pdf, image/bmp"):
        PageDecoder(b"GIF89a", "image/gif")


async def test_damaged_exif_does_not_cost_the_picture(scratch: Path) -> None:
    buffer = io.BytesIO()
    page().save(buffer, "JPEG", quality=90, exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert difference(await decoded(buffer.getvalue(), "image/jpeg"), page()) < 4

"""Pictures → upright grey or RGB pages. Runs in the decoding child only."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageChops, ImageOps, UnidentifiedImageError

from ocr.protocol import PREVIEW_SIDE, DecodeLimits, Embedded, Refusal, too_many_pages

FORMATS = {
    "image/jpeg": ("JPEG", "MPO"),
    "image/png": ("PNG",),
    "image/webp": ("WEBP",),
    "image/bmp": ("BMP",),
    "image/tiff": ("TIFF",),
}
BELIEVABLE_DPI = range(100, 2401)
"""Screens and phones write 72 or 96 into photos of a page, which would make it a metre high."""


def prepare_pillow(limits: DecodeLimits) -> None:
    """Turn Pillow's warnings that a picture is too large, or not all there, into errors."""
    Image.MAX_IMAGE_PIXELS = limits.image_pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    warnings.filterwarnings("error", message="Truncated File Read")


class PictureDocument:
    """An image file; only a TIFF has more than one page (a JPEG's other frames are previews of the first)."""

    def __init__(self, path: Path, media_type: str, limits: DecodeLimits, most: int) -> None:
        """A document of more than `most` pages is refused."""
        self.name = FORMATS[media_type][0]
        self.limits = limits
        with self._refusals(None):
            self.image = Image.open(path, formats=FORMATS[media_type])
            self.pages = self._count_frames(most) if media_type == "image/tiff" else 1

    def _count_frames(self, most: int) -> int:
        # `n_frames` walks through any number of frames before it tells, and is wrong after a seek too far.
        for frame in range(1, most + 1):
            try:
                self.image.seek(frame)
            except EOFError:
                self.image.seek(0)
                return frame
        raise too_many_pages(None, most)

    def draw(self, number: int) -> tuple[Image.Image, int | None]:
        """Page `number` (from 1), upright, and its resolution in dots per inch where that is known."""
        with self._refusals(number):
            if self.pages > 1:
                self.image.seek(number - 1)
            if self.image.width * self.image.height > self.limits.image_pixels:
                raise self._too_large(number)
            self.image.load()
            # Each copy of the largest picture takes hundreds of megabytes: one is made only where it must be.
            is_turned = self.image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            page = flattened(ImageOps.exif_transpose(self.image) if is_turned else self.image)
            return page, believable_dpi(self.image)

    def text(self, number: int, page: Image.Image, dpi: int | None) -> Embedded | None:
        """None: pictures carry no text."""
        return None

    @contextmanager
    def _refusals(self, number: int | None) -> Iterator[None]:
        where: dict[str, Any] = {} if number is None else {"page": number}
        try:
            yield
        except Refusal:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError):
            raise self._too_large(number) from None
        except UnidentifiedImageError:
            message = f"The file is not a {self.name} image, or its header is damaged."
            raise Refusal("unreadable_document", message, **where) from None
        # Pillow's readers let any exception through on damaged bytes (struct.error, SyntaxError, KeyError and
        # others), and all of them mean the same here: these bytes are not a picture.
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"[:300]
            if "truncated" in cause.lower():
                message = f"The {self.name} image breaks off before its end."
                raise Refusal("truncated_document", message, cause=cause, **where) from error
            message = f"The {self.name} image is damaged."
            raise Refusal("unreadable_document", message, cause=cause, **where) from error

    def _too_large(self, number: int | None) -> Refusal:
        most = self.limits.image_pixels
        where: dict[str, Any] = {} if number is None else {"page": number}
        message = f"The {self.name} image has more than {most:,} pixels; send it with a lower resolution."
        return Refusal("image_too_large", message, max_pixels=most, **where)


def reduced_for_people(page: Image.Image) -> Image.Image:
    """The page with at most `PREVIEW_SIDE` pixels on its longer side."""
    side = max(page.width, page.height)
    if side <= PREVIEW_SIDE:
        return page
    size = (max(1, page.width * PREVIEW_SIDE // side), max(1, page.height * PREVIEW_SIDE // side))
    return page.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.01)


def believable_dpi(image: Image.Image) -> int | None:
    """The vertical resolution that a picture claims, unless nobody can mean it."""
    claim = image.info.get("dpi")
    try:
        dpi = round(float(claim[1])) if claim else 0
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return dpi if dpi in BELIEVABLE_DPI else None


def flattened(image: Image.Image) -> Image.Image:
    """The picture in mode L or RGB: alpha laid on white, deep grey scaled to 8 bits, grey never as RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return eight_bits(image)
    if image.has_transparency_data:
        image = in_mode(image, "RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image.getchannel("A"))
        image = paper
    if image.mode in ("1", "L"):
        return in_mode(image, "L")
    image = in_mode(image, "RGB")
    red, green, blue = image.split()
    grey = all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue))
    return red if grey else image


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled by its range, 32-bit and floating grey by the range that it uses."""
    low, high = (0.0, 65535.0)
    if not image.mode.startswith("I;16"):
        extrema = image.getextrema()
        low, high = float(min(extrema[0], 0)), float(extrema[1])  # type: ignore[arg-type]
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        high = next((usual for usual in ranges if high <= usual), high)
    scale = 255.0 / ((high - low) or 1.0)
    wide = image if image.mode == "F" else image.convert("I")
    return wide.point(lambda value: value * scale - low * scale).convert("L")


def clamped(page: Image.Image, dpi: int | None, limits: DecodeLimits) -> tuple[Image.Image, int | None]:
    """The page reduced to what a recogniser is given at most, and the resolution that it has then."""
    shrink = shrinkage(page.width, page.height, limits)
    if shrink >= 1:
        return page, dpi
    size = (max(1, int(page.width * shrink)), max(1, int(page.height * shrink)))
    return page.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0), dpi and round(dpi * shrink)


def shrinkage(width: float, height: float, limits: DecodeLimits) -> float:
    """The factor (at most 1) by which a page of so many pixels is reduced to fit the limits."""
    by_area = math.sqrt(limits.page_pixels / (width * height))
    return min(1.0, by_area, limits.page_side / max(width, height))

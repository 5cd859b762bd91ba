"""Document bytes → pages, decoded in a child process. Nothing of the document is parsed in this one."""

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ocr
from ocr.errors import DecoderCrashed, NoSuchPage, OcrError, UnsupportedDocument, document_error
from ocr.page import Box
from ocr.page_numbers import chosen, parse
from ocr.process import Child, child, python_arguments
from ocr.protocol import (
    MEBIBYTE,
    DecodeLimits,
    Embedded,
    Job,
    Page,
    Refusal,
    Straight,
    TextSource,
    crop_path,
    decoder_death,
    embedded_path,
    page_path,
    part_path,
    straight_path,
    wall_timeout,
)
from ocr.scratch import scratch_directory

MEDIA_TYPES = frozenset({"application/pdf", "image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff"})
GRACE = 5.0
"""Seconds that the child may take, beyond the limit that it watches itself, to say so."""
EMBEDDED_FILE = 12 * MEBIBYTE
"""What the file with a page's embedded text measures at most, with as many characters and blocks as that may have."""
CROPPED = 48 * MEBIBYTE
"""What the files of all parts that are cropped of a page measure at most."""


class PageDecoder:
    """The pages of one document, each drawn when it is asked for.

        async with PageDecoder(data, "application/pdf", pages="1-3,7") as decoder:
            async for page in decoder:      # or: page = await decoder.page(7)
                ...
                page.path.unlink()

    `numbers` are the pages asked for (all, where `pages` is None), ascending; `page_count` is how many the document
    has. With `text` other than ``ocr`` the pages of a PDF come with the text that they carry; with `straight` pages
    that are to be read come with their lines straight.

    Entering raises a `DocumentError` for a document that cannot be opened, `page` for a page that cannot be
    drawn. Pages that were asked for lie in a temporary directory until they are unlinked or the block is
    left; leaving it, in whatever way, ends the child and removes the directory.
    """

    page_count: int
    numbers: tuple[int, ...]

    def __init__(
        self,
        data: bytes,
        media_type: str,
        limits: DecodeLimits | None = None,
        *,
        pages: str | None = None,
        text: TextSource = "auto",
        straight: bool = False,
    ) -> None:
        if media_type not in MEDIA_TYPES:
            known = ", ".join(sorted(MEDIA_TYPES))
            raise UnsupportedDocument(f"{media_type} is not read; send one of {known}.", media_type=media_type)
        try:
            parse(pages or "1")
        except ValueError as error:
            raise NoSuchPage(str(error)) from None
        self._data = data
        self._media_type = media_type
        self._limits = limits or DecodeLimits()
        self._pages = pages or None
        self._text = text
        self._straight = straight
        self._turn = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._child: Child

    async def __aenter__(self) -> Self:
        try:
            self._directory = self._stack.enter_context(scratch_directory())
            (self._directory / "document").write_bytes(self._data)
            root = str(Path(ocr.__file__).parents[1])
            where = (str(self._directory), "document", self._media_type)
            job = Job(*where, os.getpid(), self._limits, self._pages, self._text, self._straight)
            command = python_arguments("-m", "ocr.decoder_child", job.to_json())
            running = child(command, str(self._directory), talk=True, PYTHONPATH=root)
            self._child = await self._stack.enter_async_context(running)
            self.page_count = (await self._answer(None))["pages"]
            self.numbers = self._chosen()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def page(self, number: int) -> Page:
        """Draw page `number` (from 1). Calls may overlap: they are served one after another.

        After a page that is refused the next may be asked for; after a timeout, a crash or a cancellation
        the decoder is of no more use.
        """
        # The paths are ours: a decoder that a document has taken over must not choose what is read next.
        path = page_path(self._directory, number)
        async with self._turn:
            answer = await self._ask({"page": number}, number)
            carried = answer.pop("embedded", False)
            embedded = await asyncio.to_thread(read_embedded, embedded_path(path)) if carried else None
            turned = answer.pop("straight", None)
            return Page(path=path, embedded=embedded, straight=turned and straight(path, *turned), **answer)

    async def crop(self, number: int, boxes: Sequence[Box]) -> list[bytes | None]:
        """Cut parts, as PNG files, out of a page that has been drawn and whose file still lies there.

        What of a box lies outside of the page is left out; a part has at least one pixel, and at most `CROP_SIDE` on
        its longer side. None stands for a part that is one too many: they may take as much as the page, be `CROPS`, and
        have `CROPPED_PIXELS`. Raises as `page`.
        """
        if not boxes:
            return []
        path = page_path(self._directory, number)
        if not path.exists():
            raise FileNotFoundError(f"Page {number} has not been drawn, or is gone.")
        async with self._turn:
            await self._ask({"crop": number, "boxes": [list(box) for box in boxes]}, number)
            parts = [crop_path(path, index) for index in range(1, len(boxes) + 1)]
            return await asyncio.to_thread(taken_parts, parts)

    async def __aiter__(self) -> AsyncIterator[Page]:
        for number in self.numbers:
            yield await self.page(number)

    def _chosen(self) -> tuple[int, ...]:
        try:
            return chosen(self._pages, self.page_count, self._limits.max_pages)
        except Refusal as refusal:
            raise document_error(refusal) from None

    async def _ask(self, request: dict[str, Any], page: int) -> dict[str, Any]:
        assert self._child.process.stdin is not None
        self._child.process.stdin.write(json.dumps(request).encode() + b"\n")
        return await self._answer(page)

    async def _answer(self, page: int | None) -> dict[str, Any]:
        assert self._child.process.stdout is not None
        try:
            async with asyncio.timeout(self._limits.wall_seconds + GRACE):
                line = await self._child.process.stdout.readline()
                if not line.endswith(b"\n"):
                    raise await self._death()
                answer: dict[str, Any] = json.loads(line)
        except TimeoutError:
            raise document_error(wall_timeout(page, self._limits)) from None
        except ValueError as error:
            message = f"The document's decoder gave no proper answer: {error}"
            raise DecoderCrashed(message, stderr=self._child.stderr) from None
        if "refusal" in answer:
            raise document_error(Refusal.from_json(answer["refusal"]))
        return answer

    async def _death(self) -> OcrError:
        status = await self._child.ended()
        said = self._child.stderr
        return document_error(decoder_death("decoder", status, said, self._limits.cpu_seconds))


def taken(path: Path, most: int) -> bytes:
    """The content of a plain file of at most `most` bytes that the child wrote; the file is removed."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            content = file.read(most + 1) if stat.S_ISREG(found.st_mode) else b""
    except OSError as error:
        raise DecoderCrashed(f"The document's decoder left no proper file: {error}") from None
    if not content or len(content) > most:
        raise DecoderCrashed(f"The document's decoder left no proper file {path.name}.")
    path.unlink()
    return content


def taken_parts(paths: Sequence[Path]) -> list[bytes | None]:
    """What the files hold, None for one that is not there."""
    parts: list[bytes | None] = []
    left = CROPPED
    for path in paths:
        part = taken(path, left) if os.path.lexists(path) else None
        left -= len(part or b"")
        parts.append(part)
    return parts


def straight(page: Path, angle: float, reduction: int) -> Straight:
    path = straight_path(page) if angle else page
    return Straight(path, part_path(page) if reduction > 1 else path, angle, reduction)


def read_embedded(path: Path) -> Embedded:
    try:
        return Embedded.from_json(json.loads(taken(path, EMBEDDED_FILE)))
    except (ValueError, KeyError, TypeError) as error:
        raise DecoderCrashed(f"The document's decoder gave no proper text: {error}") from None

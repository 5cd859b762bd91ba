"""The whole path: document bytes → pages → recogniser → text."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeAlias

from config.errors import JSON
from ocr.decoder import PageDecoder
from ocr.protocol import DecodeLimits, Page
from ocr.tesseract import Tesseract


@dataclass(frozen=True)
class ReadOptions:
    """How a document is read. `languages` are Tesseract names; None goes by each page's script."""

    languages: tuple[str, ...] | None = None
    page_timeout: float = 300.0
    """Wall-clock seconds that the recogniser may take for one page."""
    side_by_side: int = 2
    """Pages of one document that are recognised at once; two more at most lie on the disk."""
    limits: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(frozen=True)
class PageResult:
    """The text of page `number` (from 1), read at `width` by `height` pixels; the rest as `PageText`."""

    number: int
    text: str
    width: int
    height: int
    rotation: int
    languages: tuple[str, ...]
    confidence: float | None

    def to_json(self) -> dict[str, JSON]:
        return {**vars(self), "languages": list(self.languages)}


@dataclass(frozen=True)
class Document:
    """A document's text; `text` joins its pages, in order, by an empty line (blank pages leave no trace)."""

    pages: tuple[PageResult, ...]
    engine: str
    media_type: str

    @property
    def text(self) -> str:
        return "\n\n".join(page.text for page in self.pages if page.text)

    def to_json(self) -> dict[str, JSON]:
        """``{"text", "pages": [{"number", "text", "width", "height", "rotation", "languages", "confidence"}],
        "engine", "media_type"}``"""
        pages = [page.to_json() for page in self.pages]
        return {"text": self.text, "pages": pages, "engine": self.engine, "media_type": self.media_type}


OnPage: TypeAlias = Callable[[int, int, PageResult | None], Awaitable[None]]
"""Called with (pages done, pages in all, the page just done): at first with 0 and None, then as each page is
done, which need not be in order. Calls do not overlap. What it raises ends the reading."""


async def read_document(
    data: bytes,
    media_type: str,
    options: ReadOptions | None = None,
    on_page: OnPage | None = None,
    slots: asyncio.Semaphore | None = None,
) -> Document:
    """Read a document of the given media type (`ocr.decoder.MEDIA_TYPES`); the type is not guessed.

    `slots` bounds the recognisers that run at once, over all documents of this process. Raises an `OcrError`;
    its `permanent` tells whether another attempt is in vain. Cancelled, it leaves no process and no file.
    """
    options = options or ReadOptions()
    recogniser = await Tesseract.find(options.languages, options.page_timeout)
    readers = options.side_by_side
    try:
        async with PageDecoder(data, media_type, options.limits) as decoder, asyncio.TaskGroup() as group:
            reading = _Reading(decoder, recogniser, slots or nullcontext(), on_page)
            await reading.tell(None)
            group.create_task(reading.draw_pages(readers))
            for _ in range(readers):
                group.create_task(reading.read_pages())
    except BaseExceptionGroup as failures:
        # Of pages that fail together one error is reported, as if they had been read one by one.
        raise failures.exceptions[0] from None
    return Document(reading.in_order(), recogniser.name, media_type)


class _Reading:
    """One document on its way: pages are drawn one ahead, recognised side by side, and kept by number."""

    def __init__(
        self,
        decoder: PageDecoder,
        recogniser: Tesseract,
        slots: AbstractAsyncContextManager[None],
        on_page: OnPage | None,
    ) -> None:
        self._decoder = decoder
        self._recogniser = recogniser
        self._slots = slots
        self._on_page = on_page
        self._drawn: asyncio.Queue[Page | None] = asyncio.Queue(maxsize=1)
        self._done: dict[int, PageResult] = {}
        self._telling = asyncio.Lock()

    async def draw_pages(self, readers: int) -> None:
        async for page in self._decoder:
            await self._drawn.put(page)
        for _ in range(readers):
            await self._drawn.put(None)

    async def read_pages(self) -> None:
        while page := await self._drawn.get():
            async with self._slots:
                read = await self._recogniser.recognise(page)
            page.path.unlink()
            result = PageResult(
                page.number,
                read.text,
                page.width,
                page.height,
                read.rotation,
                read.languages,
                read.confidence,
            )
            await self.tell(result)

    async def tell(self, result: PageResult | None) -> None:
        """Keep a page's result and report it, one report at a time."""
        async with self._telling:
            if result is not None:
                self._done[result.number] = result
            if self._on_page is not None:
                await self._on_page(len(self._done), self._decoder.page_count, result)

    def in_order(self) -> tuple[PageResult, ...]:
        return tuple(self._done[number] for number in range(1, self._decoder.page_count + 1))

"""The whole path of a document: bytes → pages → recogniser → one record for each page, as it is done."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Literal, TypeAlias, TypeVar

from ocr.decoder import PageDecoder
from ocr.errors import (
    DecoderCrashed,
    DecodeTimeout,
    DocumentError,
    DocumentTooLarge,
    OcrError,
    RecogniserCrashed,
    RecogniserError,
    RecogniserTimeout,
)
from ocr.page import FIGURE, PageRecord, PageStatus, Reading, Source, figure_name, image_name, pdf_name
from ocr.protocol import DecodeLimits, Embedded, Page
from ocr.recogniser import Recogniser
from ocr.turns import PageTurns

T = TypeVar("T")

# A page that was begun so often without an end is begun after all others, and alone: it may be what ends workers.
SUSPECT = 2
# Processor seconds for a page once a page of the same document has used up a decoder: whole documents of such pages
# would keep a worker busy for hours.
SECOND_CHANCE = 3.0
_DEATHS = (DecodeTimeout, DecoderCrashed, DocumentTooLarge)


@dataclass(frozen=True)
class ReadOptions:
    """How a document is read."""

    pages: str | None = None
    """The pages that are wanted, like ``1-3,7``; None: all."""
    text: Literal["auto", "ocr", "embedded"] = "auto"
    """Whether the text that a PDF carries is used: where it is sound, never, always."""
    page_timeout: float = 300.0
    """Wall-clock seconds for one try of one page, from the moment at which it is its turn."""
    page_retries: int = 3
    """Further tries of a page that could not be read."""
    keep_blank: bool = False
    """Whether the recogniser is given blank pages too, as it is where it makes a PDF of what it is given."""
    limits: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(frozen=True)
class Opened:
    """The document is one that can be read; `numbers` are the pages that are wanted, ascending."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class PageBegun:
    number: int


@dataclass(frozen=True)
class PageEnded:
    """`files` by the names that `ocr.page` gives them."""

    record: PageRecord
    files: Mapping[str, bytes] = field(repr=False)


Event: TypeAlias = Opened | PageBegun | PageEnded


def in_turn(numbers: Sequence[int], starts: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """The pages in the order in which they are read: first those that may be read side by side, then those that were
    begun too often, each of which is read alone."""
    suspects = [number for number in numbers if starts.get(number, 0) >= SUSPECT]
    alone = sorted(suspects, key=lambda number: starts[number])
    return [number for number in numbers if number not in suspects], alone


async def read_document(
    data: bytes,
    media_type: str,
    recogniser: Recogniser,
    turns: PageTurns,
    options: ReadOptions | None = None,
    *,
    ended: frozenset[int] = frozenset(),
    starts: Mapping[int, int] | None = None,
    paused: Callable[[], bool] = lambda: False,
) -> AsyncGenerator[Event, None]:
    """Read a document of the given media type (`ocr.decoder.MEDIA_TYPES`); the type is not guessed.

    Pages that have `ended` before are not read again; `starts` says how often each other one was begun before. Once
    `paused` is true no page is begun any more, and the events end when those that were have ended. Pages end in any
    order. Raises `OcrError` where the whole document cannot be read, its `permanent` tells whether another attempt is
    in vain, and what the recogniser raises that is not. Closed, it leaves no process and no file.
    """
    reading = _Reading(data, media_type, recogniser, turns, options or ReadOptions(), paused)
    async with reading.stack:
        await reading.open()
        yield Opened(reading.numbers)
        left = [number for number in reading.numbers if number not in ended]
        together, alone = in_turn(left, starts or {})
        for numbers, side_by_side in ((together, turns.places), *(([number], 1) for number in alone)):
            async with aclosing(reading.read(numbers, side_by_side)) as events:
                async for event in events:
                    yield event


_Events: TypeAlias = asyncio.Queue[Event | None]
_Drawn: TypeAlias = asyncio.Queue[tuple[PageDecoder, Page] | None]


class _Reading:
    """One document on its way: pages are drawn one ahead and recognised side by side."""

    def __init__(
        self,
        data: bytes,
        media_type: str,
        recogniser: Recogniser,
        turns: PageTurns,
        options: ReadOptions,
        paused: Callable[[], bool],
    ) -> None:
        self.stack = AsyncExitStack()
        self.numbers: tuple[int, ...] = ()
        self._document = data, media_type
        self._limits = options.limits
        self._recogniser = recogniser
        self._turns = turns
        self._options = options
        self._paused = paused
        self._decoder: PageDecoder
        self._deaths = 0

    async def open(self) -> None:
        options = self._options
        decoder = PageDecoder(
            *self._document,
            self._limits,
            pages=options.pages,
            text=options.text,
            straight=self._recogniser.wants_straight and options.text != "embedded",
        )
        self._decoder = await self.stack.enter_async_context(decoder)
        self.numbers = decoder.numbers

    async def read(self, numbers: Sequence[int], side_by_side: int) -> AsyncGenerator[Event, None]:
        """The events of those pages, at most `side_by_side` of which are recognised at once."""
        events: _Events = asyncio.Queue(maxsize=1)
        drawn: _Drawn = asyncio.Queue(maxsize=1)
        readers = max(1, min(side_by_side, len(numbers)))
        work = asyncio.create_task(self._work(numbers, readers, drawn, events))
        try:
            while (event := await events.get()) is not None:
                yield event
            await work
        finally:
            work.cancel()
            await asyncio.wait({work})

    async def _work(
        self,
        numbers: Sequence[int],
        readers: int,
        drawn: _Drawn,
        events: _Events,
    ) -> None:
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._draw(numbers, readers, drawn, events))
                for _ in range(readers):
                    group.create_task(self._recognise(drawn, events))
        except BaseExceptionGroup as failures:
            # Of pages that fail together one error is reported, as if they had been read one by one.
            failure = failures.exceptions[0]
        await events.put(None)
        if failure is not None:
            raise failure

    async def _draw(
        self,
        numbers: Sequence[int],
        readers: int,
        drawn: _Drawn,
        events: _Events,
    ) -> None:
        for number in numbers:
            if self._paused():
                break
            began = monotonic()
            try:
                page = await self._decoder.page(number)
            except OcrError as error:
                if not error.permanent:
                    raise
                await events.put(PageBegun(number))
                await events.put(PageEnded(_not_drawn(number, error, monotonic() - began), {}))
                await self._open_anew(error)
            else:
                await drawn.put((self._decoder, page))
        for _ in range(readers):
            await drawn.put(None)

    async def _open_anew(self, error: OcrError) -> None:
        """A decoder that has died is of no more use. Raises `error` where it was not the first."""
        if not isinstance(error, _DEATHS):
            return
        self._deaths += 1
        if self._deaths > 1:
            raise error
        self._limits = replace(self._limits, cpu_seconds=min(SECOND_CHANCE, self._limits.cpu_seconds))
        await self.open()

    async def _recognise(self, drawn: _Drawn, events: _Events) -> None:
        while item := await drawn.get():
            decoder, page = item
            async with self._turns.take(self):
                if self._paused():
                    continue
                await events.put(PageBegun(page.number))
                ended = await self._ended(decoder, page)
            page.remove()
            await events.put(ended)

    async def _ended(self, decoder: PageDecoder, page: Page) -> PageEnded:
        began = monotonic()
        record = PageRecord(page.number, PageStatus.COMPLETED, page.width, page.height)
        files = {image_name(page.number): page.preview.read_bytes()}
        if page.blank and not self._options.keep_blank:
            return PageEnded(replace(record, status=PageStatus.BLANK), files)
        if (embedded := self._embedded(page)) is not None:
            return PageEnded(_from_embedded(record, embedded), files)
        record, reading = await self._try(page, record)
        if reading is not None:
            record, figures = await _with_figures(record.with_reading(reading), decoder, page)
            files |= figures
            if reading.pdf is not None:
                files[pdf_name(page.number)] = reading.pdf
        return PageEnded(replace(record, duration=round(monotonic() - began, 3)), files)

    def _embedded(self, page: Page) -> Embedded | None:
        """The text that the page carries, where it is to be used."""
        if self._options.text == "embedded":
            return page.embedded or Embedded("", "", (), False, ("The page carries no text.",))
        return page.embedded if page.embedded is not None and page.embedded.sound else None

    async def _try(self, page: Page, record: PageRecord) -> tuple[PageRecord, Reading | None]:
        """The page by the first try that succeeds; else its best partial reading."""
        record = replace(record, engine=self._recogniser.name)
        best: Reading | None = None
        attempt, interruptions = 1, 0
        while attempt <= self._options.page_retries + 1:
            record = replace(record, tries=attempt)
            try:
                reading = await _limited(self._recogniser.recognise(page, attempt), page, self._options)
                return replace(record, error=None), reading
            except RecogniserError as error:
                best = max(best, error.partial, key=_worth)
                record = replace(record, error={"code": error.code, "message": error.message})
                if error.permanent:
                    break
                if _killed(error) and interruptions < self._options.page_retries:
                    interruptions += 1  # the page is not to blame, and is read again in the same way
                else:
                    attempt += 1
        return replace(record, status=PageStatus.FAILED), best


async def _with_figures(record: PageRecord, decoder: PageDecoder, page: Page) -> tuple[PageRecord, dict[str, bytes]]:
    """The record with the names of its figures, and their files."""
    figures = enumerate((block.bbox for block in record.blocks if block.type == FIGURE), start=1)
    boxes = {figure_name(page.number, index): box for index, box in figures if box is not None}
    if not boxes:
        return record, {}
    try:
        pictures = await decoder.crop(page.number, list(boxes.values()))
    except DocumentError as error:
        warning = f"The figures could not be cut out: {error.message}"
        return replace(record, warnings=(*record.warnings, warning)), {}
    return replace(record, figures=tuple(boxes)), dict(zip(boxes, pictures, strict=True))


async def _limited(work: Awaitable[T], page: Page, options: ReadOptions) -> T:
    limit = options.page_timeout
    try:
        async with asyncio.timeout(limit):
            return await work
    except TimeoutError:
        message = f"Page {page.number} was not read within {limit:g} s."
        raise RecogniserTimeout(message, page=page.number, limit=limit) from None


def _killed(error: RecogniserError) -> bool:
    """Whether somebody else ended the recogniser: the kernel, short of memory, or an operator."""
    return isinstance(error, RecogniserCrashed) and error.details.get("signal") in ("SIGKILL", "SIGTERM")


def _worth(reading: Reading | None) -> int:
    return -1 if reading is None else len(reading.text)


def _not_drawn(number: int, error: OcrError, duration: float) -> PageRecord:
    said = {"code": error.code, "message": error.message}
    return PageRecord(number, PageStatus.FAILED, error=said, duration=round(duration, 3))


def _from_embedded(record: PageRecord, embedded: Embedded) -> PageRecord:
    """Its text as it is, with what is to be doubted about it."""
    reading = Reading(embedded.text, embedded.markdown, embedded.blocks, warnings=embedded.doubts)
    return replace(record, source=Source.EMBEDDED).with_reading(reading)

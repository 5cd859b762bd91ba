"""The whole path of a document: bytes → pages → recogniser → one record for each page, as it is done."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Literal, TypeAlias, TypeVar

from ocr.decoder import PageDecoder, taken
from ocr.errors import (
    DecoderCrashed,
    DecodeTimeout,
    DocumentError,
    DocumentTooLarge,
    OcrError,
)
from ocr.page import FIGURE, PageRecord, PageStatus, Reading, Source, figure_name, image_name, pdf_name
from ocr.protocol import MEBIBYTE, DecodeLimits, Embedded, Page
from ocr.recogniser import Recogniser
from ocr.tries import TryOptions, try_page
from ocr.turns import PageTurns

T = TypeVar("T")

# A page that was begun so often without an end is begun after all others, and alone: it may be what ends workers.
SUSPECT = 2
# Processor seconds for a page once a page of the same document has used up a decoder: whole documents of such pages
# would keep a worker busy for hours.
SECOND_CHANCE = 3.0
# Bytes.
MOST_OF_A_PREVIEW = 16 * MEBIBYTE
_DEATHS = (DecodeTimeout, DecoderCrashed, DocumentTooLarge)


@dataclass(frozen=True)
class ReadOptions:
    """How a document is read."""

    pages: str | None = None
    """The pages that are wanted, like ``1-3,7``; None: all."""
    text: Literal["auto", "ocr", "embedded"] = "auto"
    """Whether the text that a PDF carries is used: where it is sound, never, always."""
    tries: TryOptions = field(default_factory=TryOptions)
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
        self._broken = False

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
        events: _Events = asyncio.Queue()
        drawn: _Drawn = asyncio.Queue(maxsize=1)
        readers = max(1, min(side_by_side, len(numbers)))
        work = asyncio.create_task(self._work(numbers, readers, drawn, events))
        try:
            while (event := await events.get()) is not None:
                yield event
                events.task_done()
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
        # Behind the pages that have been read meanwhile, which count.
        events.put_nowait(None)
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
            if self._broken:
                await self._open_anew()
            began = monotonic()
            try:
                page = await self._decoder.page(number)
            except OcrError as error:
                events.put_nowait(PageBegun(number))
                if not error.permanent:
                    raise
                events.put_nowait(PageEnded(_not_drawn(number, error, monotonic() - began), {}))
                await self._count_death(error)
            else:
                await drawn.put((self._decoder, page))
        for _ in range(readers):
            await drawn.put(None)

    async def _count_death(self, error: OcrError) -> None:
        """Raises `error` where it was not the first that a page of the document has caused."""
        if isinstance(error, _DEATHS):
            self._deaths += 1
            if self._deaths > 1:
                raise error
            self._limits = replace(self._limits, cpu_seconds=min(SECOND_CHANCE, self._limits.cpu_seconds))
            await self._open_anew()

    async def _open_anew(self) -> None:
        """A decoder that has died is of no more use."""
        await self.open()
        self._broken = False

    async def _recognise(self, drawn: _Drawn, events: _Events) -> None:
        while item := await drawn.get():
            decoder, page = item
            async with self._turns.take(self):
                if self._paused():
                    continue
                events.put_nowait(PageBegun(page.number))
                ended = await self._ended(decoder, page)
            page.remove()
            events.put_nowait(ended)
            # No further page before what has been read is kept: a database that is away does not fill the memory.
            await events.join()

    async def _ended(self, decoder: PageDecoder, page: Page) -> PageEnded:
        began = monotonic()
        record = PageRecord(page.number, PageStatus.COMPLETED, page.width, page.height)
        files = {image_name(page.number): taken(page.preview, MOST_OF_A_PREVIEW)}
        if page.blank:
            return PageEnded(replace(record, status=PageStatus.BLANK), files)
        if (embedded := self._embedded(page)) is not None:
            return PageEnded(_from_embedded(record, embedded), files)
        record, reading = await try_page(self._recogniser, page, record, self._options.tries)
        if reading is not None:
            record, figures = await self._with_figures(record.with_reading(reading), decoder, page)
            files |= figures
            if reading.pdf is not None:
                files[pdf_name(page.number)] = reading.pdf
        return PageEnded(replace(record, duration=round(monotonic() - began, 3)), files)

    def _embedded(self, page: Page) -> Embedded | None:
        """The text that the page carries, where it is to be used."""
        if self._options.text == "embedded":
            return page.embedded or Embedded("", "", (), False, ("The page carries no text.",))
        return page.embedded if page.embedded is not None and page.embedded.sound else None

    async def _with_figures(
        self, record: PageRecord, decoder: PageDecoder, page: Page
    ) -> tuple[PageRecord, dict[str, bytes]]:
        """The record with the names of its figures, and their files."""
        figures = enumerate((block.bbox for block in record.blocks if block.type == FIGURE), start=1)
        boxes = {figure_name(page.number, index): box for index, box in figures if box is not None}
        if not boxes:
            return record, {}
        try:
            cut = dict(zip(boxes, await decoder.crop(page.number, list(boxes.values())), strict=True))
        except DocumentError as error:
            self._broken |= decoder is self._decoder and isinstance(error, _DEATHS)
            return without_figures(record, list(boxes), f"The figures could not be cut out: {error.message}"), {}
        files = {name: picture for name, picture in cut.items() if picture is not None}
        record = replace(record, figures=tuple(files))
        if left_out := [name for name in cut if name not in files]:
            record = without_figures(record, left_out, f"{len(left_out)} figures are too many or too large to be kept.")
        return record, files


def without_figures(record: PageRecord, names: Sequence[str], why: str) -> PageRecord:
    """The record with no reference to figures of those names, and a warning."""
    references = "|".join(re.escape(name) for name in names)
    markdown = re.sub(rf"!\[[^\]\n]*\]\(({references})\)", "", record.markdown)
    return replace(record, markdown=markdown, warnings=(*record.warnings, why))


def _not_drawn(number: int, error: OcrError, duration: float) -> PageRecord:
    said = {"code": error.code, "message": error.message}
    return PageRecord(number, PageStatus.FAILED, error=said, duration=round(duration, 3))


def _from_embedded(record: PageRecord, embedded: Embedded) -> PageRecord:
    """Its text as it is, with what is to be doubted about it."""
    reading = Reading(embedded.text, embedded.markdown, embedded.blocks, warnings=embedded.doubts)
    return replace(record, source=Source.EMBEDDED).with_reading(reading)

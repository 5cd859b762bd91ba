"""One attempt at a document: goes on where the last one stopped, and keeps each page that comes to its end."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import bson
from pymongo.errors import PyMongoError

from broker.broker import Broker
from broker.errors import AttemptTimeout, EngineDied, EngineError, EngineInputError, EngineNotRunning
from broker.job import Job
from broker.pages import SEARCHABLE_PDF, StoredPage
from config import ReaderSettings
from ocr.document import Event, Opened, PageBegun, PageEnded, ReadOptions, read_document
from ocr.errors import OcrError, RecogniserTimeout
from ocr.page import PageRecord, PageStatus, image_name, pdf_name
from ocr.protocol import DecodeLimits
from ocr.recogniser import Recogniser
from ocr.searchable import Picture, TextLayer, empty_page, joined
from ocr.tries import TryOptions
from worker.engines.base import Engine, Reader, Request, Result
from worker.persist import persist

T = TypeVar("T")

log = logging.getLogger(__name__)

# So many pages of a document are read before it makes room for others that wait, or twice what is read at once.
SLICE = 8
# Bytes of a page's record; MongoDB takes 16 MiB.
MOST_OF_A_PAGE = 12 * 2**20
# Characters of a page, and of the text of a job's result: beyond it, it is found page by page.
MOST_TEXT = 1_000_000
MOST_IN_RESULT = 10_000_000
# What of a page's record the result of the job has. The rest, which may be large, is looked up page by page.
_IN_RESULT = (
    "number", "status", "text", "width", "height", "rotation", "languages", "confidence", "engine", "mode", "source",
    "duration", "tokens", "tries", "warnings", "error",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Paused:
    """The document is not read to its end; what is left is another attempt's. ``for_others``: they go first."""

    for_others: bool


class DocumentAttempt:
    """``halted`` is true from when on no page is to be begun any more: the worker or its engine drains.

    ``others`` tells whether jobs wait that this worker could run in its place.
    """

    def __init__(
        self,
        broker: Broker,
        job: Job,
        engine: Engine,
        halted: Callable[[], bool],
        others: Callable[[], Awaitable[bool]],
    ) -> None:
        settings = broker.models[job.model]
        if not isinstance(engine, Reader) or not isinstance(settings, ReaderSettings):
            raise EngineInputError(f"The engine of {job.model} reads no documents.", code="task_unsupported")
        self._broker = broker
        self._job = job
        self._engine: Reader = engine
        self._settings = settings
        self._asked: Mapping[str, Any] = job.payload.get("options", {})
        self._halted = halted
        self._others = others
        self._others_wait = False
        self._numbers: tuple[int, ...] = ()
        self._begun: set[int] = set()
        self._ended: dict[int, str] = {}
        self._read = 0

    @property
    def gained(self) -> bool:
        """Whether it has brought a page to its end."""
        return self._read > 0

    async def run(self) -> Result | Paused:
        """Raises EngineError and its kind, OcrError, FileMissing."""
        job = self._job
        assert job.file is not None
        stored = job.file
        document = await persist(lambda: self._broker.files.get(stored.id))
        starts = await self._look_back()
        recogniser = await self._engine.recogniser(Request(str(job.id), job.attempts, job.payload))
        reading = read_document(
            document,
            stored.media_type,
            recogniser,
            self._engine.turns,
            self._options(recogniser),
            ended=frozenset(self._ended),
            starts=starts,
            paused=self._paused,
        )
        await self._follow(reading)
        if not self._ended.keys() >= set(self._numbers):
            return Paused(for_others=not self._halted())
        return await self._result(stored.media_type, recogniser.name)

    async def _follow(self, reading: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(reading) as events:
                async for event in events:
                    await self._see(event)
        except BaseException as error:
            if not isinstance(error, (EngineDied, OcrError)):
                # Somebody has stopped it, or the engine is away: the pages under way have nothing to do with it.
                begun = self._begun - self._ended.keys()
                await self._best_effort(self._broker.pages.take_back(self._job.id, begun))
            raise

    async def _see(self, event: Event) -> None:
        match event:
            case Opened(numbers):
                self._numbers = numbers
                await self._tell()
            case PageBegun(number):
                self._begun.add(number)
                await self._best_effort(self._broker.pages.begin(self._job.id, number, self._job.worker or ""))
                return
            case PageEnded(record, files):
                await self._keep(record, files)
        await self._check_failures()

    def _paused(self) -> bool:
        return self._others_wait or self._halted()

    def _options(self, recogniser: Recogniser) -> ReadOptions:
        limits = DecodeLimits(dpi=self._settings.dpi, max_pages=self._settings.max_pages)
        if recogniser.page_side is not None:
            limits = replace(limits, page_side=recogniser.page_side)
        return ReadOptions(
            pages=self._asked.get("pages"),
            text="ocr" if self._asked.get("searchable_pdf") else self._asked.get("text", "auto"),
            tries=TryOptions(self._job.timeout, self._settings.page_retries, passes),
            limits=limits,
        )

    async def _look_back(self) -> Mapping[int, int]:
        """What earlier attempts have ended; returns how often each other page was begun.

        Whoever began a page and was never heard of again may have died of it: so often, and no oftener.
        """
        states = await persist(lambda: self._broker.pages.states(self._job.id))
        self._ended = {page.number: page.state for page in states if page.ended}
        starts = {page.number: page.starts for page in states if not page.ended}
        for number in [number for number, begun in starts.items() if begun > self._settings.page_retries]:
            await self._keep(_never_ended(number, starts.pop(number)), {})
        return starts

    async def _keep(self, record: PageRecord, files: Mapping[str, bytes]) -> None:
        """Stores a page's end for good, and tells of it."""
        job, pages = self._job, self._broker.pages
        puts = (persist(partial(self._broker.files.put, job.id, data, _media_type(n), n)) for n, data in files.items())
        stored = {name: file.id for name, file in zip(files, await asyncio.gather(*puts), strict=True)}
        fitting = fitted(record.to_json())
        await persist(lambda: pages.end(job.id, record.number, fitting, stored))
        self._ended[record.number] = record.status.value
        self._read += 1
        await self._tell()
        if self._read >= max(SLICE, 2 * self._engine.turns.places):
            self._others_wait = await self._best_effort(self._others()) or False

    async def _tell(self) -> None:
        if self._numbers:
            done, total = len(self._ended.keys() & set(self._numbers)), len(self._numbers)
            write = self._broker.queue.progress(self._job, done, total, "pages", gained=self.gained)
            await self._best_effort(write)

    async def _best_effort(self, call: Awaitable[T]) -> T | None:
        """What may be lost: nothing depends on it but what clients see meanwhile, or whose turn it is."""
        try:
            return await call
        except PyMongoError as error:
            log.warning("job %s: the database does not answer: %s", self._job.id, error)
            return None

    async def _check_failures(self) -> None:
        """Raises EngineInputError, or AttemptTimeout, once too many pages have failed."""
        failed = [number for number, state in self._ended.items() if state == PageStatus.FAILED]
        if len(failed) > self._settings.max_page_error_rate * len(self._numbers):
            pages = await persist(lambda: self._broker.pages.summaries(self._job.id))
            raise too_many_failed([page.record for page in pages if page.state == PageStatus.FAILED], self._numbers)

    async def _result(self, media_type: str, engine: str) -> Result | Paused:
        pages = await persist(lambda: self._broker.pages.summaries(self._job.id))
        if [page.number for page in pages] != list(self._numbers):
            # A failover has taken back the end of a page that another attempt had only just written.
            return Paused(for_others=False)
        files = {}
        if self._asked.get("searchable_pdf"):
            whole = await joined(self._parts(pages))
            stored = await persist(
                lambda: self._broker.files.put(self._job.id, whole, "application/pdf", SEARCHABLE_PDF)
            )
            files[SEARCHABLE_PDF] = stored.id
        return Result(result_of([page.record for page in pages], media_type, engine), files)

    async def _parts(self, pages: Sequence[StoredPage]) -> AsyncGenerator[TextLayer | Picture, None]:
        """The pages of the searchable PDF, each in its place. Where nothing was read it is the picture alone, or a
        white page."""
        for page in pages:
            pdf, image = (page.files.get(name(page.number)) for name in (pdf_name, image_name))
            if pdf is not None:
                yield TextLayer(await persist(partial(self._broker.files.get, pdf)))
            elif image is not None:
                picture = await persist(partial(self._broker.files.get, image))
                yield Picture(picture, page.record["width"], page.record["height"])
            else:
                yield TextLayer(empty_page())


def passes(error: Exception) -> bool:
    """Whether an engine's error will pass by itself: it is overloaded, or has broken an answer off."""
    gone = isinstance(error, EngineNotRunning | EngineDied)
    return isinstance(error, EngineError) and not error.permanent and not gone


def fitted(record: dict[str, Any]) -> dict[str, Any]:
    """The record without what makes it too large for the database: first the words, then the blocks, then most text."""
    for lighter in (_without_words, _without_blocks, _cut_short):
        if len(bson.encode(record)) <= MOST_OF_A_PAGE:
            break
        record = lighter(record)
    return record


def _without_words(record: dict[str, Any]) -> dict[str, Any]:
    blocks = [{**block, "words": []} for block in record["blocks"]]
    return _warned({**record, "blocks": blocks}, "There are too many words to keep the place of each.")


def _without_blocks(record: dict[str, Any]) -> dict[str, Any]:
    return _warned({**record, "blocks": []}, "There are too many blocks to keep them.")


def _cut_short(record: dict[str, Any]) -> dict[str, Any]:
    short = {name: record[name][:MOST_TEXT] for name in ("text", "markdown")}
    return _warned({**record, **short}, f"The text is cut after {MOST_TEXT:,} characters.")


def _warned(record: dict[str, Any], warning: str) -> dict[str, Any]:
    return {**record, "warnings": [*record["warnings"], warning]}


def _never_ended(number: int, starts: int) -> PageRecord:
    message = f"Page {number} was begun {starts} times, and each time its worker or engine came to an end."
    return PageRecord(number, PageStatus.FAILED, error={"code": "page_never_ended", "message": message}, tries=starts)


def _media_type(name: str) -> str:
    return {"jpg": "image/jpeg", "png": "image/png", "pdf": "application/pdf"}[name.rpartition(".")[2]]


def failures(pages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``[{"number", "code", "message"}]`` of the pages that failed."""
    return [{"number": page["number"], **page["error"]} for page in pages if page["status"] == PageStatus.FAILED]


def too_many_failed(pages: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> EngineError:
    """The error of a document for those of its pages that failed. One code where they all say the same."""
    found = failures(pages)
    codes = {failure["code"] for failure in found}
    first = found[0]
    message = first["message"]
    if len(numbers) > 1:
        message = f"{len(found)} of {len(numbers)} pages cannot be read. {message}"
    code = first["code"] if len(codes) == 1 else "too_many_page_errors"
    kind = AttemptTimeout if codes == {RecogniserTimeout.code} else EngineInputError
    error = kind(message, code=code, pages=found[:20])
    # Each of them has been tried as often as it may be.
    error.permanent = True  # type: ignore[misc]
    return error


def result_of(pages: Sequence[Mapping[str, Any]], media_type: str, engine: str) -> dict[str, Any]:
    """The job's result, from the records of its pages, ascending."""
    failed = failures(pages)
    told, room = [], MOST_IN_RESULT
    for page in pages:
        room -= len(page["text"])
        entry = {name: page[name] for name in _IN_RESULT}
        told.append(entry if room >= 0 else _warned({**entry, "text": ""}, "Its text is with the page alone."))
    return {
        "text": "\n\n".join(page["text"] for page in told if page["text"]),
        "pages": told,
        "engine": engine,
        "media_type": media_type,
        "partial": bool(failed),
        "failed_pages": failed,
    }

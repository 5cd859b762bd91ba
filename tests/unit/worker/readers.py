"""An engine that reads documents as a test tells it to, and documents of pages that are quickly drawn."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from bson import ObjectId

from broker.broker import Broker
from broker.job import Job, NewJob
from broker.job_updates import new_document
from config import Settings
from ocr.page import Reading
from ocr.protocol import Page
from ocr.turns import PageTurns
from tests.conditions import eventually
from tests.documents import tiff
from tests.unit.worker.workers import working
from worker.engines.base import Chunk, Request
from worker.worker import Worker

MODEL = "tesseract"
WHITE, BARRED = b"\xff" * 512, (b"\xff" * 64 + b"\xff\0\0\0\0\0\0\xff" * 8) * 4
Script = Callable[[int, int], Awaitable[str]]
"""From a page's number and its try to its text."""


def pages(count: int, blank: int = 0) -> bytes:
    """A TIFF of that many pages, each quickly drawn; the first ``blank`` of them are white."""
    return tiff([(64, 64, WHITE if index < blank else BARRED) for index in range(count)])


async def as_numbered(number: int, attempt: int) -> str:
    return f"page {number}"


def held_at(page: int, gate: asyncio.Event) -> Script:
    """Reads each page as its number, but that one not before the gate is open."""

    async def held(number: int, attempt: int) -> str:
        if number == page:
            await gate.wait()
        return await as_numbered(number, attempt)

    return held


class Scripted:
    """Reads side by side up to ``places`` pages, as the script says. ``reads``: how often it began each page."""

    def __init__(self, script: Script = as_numbered, places: int = 2) -> None:
        self.turns = PageTurns(places)
        self.script = script
        self.reads: Counter[int] = Counter()
        self.order: list[int] = []
        self.most = 0
        self._now = 0

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to let go of."""

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise NotImplementedError

    async def begun(self, number: int) -> None:
        """Returns when that page has been begun."""

        async def is_begun() -> bool:
            return number in self.order

        await eventually(is_begun)

    async def recogniser(self, request: Request) -> "Scripted.Pages":
        return self.Pages(self)

    class Pages:
        name = "scripted"
        page_side = None
        wants_straight = False

        def __init__(self, engine: "Scripted") -> None:
            self._engine = engine

        async def recognise(self, page: Page, attempt: int) -> Reading:
            engine = self._engine
            engine.reads[page.number] += 1
            engine.order.append(page.number)
            engine._now += 1
            engine.most = max(engine.most, engine._now)
            try:
                text = await engine.script(page.number, attempt)
            finally:
                engine._now -= 1
            return Reading(text, f"# {text}")


def reading(
    settings: Settings, engine: Scripted, model: str = MODEL
) -> AbstractAsyncContextManager[tuple[Broker, Worker]]:
    return working(settings, engine, model, hurry=True)


async def sent(broker: Broker, document: bytes, *, model: str = MODEL, suspect: bool = False, **options: object) -> Job:
    """``suspect``: as if an engine had died while it and others ran."""
    job_id = ObjectId()
    file = await broker.files.put(job_id, document, "image/tiff")
    new = NewJob("ocr", model, "ann", {"prompt": None, "options": options}, file=file, id=job_id)
    if not suspect:
        return await broker.queue.submit(new)
    document_of_job = {**new_document(new, broker.models[model]), "place": 0, "suspect": True}
    await broker.database.jobs.insert_one(document_of_job)
    return Job.from_document(document_of_job)

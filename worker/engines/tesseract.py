"""OCR on the CPU by Tesseract: ``ocr`` does the work, in processes of its own."""

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator

from broker.errors import AttemptTimeout, EngineInputError, EngineUnavailable
from config import TesseractSettings
from ocr.document import PageResult, ReadOptions, read_document
from ocr.errors import OcrError, RecogniserTimeout
from ocr.protocol import DecodeLimits
from ocr.tesseract import Tesseract
from worker.engines.base import Chunk, Progress, Request, Result


class TesseractEngine:
    """However many documents run side by side, no more recognisers do than there are processors."""

    def __init__(self, settings: TesseractSettings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(os.cpu_count() or 1)

    async def start(self) -> None:
        if shutil.which("pdftoppm") is None:
            raise EngineUnavailable("poppler is not installed: install poppler-utils.", code="tool_missing")
        try:
            await Tesseract.find(self._settings.languages)
        except OcrError as error:
            raise EngineUnavailable(error.message, code=error.code) from error

    async def stop(self) -> None:
        """Nothing stays between two documents."""

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if request.document is None or request.media_type is None:
            raise EngineInputError("An OCR job needs a document.", code="no_document")
        news: asyncio.Queue[Progress | None] = asyncio.Queue()

        async def tell(done: int, total: int, _page: PageResult | None) -> None:
            news.put_nowait(Progress(done, total, "pages"))

        reading = asyncio.create_task(
            read_document(request.document, request.media_type, self._options(request), tell, self._slots)
        )
        reading.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while (progress := await news.get()) is not None:
                yield progress
            document = await reading
        except RecogniserTimeout as error:
            raise AttemptTimeout(error.message) from error
        finally:
            reading.cancel()
            await asyncio.wait({reading})
        yield Result(document.to_json())

    def _options(self, request: Request) -> ReadOptions:
        asked = request.payload.get("options", {}).get("languages") or self._settings.languages
        return ReadOptions(
            languages=None if asked is None else tuple(asked),
            page_timeout=self._settings.timeout,
            limits=DecodeLimits(dpi=self._settings.dpi, max_pages=self._settings.max_pages),
        )

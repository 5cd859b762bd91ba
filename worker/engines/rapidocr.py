"""OCR on the CPU by RapidOCR, which an extra installs: ``ocr`` does the work, in one process for all documents."""

from collections.abc import AsyncGenerator

from broker.errors import EngineUnavailable
from config import RapidocrSettings
from ocr.errors import OcrError
from ocr.rapid import RapidOcr
from ocr.recogniser import Recogniser
from ocr.turns import PageTurns
from worker.engines.base import Chunk, Request
from worker.engines.documents import no_document, refuse_searchable_pdf, require_poppler


class RapidocrEngine:
    """It reads one page at a time, on all processors."""

    def __init__(self, settings: RapidocrSettings) -> None:
        self.turns = PageTurns(1)
        self._settings = settings
        self._process = RapidOcr()

    async def start(self) -> None:
        require_poppler()
        try:
            await self._process.start()
        except OcrError as error:
            raise EngineUnavailable(error.message, code=error.code) from error

    async def stop(self) -> None:
        await self._process.stop()

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise no_document()

    async def recogniser(self, request: Request) -> Recogniser:
        refuse_searchable_pdf(request, "RapidOCR")
        return self._process

"""OCR on the CPU by Tesseract: ``ocr`` does the work, in processes of its own."""

import os
from collections.abc import AsyncGenerator

from broker.errors import EngineUnavailable
from config import TesseractSettings
from ocr.errors import OcrError
from ocr.recogniser import Recogniser
from ocr.tesseract import Tesseract
from ocr.turns import PageTurns
from worker.engines.base import Chunk, Request
from worker.engines.documents import no_document, require_poppler


class TesseractEngine:
    """However many documents run side by side, no more recognisers do than there are processors."""

    def __init__(self, settings: TesseractSettings) -> None:
        self.turns = PageTurns(os.cpu_count() or 1)
        self._settings = settings

    async def start(self) -> None:
        require_poppler()
        try:
            await Tesseract.find(self._settings.languages)
        except OcrError as error:
            raise EngineUnavailable(error.message, code=error.code) from error

    async def stop(self) -> None:
        """Nothing stays between two documents."""

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise no_document()

    async def recogniser(self, request: Request) -> Recogniser:
        options = request.payload.get("options", {})
        languages = options.get("languages") or self._settings.languages
        searchable = bool(options.get("searchable_pdf"))
        return await Tesseract.find(languages, self._settings.timeout, searchable=searchable)

"""OCR on the CPU by Tesseract: ``ocr`` does the work, in processes of its own."""

import os
import shutil
from collections.abc import AsyncGenerator

from broker.errors import EngineInputError, EngineUnavailable
from config import TesseractSettings
from ocr.errors import OcrError
from ocr.recogniser import Recogniser
from ocr.tesseract import Tesseract
from ocr.turns import PageTurns
from worker.engines.base import Chunk, Request


class TesseractEngine:
    """However many documents run side by side, no more recognisers do than there are processors."""

    def __init__(self, settings: TesseractSettings) -> None:
        self.turns = PageTurns(os.cpu_count() or 1)
        self._settings = settings

    async def start(self) -> None:
        if shutil.which("pdftoppm") is None:
            raise EngineUnavailable("poppler is not installed: install poppler-utils.", code="tool_missing")
        try:
            await Tesseract.find(self._settings.languages)
        except OcrError as error:
            raise EngineUnavailable(error.message, code=error.code) from error

    async def stop(self) -> None:
        """Nothing stays between two documents."""

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise EngineInputError("An OCR job needs a document.", code="no_document")

    async def recogniser(self, request: Request) -> Recogniser:
        options = request.payload.get("options", {})
        languages = options.get("languages") or self._settings.languages
        searchable = bool(options.get("searchable_pdf"))
        return await Tesseract.find(languages, self._settings.timeout, searchable=searchable)

"""What engines that read documents check, and say where something is missing."""

import shutil

from broker.errors import EngineInputError, EngineUnavailable
from worker.engines.base import Request


def require_poppler() -> None:
    """Raises EngineUnavailable where PDFs cannot be drawn."""
    if shutil.which("pdftoppm") is None:
        raise EngineUnavailable("poppler is not installed: install poppler-utils.", code="tool_missing")


def no_document() -> EngineInputError:
    """For a run of an engine that does nothing but read documents."""
    return EngineInputError("An OCR job needs a document.", code="no_document")


def refuse_searchable_pdf(request: Request, reader: str) -> None:
    """Raises EngineInputError where ``request`` asks for a searchable PDF: ``reader`` does not place each word."""
    if (request.payload.get("options") or {}).get("searchable_pdf"):
        message = f"{reader} makes no searchable PDFs; ask a Tesseract model."
        raise EngineInputError(message, code="task_unsupported")

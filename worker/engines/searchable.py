"""What engines say that read pages and cannot tell where on the page each word is."""

from broker.errors import EngineInputError
from worker.engines.base import Request


def refuse_searchable_pdf(request: Request, reader: str) -> None:
    """Raises EngineInputError where ``request`` asks ``reader`` for a searchable PDF."""
    if (request.payload.get("options") or {}).get("searchable_pdf"):
        message = f"{reader} makes no searchable PDFs; ask a Tesseract model."
        raise EngineInputError(message, code="task_unsupported")

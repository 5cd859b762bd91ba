"""The process that decodes one document: ``python -m ocr.decoder_child JOB`` (see `ocr.protocol`)."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ocr.limits import allow_cpu, die_with_parent, limit_process
from ocr.pdf import PdfDocument
from ocr.pictures import PictureDocument, clamped, prepare_pillow
from ocr.protocol import Job, Refusal, page_path


class PageSource(Protocol):
    pages: int

    def draw(self, number: int) -> tuple[Image.Image, int | None]: ...


def open_document(job: Job) -> PageSource:
    path = Path(job.directory, job.document)
    if job.media_type == "application/pdf":
        return PdfDocument(path, job.limits)
    return PictureDocument(path, job.media_type, job.limits)


def write_page(job: Job, source: PageSource, number: int) -> dict[str, Any]:
    """Draw one page into its file; answer with what a `Page` needs besides the path."""
    try:
        page, dpi = clamped(*source.draw(number), job.limits)
        resolution = {"dpi": (dpi, dpi)} if dpi else {}
        # Level 1: the file lives for seconds, and level 6 would take longer than drawing the page did.
        page.save(page_path(job.directory, number), "PNG", compress_level=1, **resolution)
    except MemoryError:
        message = f"Page {number} needs more memory than a decoder may use."
        raise Refusal("document_too_large", message, page=number) from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            message = f"Page {number} needs a file larger than a decoder may write."
            raise Refusal("document_too_large", message, page=number) from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"The disk of {job.directory} has no room for page {number}."
            raise Refusal("document_too_large", message, False, page=number) from None
        raise
    return {"number": number, "width": page.width, "height": page.height, "dpi": dpi}


def serve(job: Job, requests: Any, answers: Any) -> None:
    """Open the document, then draw each page that is asked for, until there are no more requests."""

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        source = open_document(job)
    except Refusal as refusal:
        answer(refusal.to_json())
        return
    answer({"pages": source.pages})
    for line in requests:
        number = json.loads(line)["page"]
        allow_cpu(job.limits.cpu_seconds)
        try:
            answer(write_page(job, source, number))
        except Refusal as refusal:
            answer(refusal.to_json())


def main() -> None:
    job = Job.from_json(sys.argv[1])
    die_with_parent(job.parent)
    # Libraries print to descriptor 1 what they have to say; answers go where only we write.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    limit_process(job.limits.memory, job.limits.file_size)
    allow_cpu(job.limits.cpu_seconds)
    prepare_pillow(job.limits)
    serve(job, sys.stdin, answers)


if __name__ == "__main__":
    main()

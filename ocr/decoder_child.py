"""The process that decodes one document: ``python -m ocr.decoder_child JOB`` (see `ocr.protocol`)."""

import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ocr.ink import without_ink
from ocr.limits import allow_cpu, die_with_parent, limit_process
from ocr.page import Box
from ocr.page_numbers import chosen
from ocr.pdf import PdfDocument
from ocr.pictures import PictureDocument, clamped, prepare_pillow, reduced_for_people
from ocr.png import write_png
from ocr.protocol import (
    CROP_SIDE,
    CROPPED_PIXELS,
    CROPS,
    Embedded,
    Job,
    Refusal,
    crop_path,
    embedded_path,
    page_path,
    preview_path,
)
from ocr.straight import write_straight

FRAMES = 10_000
"""A picture with more frames is refused even where only some are asked for: they are found one by one."""
PREVIEW_QUALITY = 70


class PageSource(Protocol):
    pages: int

    def draw(self, number: int) -> tuple[Image.Image, int | None]: ...

    def text(self, number: int, page: Image.Image, dpi: int | None) -> Embedded | None: ...


def open_document(job: Job) -> PageSource:
    path = Path(job.directory, job.document)
    if job.media_type == "application/pdf":
        return PdfDocument(path, job.limits, some=job.pages is not None)
    most = job.limits.max_pages if job.pages is None else FRAMES
    return PictureDocument(path, job.media_type, job.limits, most)


def write_page(job: Job, source: PageSource, number: int) -> dict[str, Any]:
    """Draw one page into its files; answer with what a `Page` needs besides the path."""
    path = page_path(job.directory, number)
    with room_for(job, number):
        page, dpi = clamped(*source.draw(number), job.limits)
        write_png(page, path, dpi)
        reduced_for_people(page).save(preview_path(path), "JPEG", quality=PREVIEW_QUALITY)
        embedded = None if job.text == "ocr" else source.text(number, page, dpi)
        if embedded is not None:
            embedded_path(path).write_text(json.dumps(asdict(embedded)), encoding="utf-8")
        # Text that somebody insists on may be there without ink.
        blank = without_ink(page) and not (job.text == "embedded" and embedded is not None and embedded.text)
        is_read = not blank and not (embedded is not None and embedded.sound)
        straight = write_straight(page, path) if job.straight and is_read else None
    answer = {"number": number, "width": page.width, "height": page.height, "dpi": dpi, "blank": blank}
    return {**answer, "embedded": embedded is not None, "straight": straight}


def write_crops(job: Job, number: int, boxes: Sequence[Box]) -> dict[str, Any]:
    """Write the parts of a page that was drawn before into files of their own, those that are not too many."""
    path = page_path(job.directory, number)
    with room_for(job, number), Image.open(path, formats=("PNG",)) as page:
        chosen_boxes = fitting(boxes, page.width, page.height)
        for index, box in chosen_boxes.items():
            part = clamped(page.crop(box), None, replace(job.limits, page_side=CROP_SIDE))[0]
            part.save(crop_path(path, index), "PNG")
    return {"crops": len(chosen_boxes)}


def fitting(boxes: Sequence[Box], width: int, height: int) -> dict[int, Box]:
    """The boxes by their numbers (from 1), cut at the page's edges: the first of them that together take no more than
    the page, nor more than `CROPPED_PIXELS` once they are reduced."""
    chosen_boxes: dict[int, Box] = {}
    area, pixels = width * height, CROPPED_PIXELS
    for index, (left, top, right, bottom) in enumerate(boxes, start=1):
        left, top = min(max(0, left), width - 1), min(max(0, top), height - 1)
        right, bottom = min(max(left + 1, right), width), min(max(top + 1, bottom), height)
        size = (right - left) * (bottom - top)
        reduced = int(size * min(1.0, CROP_SIDE / max(right - left, bottom - top)) ** 2)
        if len(chosen_boxes) < CROPS and size <= area and reduced <= pixels:
            chosen_boxes[index] = (left, top, right, bottom)
            area, pixels = area - size, pixels - reduced
    return chosen_boxes


@contextmanager
def room_for(job: Job, number: int) -> Iterator[None]:
    """Say in a `Refusal` where memory or disk is too small for page `number`."""
    try:
        yield
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


def serve(job: Job, requests: Any, answers: Any) -> None:
    """Open the document, then do what is asked for, until there are no more requests."""

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        source = open_document(job)
        chosen(job.pages, source.pages, job.limits.max_pages)
    except Refusal as refusal:
        answer(refusal.to_json())
        return
    answer({"pages": source.pages})
    for line in requests:
        request = json.loads(line)
        allow_cpu(job.limits.cpu_seconds)
        try:
            if "crop" in request:
                answer(write_crops(job, request["crop"], request["boxes"]))
            else:
                answer(write_page(job, source, request["page"]))
        except Refusal as refusal:
            answer(refusal.to_json())


def main() -> None:
    job = Job.from_json(sys.argv[1])
    die_with_parent(job.parent)
    # Libraries print to descriptor 1 what they have to say; answers go where only we write.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    limit_process(job.limits.memory, job.limits.file_size)
    allow_cpu(job.limits.opening_cpu_seconds)
    prepare_pillow(job.limits)
    serve(job, sys.stdin, answers)


if __name__ == "__main__":
    main()

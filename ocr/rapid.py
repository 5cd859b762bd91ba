"""Pages → text by RapidOCR, which runs in a process of its own and reads one page at a time, on all processors.

One process serves all documents of an engine: its models take seconds to load and 2 GB of memory while they read.
"""

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import ocr
from ocr.errors import OcrError, RecogniserCrashed, RecogniserError, RecogniserTimeout
from ocr.markdown import escaped
from ocr.page import Block, Box, Reading
from ocr.process import Child, child, python_arguments
from ocr.protocol import Page

LOAD_TIMEOUT = 120.0
LONGEST_ANSWER = 16 * 1024 * 1024
PARAGRAPH = 1.2
"""A line further below the last one than so many times the page's usual distance begins a paragraph."""


class Line(NamedTuple):
    text: str
    box: Box
    top: int
    """Of its first letter: of a line that slants, the box begins elsewhere."""


class RapidocrMissing(OcrError):
    """``details["module"]`` is what cannot be imported."""

    code = "rapidocr_missing"
    permanent = True


class RapidOcr:
    """Both the process and the recogniser of all documents. Its own confidence is high for wrong text too, and is left
    out."""

    name = "rapidocr"
    page_side: int | None = None
    wants_straight = False

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._child: Child | None = None

    async def start(self) -> None:
        """Load the models, if they are not. Raises `RapidocrMissing`, `RecogniserError` or one of its kinds."""
        async with self._turn:
            await self._running()

    async def stop(self) -> None:
        self._child = None
        await self._stack.aclose()

    async def recognise(self, page: Page, attempt: int) -> Reading:
        """A try that is cancelled or goes wrong ends the process; the next one starts another. Every try is alike."""
        async with self._turn:
            running = await self._running()
            try:
                answer = await self._asked(running, {"path": str(page.path)})
                return reading_of([Line(text, box_within(box, page), top) for text, box, top in answer["lines"]])
            except BaseException:
                await self.stop()
                raise

    async def _running(self) -> Child:
        if self._child is not None and self._child.process.returncode is None:
            return self._child
        await self.stop()
        root = Path(ocr.__file__).parents[1]
        command = python_arguments("-m", "ocr.rapid_child", str(os.getpid()))
        running = await self._stack.enter_async_context(child(command, "/", talk=True, PYTHONPATH=str(root)))
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                answer = await self._asked(running, None)
            if "missing" in answer:
                message = f"RapidOCR is not installed here ({answer['missing']}): pip install 'roundhouse[rapidocr]'."
                raise RapidocrMissing(message, module=answer["missing"])
        except TimeoutError:
            await self.stop()
            raise RecogniserTimeout(f"RapidOCR did not load its models within {LOAD_TIMEOUT:g} s.") from None
        except BaseException:
            await self.stop()
            raise
        self._child = running
        return running

    async def _asked(self, running: Child, request: dict[str, Any] | None) -> dict[str, Any]:
        stdin, stdout = running.process.stdin, running.process.stdout
        assert stdin is not None
        assert stdout is not None
        if request is not None:
            stdin.write(json.dumps(request).encode() + b"\n")
        answer = bytearray()
        while not answer.endswith(b"\n"):
            piece = await stdout.read(65_536)
            if not piece or len(answer) > LONGEST_ANSWER:
                raise await _death(running)
            answer += piece
        said: dict[str, Any] = json.loads(answer)
        return said


async def _death(running: Child) -> RecogniserError:
    if running.process.returncode is None and not running.process.stdout.at_eof():  # type: ignore[union-attr]
        return RecogniserCrashed("RapidOCR gave more than a page can hold.")
    status, said = await running.ended(), running.stderr
    if status == -signal.SIGXCPU:
        return RecogniserTimeout("RapidOCR used up its processor time on one page.", stderr=said)
    if status < 0:
        name = signal.Signals(-status).name
        return RecogniserCrashed(f"RapidOCR was ended by {name}.", signal=name, stderr=said)
    return RecogniserCrashed(f"RapidOCR failed with status {status}.", status=status, stderr=said)


def reading_of(lines: Sequence[Line]) -> Reading:
    """The lines, in reading order, as paragraphs."""
    blocks = tuple(_block(part) for part in paragraphs(lines))
    text = "\n\n".join(block.text for block in blocks)
    return Reading(text, "\n\n".join(escaped(block.text) for block in blocks), blocks)


def paragraphs(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines one below the other, no further apart than lines on this page are, belong together."""
    apart = [below.top - above.top for above, below in pairwise(lines) if _is_below(above.box, below.box)]
    usual = median(apart or [0])
    parts: list[list[Line]] = []
    for line in lines:
        last = parts[-1][-1] if parts else None
        if last and _is_below(last.box, line.box) and line.top - last.top <= PARAGRAPH * usual:
            parts[-1].append(line)
        else:
            parts.append([line])
    return parts


def _is_below(above: Box, below: Box) -> bool:
    one_column = min(above[2], below[2]) > max(above[0], below[0])
    return one_column and (below[1] + below[3]) > (above[1] + above[3])


def _block(lines: Sequence[Line]) -> Block:
    left, top, right, bottom = zip(*(line.box for line in lines), strict=True)
    return Block("text", "\n".join(line.text for line in lines), (min(left), min(top), max(right), max(bottom)))


def box_within(box: Sequence[int], page: Page) -> Box:
    left, top = max(0, min(int(box[0]), page.width - 1)), max(0, min(int(box[1]), page.height - 1))
    return left, top, max(left + 1, min(int(box[2]), page.width)), max(top + 1, min(int(box[3]), page.height))

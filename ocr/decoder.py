"""Document bytes → pages, decoded in a child process. Nothing of the document is parsed in this one."""

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ocr
from ocr.errors import DecoderCrashed, OcrError, UnsupportedDocument, document_error
from ocr.process import Child, child, python_arguments
from ocr.protocol import DecodeLimits, Job, Page, Refusal, decoder_death, page_path, wall_timeout

MEDIA_TYPES = frozenset({"application/pdf", "image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff"})
PREFIX = "roundhouse-ocr-"
GRACE = 5.0
"""Seconds that the child may take, beyond the limit that it watches itself, to say so."""


class PageDecoder:
    """The pages of one document, each drawn when it is asked for.

        async with PageDecoder(data, "application/pdf") as decoder:
            async for page in decoder:      # or: page = await decoder.page(7)
                ...
                page.path.unlink()

    Entering raises a `DocumentError` for a document that cannot be opened, `page` for a page that cannot be
    drawn. Pages that were asked for lie in a temporary directory until they are unlinked or the block is
    left; leaving it, in whatever way, ends the child and removes the directory.
    """

    page_count: int

    def __init__(self, data: bytes, media_type: str, limits: DecodeLimits | None = None) -> None:
        if media_type not in MEDIA_TYPES:
            known = ", ".join(sorted(MEDIA_TYPES))
            raise UnsupportedDocument(f"{media_type} is not read; send one of {known}.", media_type=media_type)
        self._data = data
        self._media_type = media_type
        self._limits = limits or DecodeLimits()
        self._turn = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._child: Child

    async def __aenter__(self) -> Self:
        try:
            self._directory = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._stack.callback(shutil.rmtree, self._directory)
            (self._directory / "document").write_bytes(self._data)
            root = str(Path(ocr.__file__).parents[1])
            job = Job(str(self._directory), "document", self._media_type, os.getpid(), self._limits)
            command = python_arguments("-m", "ocr.decoder_child", job.to_json())
            running = child(command, str(self._directory), talk=True, PYTHONPATH=root)
            self._child = await self._stack.enter_async_context(running)
            self.page_count = (await self._answer(None))["pages"]
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def page(self, number: int) -> Page:
        """Draw page `number` (from 1). Calls may overlap: they are served one after another.

        After a page that is refused the next may be asked for; after a timeout, a crash or a cancellation
        the decoder is of no more use.
        """
        async with self._turn:
            assert self._child.process.stdin is not None
            self._child.process.stdin.write(json.dumps({"page": number}).encode() + b"\n")
            answer = await self._answer(number)
            # The path is ours: a decoder that a document has taken over must not choose what is read next.
            return Page(path=page_path(self._directory, number), **answer)

    async def __aiter__(self) -> AsyncIterator[Page]:
        for number in range(1, self.page_count + 1):
            yield await self.page(number)

    async def _answer(self, page: int | None) -> dict[str, Any]:
        assert self._child.process.stdout is not None
        try:
            async with asyncio.timeout(self._limits.wall_seconds + GRACE):
                line = await self._child.process.stdout.readline()
                if not line.endswith(b"\n"):
                    raise await self._death()
                answer: dict[str, Any] = json.loads(line)
        except TimeoutError:
            raise document_error(wall_timeout(page, self._limits)) from None
        except ValueError as error:
            message = f"The document's decoder gave no proper answer: {error}"
            raise DecoderCrashed(message, stderr=self._child.stderr) from None
        if "refusal" in answer:
            raise document_error(Refusal.from_json(answer["refusal"]))
        return answer

    async def _death(self) -> OcrError:
        status = await self._child.ended()
        said = self._child.stderr
        return document_error(decoder_death("decoder", status, said, self._limits.cpu_seconds))

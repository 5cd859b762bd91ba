"""The result of a document in each of its formats, made page by page: a document of any length takes no more memory.

What is too large for one piece is read again for each format of an archive rather than kept.
"""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from broker.files import FileStore
from broker.job import Job
from broker.pages import SEARCHABLE_PDF, Pages, StoredPage
from gateway.documents import rendering
from gateway.documents.schemas import Block, DocumentHead, FailedPage, Figure, Page, Word
from gateway.schemas import JobError

# Bytes of a page's figures that are written into the page's HTML; it is held in memory with them.
MOST_EMBEDDED = 2 * 1024 * 1024
MEDIA_TYPES: Mapping[str, str] = {
    "json": "application/json",
    "markdown": "text/markdown; charset=utf-8",
    "text": "text/plain; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "zip": "application/zip",
    "pdf": "application/pdf",
}
"""Format → Content-Type."""

Link = Callable[[str], str]
"""Where a file is, by its name."""

Chunks = AsyncGenerator[bytes, None]


def image_name(number: int) -> str:
    """The file with the picture of a page (from 1), as ``ocr.page.image_name`` calls it."""
    return f"page-{number:04}.jpg"


def page_body(page: StoredPage, link: Link) -> Page:
    record, image = page.record, image_name(page.number)
    error = record["error"]
    told = {name: record[name] for name in Page.model_fields.keys() & record.keys()}
    return Page.model_validate(
        told
        | {
            "error": None if error is None else JobError(**error),
            "blocks": [_block(block) for block in record["blocks"]],
            "figures": [Figure(name=name, link=link(name)) for name in record["figures"]],
            "image": link(image) if image in page.files else None,
        }
    )


def _block(block: Mapping[str, Any]) -> Block:
    words = [Word(text=text, bbox=bbox, confidence=confidence) for text, bbox, confidence in block.get("words", ())]
    return Block.model_validate({**block, "words": words})


@dataclass(frozen=True)
class Document:
    """A document that was read. ``result``: the job's own, see ``broker.results``."""

    job: Job
    result: Mapping[str, Any]
    pages: Pages
    store: FileStore

    def title(self) -> str:
        name = self.job.file.name if self.job.file is not None else None
        return name or f"Document {self.job.id}"

    def head(self, link: Link) -> DocumentHead:
        failed = self.result.get("failed_pages", ())
        return DocumentHead(
            request_id=str(self.job.id),
            model=self.job.model,
            engine=self.result.get("engine"),
            media_type=self.result.get("media_type"),
            page_count=len(self.result["pages"]),
            partial=self.result.get("partial", False),
            failed_pages=[FailedPage.model_validate(page) for page in failed],
            searchable_pdf=link(SEARCHABLE_PDF) if SEARCHABLE_PDF in self.job.files else None,
        )

    def _pages(self) -> AbstractAsyncContextManager[AsyncGenerator[StoredPage, None]]:
        return aclosing(self.pages.each(self.job.pages_id))

    async def json(self, link: Link) -> Chunks:
        """The body ``DocumentResult``."""
        yield self.head(link).model_dump_json()[:-1].encode() + b',"pages":['
        separator = b""
        async with self._pages() as pages:
            async for page in pages:
                yield separator + page_body(page, link).model_dump_json().encode()
                separator = b","
        yield b"]}"

    async def markdown(self) -> Chunks:
        separator = ""
        async with self._pages() as pages:
            async for page in pages:
                yield (separator + rendering.as_markdown(page.record)).encode()
                separator = "\n"

    async def text(self) -> Chunks:
        separator = ""
        async with self._pages() as pages:
            async for page in pages:
                yield (separator + rendering.as_text(page.record)).encode()
                separator = rendering.PAGE_BREAK

    async def html(self, *, embed: bool) -> Chunks:
        """``embed``: with up to MOST_EMBEDDED of each page's figures inside. Others are beside it, in
        ``rendering.FOLDER``."""
        yield rendering.html_head(self.title()).encode()
        async with self._pages() as pages:
            async for page in pages:
                picture = (await self._embedded(page)).get if embed else in_folder
                yield (await asyncio.to_thread(rendering.as_html, page.record, picture)).encode()
        yield rendering.HTML_END.encode()

    async def _embedded(self, page: StoredPage) -> dict[str, str]:
        """Where the page's figures are: in data: URLs, as far as there is room, or in files."""
        named = {name: page.files[name] for name in page.record["figures"] if name in page.files}
        found, room = {}, MOST_EMBEDDED
        for name, file_id in named.items():
            found[name] = in_folder(name)
            if (size := await self.store.size(file_id)) <= room:
                room -= size
                found[name] = f"data:image/png;base64,{base64.b64encode(await self.store.get(file_id)).decode()}"
        return found

    async def zip(self) -> Chunks:
        """All formats, with the files that they refer to."""
        written = _Outbox()
        archive = ZipFile(written, "w")
        now = time.gmtime()[:6]
        async with aclosing(self._members()) as members:
            async for name, content in members:
                entry = ZipInfo(name, now)
                entry.external_attr = 0o644 << 16
                # Pictures gain nothing by it, but some programs cannot read what is stored and has no size before it.
                entry.compress_type = ZIP_DEFLATED
                async with aclosing(content):
                    with archive.open(entry, "w") as file:
                        async for chunk in content:
                            await asyncio.to_thread(file.write, chunk)
                            yield written.taken()
        archive.close()
        yield written.taken()

    async def _members(self) -> AsyncGenerator[tuple[str, Chunks], None]:
        yield "document.json", self.json(in_folder)
        yield "document.md", self.markdown()
        yield "document.txt", self.text()
        yield "document.html", self.html(embed=False)
        async with self._pages() as pages:
            async for page in pages:
                for name in (image_name(page.number), *page.record["figures"]):
                    if name in page.files:
                        yield in_folder(name), self.store.chunks(page.files[name])
        for name, file_id in self.job.files.items():
            yield in_folder(name), self.store.chunks(file_id)


def in_folder(name: str) -> str:
    return rendering.FOLDER + name


class _Outbox:
    """What a ZipFile can write to and never go back in."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """There is nowhere to flush it to."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def taken(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken

"""Documents as a worker leaves them, page by page, for tests of what clients are told: written by the broker's own
stores, of records that the pipeline's own shapes make."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bson import ObjectId

from broker.broker import Broker
from broker.job import Job
from broker.results import pack
from ocr.page import Block, PageRecord, PageStatus, Word, figure_name, image_name
from tests import documents
from tests.conditions import eventually
from tests.deployments import Gateway

MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "pdf": "application/pdf"}
PDF = b"%PDF-1.7\n% a searchable one\n"


async def submitted(gateway: Gateway, **options: Any) -> str:
    """The id of a job on a document, which nobody reads."""
    fields = {name: str(value) for name, value in options.items()}
    files = {"file": ("Büro <1>.pdf", documents.scanned_pdf(1))}
    response = await gateway.http.post("/api/ocr", files=files, data=fields, headers={"Cache-Control": "no-cache"})
    assert response.status_code == 202, response.text
    return str(response.json()["request_id"])


def page(number: int, text: str = "", **changes: Any) -> PageRecord:
    """A page that was read: a line of text, 2000 pixels wide and 1000 high."""
    text = text or f"This is page {number}."
    record = PageRecord(number, PageStatus.COMPLETED, 2000, 1000, engine="tesseract", tries=1, duration=0.5)
    words = (Word(text.split()[0], (100, 50, 180, 90), 0.8),)
    block = Block("text", text, (100, 50, 900, 90), 0.9, words)
    return replace(record, text=text, markdown=text, blocks=(block,), confidence=0.9, **changes)


def page_with_figure(number: int) -> PageRecord:
    name = figure_name(number, 1)
    blocks = (Block("text", "Above.", (0, 0, 10, 10)), Block("figure", "A cat.", (10, 20, 300, 400), None))
    read = page(number, "Above.")
    return replace(read, markdown=f"Above.\n\n![A cat.]({name})\n", blocks=blocks, figures=(name,))


def blank_page(number: int) -> PageRecord:
    return PageRecord(number, PageStatus.BLANK, 2000, 1000)


def failed_page(number: int, partial: str = "") -> PageRecord:
    error = {"code": "page_looped", "message": "The model wrote the same words again and again."}
    record = PageRecord(number, PageStatus.FAILED, 2000, 1000, engine="tesseract", tries=4, error=error)
    return replace(record, text=partial, markdown=partial)


class Reader:
    """Reads a document as a worker does, but for the reading."""

    def __init__(self, broker: Broker, job: Job) -> None:
        self.broker = broker
        self.job = job
        self.records: list[PageRecord] = []

    @classmethod
    async def claims(cls, gateway: Gateway) -> "Reader":
        """The next document that waits."""
        [job] = await gateway.claimed("tesseract")
        return cls(gateway.broker, job)

    async def begins(self, number: int) -> None:
        await self.broker.pages.begin(self.job.id, number, "a test")

    async def ends(self, *records: PageRecord, total: int | None = None, picture: bytes = b"\xff\xd8 a page") -> None:
        for record in records:
            files = dict.fromkeys(record.figures, b"\x89PNG a figure")
            if record.width:
                files[image_name(record.number)] = picture
            stored = {name: await self.store(name, data) for name, data in files.items()}
            assert await self.broker.pages.end(self.job.id, record.number, record.to_json(), stored)
            self.records.append(record)
        done, most = len(self.records), total or len(self.records)
        await self.broker.queue.progress(self.job, done, most, "pages")

        async def seen() -> bool:
            return (await self.broker.reader.get(str(self.job.id), None)).progress == {
                "done": done,
                "total": most,
                "unit": "pages",
            }

        # It is written without waiting for a majority.
        await eventually(seen)

    async def store(self, name: str, data: bytes) -> ObjectId:
        media_type = MEDIA_TYPES[name.rpartition(".")[2]]
        return (await self.broker.files.put(self.job.id, data, media_type, name)).id

    async def completes(self, files: Mapping[str, ObjectId] | None = None) -> None:
        records = sorted(self.records, key=lambda record: record.number)
        failed = [record for record in records if record.status is PageStatus.FAILED]
        result = {
            "text": "\n\n".join(record.text for record in records if record.text),
            "pages": [{"number": record.number, "text": record.text} for record in records],
            "engine": "tesseract",
            "media_type": "application/pdf",
            "partial": bool(failed),
            "failed_pages": [{"number": record.number, **(record.error or {})} for record in failed],
        }
        packed = await pack(self.broker.files, self.job, result) | (
            {} if failed else {"reusable": self.job.fingerprint}
        )
        assert await self.broker.queue.complete(self.job, packed | ({"files": dict(files)} if files else {}))


async def read(gateway: Gateway, *records: PageRecord, searchable: bool = False, **options: Any) -> str:
    """The id of a document with these pages, read to its end."""
    job_id = await submitted(gateway, **options)
    reader = await Reader.claims(gateway)
    assert str(reader.job.id) == job_id
    await reader.ends(*records)
    await reader.completes({"searchable.pdf": await reader.store("searchable.pdf", PDF)} if searchable else None)
    return job_id

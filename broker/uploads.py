"""Files that clients send by ``POST /v1/files``, and those that are made for them: what is known of each one.

What they hold is in the file store, where it is swept once nothing here refers to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from broker.barrier import Barrier
from broker.clock import DatabaseClock, to_the_millisecond
from broker.database import Collection, Database
from broker.errors import FileInUse, FileNotFound
from broker.files import FileStore
from broker.job import Document, parse_job_id

PREFIX = "file-"


@dataclass(frozen=True, slots=True)
class Upload:
    """``content``: the file in the store. ``size`` in bytes."""

    id: ObjectId
    subject: str
    name: str
    purpose: str
    size: int
    content: ObjectId
    created_at: datetime

    @property
    def public_id(self) -> str:
        return public_id(self.id)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Upload":
        known = {key: document[key] for key in ("subject", "name", "purpose", "size", "content", "created_at")}
        return cls(id=document["_id"], **known)


def public_id(upload: ObjectId) -> str:
    """As clients know it."""
    return f"{PREFIX}{upload}"


def parse_upload_id(text: str) -> ObjectId | None:
    """The id that a client sent, or None where it cannot be one."""
    return parse_job_id(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else None


async def listed(
    collection: Collection, query: Document, after: ObjectId | None, limit: int, *, ascending: bool = False
) -> tuple[list[Document], bool]:
    """Some documents by age, the newest first unless ``ascending``; whether there are more. ``after``: the last one
    before."""
    wanted = query if after is None else query | {"_id": {"$gt" if ascending else "$lt": after}}
    found = await collection.find(wanted).sort("_id", 1 if ascending else -1).limit(limit + 1).to_list()
    return found[:limit], len(found) > limit


class Uploads:
    """``subject`` None, wherever it is asked for, means an admin, who may have everybody's files.

    All methods raise ``pymongo.errors.PyMongoError`` where the database cannot be reached.
    """

    def __init__(self, database: Database, files: FileStore) -> None:
        self._uploads = database.uploads
        self._batches = database.batches
        self._files = files
        self._barrier = Barrier(database)
        self._clock = DatabaseClock(database)

    async def add(
        self, upload: ObjectId, subject: str, name: str, purpose: str, size: int, content: ObjectId
    ) -> Upload:
        """Makes the stored file ``content`` known. Twice is no error, and the second time changes nothing."""
        document = {
            "_id": upload,
            "subject": subject,
            "name": name,
            "purpose": purpose,
            "size": size,
            "content": content,
            "created_at": to_the_millisecond(await self._clock.ago(0)),
        }
        try:
            await self._uploads.insert_one(document)
        except DuplicateKeyError:
            return await self.get(public_id(upload), None)
        return Upload.from_document(document)

    async def get(self, upload_id: str, subject: str | None) -> Upload:
        """Raises FileNotFound, for another subject's file too."""
        parsed = parse_upload_id(upload_id)
        query = {"_id": parsed} if subject is None else {"_id": parsed, "subject": subject}
        document = None if parsed is None else await self._barrier.read(lambda: self._uploads.find_one(query))
        if document is None:
            raise FileNotFound(upload_id)
        return Upload.from_document(document)

    async def listed(
        self,
        subject: str | None,
        *,
        purpose: str | None = None,
        after: ObjectId | None = None,
        limit: int = 20,
        ascending: bool = False,
    ) -> tuple[list[Upload], bool]:
        """Some of the files, and whether there are more."""
        wanted = {"subject": subject, "purpose": purpose}
        query = {key: value for key, value in wanted.items() if value is not None}
        found, more = await self._barrier.read(lambda: listed(self._uploads, query, after, limit, ascending=ascending))
        return [Upload.from_document(document) for document in found], more

    async def delete(self, upload_id: str, subject: str | None) -> Upload:
        """Raises FileNotFound, or FileInUse where a batch that has not ended reads it."""
        upload = await self.get(upload_id, subject)
        if await self._batches.find_one({"files": upload.id, "open": True}, {"_id": 1}) is not None:
            raise FileInUse(upload_id)
        # First what names the file: a file without a name is swept, a name without a file would stay.
        await self._uploads.delete_one({"_id": upload.id})
        await self._files.delete(upload.content)
        return upload

"""The secrets by which receivers of webhooks know that it is us: one for each user, kept in MongoDB.

So every gateway signs with the same, whichever machine it is on, and what one user can read tells nothing of another's.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pymongo import ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from broker.database import CODEC, DURABLE
from broker.job_updates import from_now, literal

PREFIX = "whsec_"
OVERLAP = 86_400.0
"""Seconds for which the secret before is signed with, too, after a rotation."""
# Standard Webhooks asks for 24 to 64.
_BYTES = 32


@dataclass(frozen=True, slots=True)
class Secrets:
    """``previous`` is signed with until ``previous_until``."""

    current: str
    previous: str | None = None
    previous_until: datetime | None = None

    def sign(self, message_id: str, timestamp: int, body: str) -> str:
        """The header ``webhook-signature``: one signature for each secret, see Standard Webhooks."""
        signed = f"{message_id}.{timestamp}.{body}".encode()
        return " ".join(f"v1,{_digest(secret, signed)}" for secret in (self.current, self.previous) if secret)


def _digest(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


class WebhookSecrets:
    """All methods raise ``pymongo.errors.PyMongoError`` where the database cannot be reached."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]]) -> None:
        self._collection = database.get_collection(
            "webhook_secrets", codec_options=CODEC, write_concern=DURABLE, read_concern=ReadConcern("local")
        )

    async def of(self, subject: str) -> Secrets:
        """The subject's secrets, made when they are first asked for."""
        found = await self._collection.find_one({"_id": subject})
        if found is None:
            return await self._write(subject, [{"$set": {"secret": {"$ifNull": ["$secret", literal(_generate())]}}}])
        return _secrets(found)

    async def rotate(self, subject: str) -> Secrets:
        """A new secret. Any older one than the one before is void at once."""
        before = {"previous": {"$ifNull": ["$secret", "$$REMOVE"]}, "previous_until": from_now(OVERLAP)}
        return await self._write(subject, [{"$set": {**before, "secret": literal(_generate())}}])

    async def _write(self, subject: str, update: list[dict[str, Any]]) -> Secrets:
        while True:
            try:
                written = await self._collection.find_one_and_update(
                    {"_id": subject}, update, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                continue  # another process has made it in this moment
            assert written is not None  # an upsert that returns the document as it is afterwards
            return _secrets(written)


def _secrets(document: dict[str, Any]) -> Secrets:
    previous, until = document.get("previous"), document.get("previous_until")
    if previous is None or until is None or until <= datetime.now(UTC):
        return Secrets(document["secret"])
    return Secrets(document["secret"], previous, until)


def _generate() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()

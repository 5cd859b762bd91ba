"""Who may ask for tokens: users in MongoDB, their passwords hashed with Argon2id (RFC 9106)."""

import asyncio
import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern

from broker.database import CODEC, DURABLE
from config.errors import ConfigError
from config.settings import MAX_PASSWORD, MIN_PASSWORD

ADMIN = "admin"

MAX_NAME = 64
"""Characters."""

_USERNAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@-]{{0,{MAX_NAME - 1}}}")
# One hash takes 64 MiB and 50 ms of processor time: a flood of logins must not take all of either.
_CONCURRENT_HASHES = 2

Admin = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True, slots=True)
class User:
    """``password_changed_at``: refresh tokens from before it are void."""

    name: str
    role: str
    disabled: bool
    created_at: datetime
    password_changed_at: datetime

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "User":
        return cls(
            name=document["_id"],
            role=document["role"],
            disabled=document["disabled"],
            created_at=document["created_at"],
            password_changed_at=document["password_changed_at"],
        )


class Users:
    """The users of one database. Any number of processes may work on them at once: each method is one write."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]], hasher: PasswordHasher | None = None) -> None:
        self._collection = database.get_collection(
            "users", codec_options=CODEC, write_concern=DURABLE, read_concern=ReadConcern("majority")
        )
        self._hasher = hasher or PasswordHasher()
        self._hashing = asyncio.Semaphore(_CONCURRENT_HASHES)
        self._nobody = _unmatchable_hash(self._hasher)

    async def create(self, name: str, password: str, role: str) -> User:
        """Raises ConfigError when the name is taken, or name or password will not do."""
        if not _USERNAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be a user name; take letters, digits and . _ @ -, {MAX_NAME} at most.")
        _check_password(name, password)
        now = datetime.now(UTC)
        document = {
            "_id": name,
            "password_hash": await self._hash(password),
            "role": role,
            "disabled": False,
            "created_at": now,
            "password_changed_at": now,
        }
        try:
            await self._collection.insert_one(document)
        except DuplicateKeyError as error:
            raise ConfigError(f"There is a user {name!r} already.") from error
        return User.from_document(document)

    async def find(self, name: str) -> User | None:
        document = await self._collection.find_one({"_id": name})
        return None if document is None else User.from_document(document)

    async def list(self) -> list[User]:
        """All users, by name."""
        return [User.from_document(document) async for document in self._collection.find().sort("_id")]

    async def verify(self, name: str, password: str) -> User | None:
        """The user, or None for a wrong password, an unknown user or a disabled one.

        Each takes as long as the others, so that nobody can find out by a clock which names exist.
        """
        document = await self._collection.find_one({"_id": name})
        stored: str = self._nobody if document is None else document["password_hash"]
        matches = await self._matches(stored, password)
        if document is None or not matches or document["disabled"]:
            return None
        if self._hasher.check_needs_rehash(stored):
            rehashed = await self._hash(password)
            await self._collection.update_one(
                {"_id": name, "password_hash": stored}, {"$set": {"password_hash": rehashed}}
            )
        return User.from_document(document)

    async def set_password(self, name: str, password: str) -> None:
        """Raises ConfigError when there is no such user or the password will not do."""
        _check_password(name, password)
        await self._change(name, await self._password_fields(password))

    async def set_disabled(self, name: str, disabled: bool) -> None:
        """A disabled user gets no tokens; access tokens it holds stay good until they expire.

        Raises ConfigError when there is no such user.
        """
        await self._change(name, {"disabled": disabled})

    async def ensure_admin(self, password: str, from_env: bool) -> Admin:
        """Creates the user ``admin`` at the first start; any number of processes may start at once.

        ``from_env``: the password was given by ADMIN_PASSWORD, which is then the truth at each start: another
        password of a user ``admin`` that exists is replaced. A generated one never replaces anything.
        """
        try:
            await self.create(ADMIN, password, ADMIN)
        except ConfigError:
            document = await self._collection.find_one({"_id": ADMIN})
            if document is None:
                raise
        else:
            return "created"
        stored = document["password_hash"]
        if not from_env or await self._matches(stored, password):
            return "unchanged"
        # On the hash that was read: of several processes with the same new password, one writes it.
        result = await self._collection.update_one(
            {"_id": ADMIN, "password_hash": stored}, {"$set": await self._password_fields(password)}
        )
        return "updated" if result.modified_count else "unchanged"

    async def _change(self, name: str, fields: Mapping[str, Any]) -> None:
        result = await self._collection.update_one({"_id": name}, {"$set": fields})
        if not result.matched_count:
            raise ConfigError(f"There is no user {name!r}.")

    async def _password_fields(self, password: str) -> dict[str, Any]:
        return {"password_hash": await self._hash(password), "password_changed_at": datetime.now(UTC)}

    async def _hash(self, password: str) -> str:
        async with self._hashing:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def _matches(self, stored: str, password: str) -> bool:
        async with self._hashing:
            try:
                return await asyncio.to_thread(self._hasher.verify, stored, password)
            except (VerificationError, InvalidHashError):
                return False


def _check_password(name: str, password: str) -> None:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD or password == name:
        raise ConfigError(
            f"A password needs {MIN_PASSWORD} to {MAX_PASSWORD} characters and may not be the user's name."
        )


def _unmatchable_hash(hasher: PasswordHasher) -> str:
    """A hash of nothing known, with today's parameters: to check a password against it costs the usual time."""

    def text(size: int) -> str:
        return base64.b64encode(os.urandom(size)).decode().rstrip("=")

    cost = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    return f"$argon2id$v=19${cost}${text(hasher.salt_len)}${text(hasher.hash_len)}"

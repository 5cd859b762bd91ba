"""Makes a mongod with access control a replica set of one member, with an account for Roundhouse.

To be run where mongod is reached over loopback, as it grants the first steps to nobody else (the localhost exception).
Each step may be done already, by an earlier run that was cut short at any point, so it is run at every start.

MONGODB_MEMBER: host:port by which the member is known to clients. MONGODB_PORT: where it listens on loopback (27017).
MONGODB_ROOT_PASSWORD: of the account `root`, which has all rights. MONGODB_PASSWORD: of the account `roundhouse`, which
has readWrite and dbAdmin on the database `roundhouse`; another one replaces it.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

REPLICA_SET = "roundhouse"
DATABASE = "roundhouse"
ACCOUNT = "roundhouse"
ROLES = [{"role": role, "db": DATABASE} for role in ("readWrite", "dbAdmin")]
# Seconds: a journal of many GB takes long to replay.
PATIENCE = 300.0
_POLL = 0.2
_UNAUTHORIZED, _AUTHENTICATION_FAILED, _ALREADY_INITIALIZED, _USER_EXISTS = 13, 18, 23, 51003
# NotYetInitialized, ConfigurationInProgress: mongod is still reading its configuration.
_PASSING = (94, 109)
_DURABLE = {"w": "majority", "j": True}

Client = MongoClient[dict[str, Any]]


class SetupFailed(Exception):
    """One sentence that says what is amiss."""


def set_up(port: int, member: str, root_password: str, password: str) -> None:
    """Raises SetupFailed, and PyMongoError for what mongod refuses besides."""
    with _client(port) as client:
        _until_primary(client, member)
        _create_root(client, root_password)
    with _client(port, root_password) as client:
        try:
            _create_account(client, password)
        except OperationFailure as error:
            if error.code != _AUTHENTICATION_FAILED:
                raise
            told = "MONGODB_ROOT_PASSWORD is not the password with which these data were made; give that one."
            raise SetupFailed(told) from error


def _client(port: int, password: str | None = None) -> Client:
    return MongoClient(
        "127.0.0.1",
        port,
        directConnection=True,
        username=password and "root",
        password=password,
        serverSelectionTimeoutMS=2000,
        connectTimeoutMS=2000,
    )


def _until_primary(client: Client, member: str) -> None:
    seen = "it does not answer"
    for _ in _polls():
        try:
            hello = client.admin.command("hello")
            if hello["isWritablePrimary"] and "setName" in hello:
                return
            if hello.get("isreplicaset"):
                _initiate(client, member)
            elif "setName" not in hello:
                raise SetupFailed("This mongod is no member of a replica set; start it with --replSet.")
            seen = "it is no primary"
        except ConnectionFailure as error:
            seen = str(error).partition(",")[0]
    raise SetupFailed(f"mongod was not ready after {PATIENCE:.0f} s: {seen}.")


def _polls() -> Iterator[None]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield
        time.sleep(_POLL)


def _initiate(client: Client, member: str) -> None:
    config = {"_id": REPLICA_SET, "members": [{"_id": 0, "host": member}]}
    try:
        client.admin.command("replSetInitiate", config)
    except OperationFailure as error:
        # Initiated before, and about to notice; where there is an account already, it was as well.
        if error.code not in (_UNAUTHORIZED, _ALREADY_INITIALIZED, *_PASSING):
            raise


def _create_root(client: Client, password: str) -> None:
    """By the localhost exception, which ends with the first account."""
    try:
        client.admin.command("createUser", "root", pwd=password, roles=["root"], writeConcern=_DURABLE)
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise


def _create_account(client: Client, password: str) -> None:
    about: dict[str, Any] = {"pwd": password, "roles": ROLES, "writeConcern": _DURABLE}
    try:
        client[DATABASE].command("createUser", ACCOUNT, **about)
    except OperationFailure as error:
        if error.code != _USER_EXISTS:
            raise
        client[DATABASE].command("updateUser", ACCOUNT, **about)


def main(environ: Mapping[str, str]) -> int:
    try:
        set_up(
            int(environ.get("MONGODB_PORT", "27017")),
            environ["MONGODB_MEMBER"],
            environ["MONGODB_ROOT_PASSWORD"],
            environ["MONGODB_PASSWORD"],
        )
    except KeyError as error:
        print(f"replica_set.py: set {error.args[0]}.", file=sys.stderr)
        return 1
    except (SetupFailed, PyMongoError) as error:
        print(f"replica_set.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))

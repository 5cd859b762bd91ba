"""The database: whether it answers, and will do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import (
    ConfigurationError,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from broker.database import fault_of_uri
from broker.errors import MongodError
from broker.logs import in_short
from broker.mongod import EmbeddedMongod
from broker.mongodpath import usable_mongod
from config import Settings
from gateway.commands.finding import Finding, first_line

OLDEST_MONGODB = 6
# Seconds.
_DATABASE_PATIENCE = 3.0
# What the schema and the jobs take.
NEEDED = ("find", "insert", "update", "remove", "createIndex", "listIndexes")
_SET_URI = "export MONGODB_URI='mongodb://USER:PASSWORD@HOST/?replicaSet=NAME'"
_INITIATE = "type `mongosh --eval 'rs.initiate()'` once"


def database(settings: Settings) -> Finding:
    if settings.mongodb.uri is None:
        return _embedded(settings.home)
    return _server(settings.mongodb.uri, settings.mongodb.database)


def _embedded(home: Path) -> Finding:
    mongod = EmbeddedMongod(home)
    try:
        status, hindrance = mongod.status(), mongod.hindrance()
        binary = usable_mongod(status.binary)
    except (MongodError, OSError) as error:
        return Finding("error", "database", str(error), _SET_URI)
    if hindrance is not None:
        message = f"The embedded mongod has crashed and cannot be started again: {hindrance}."
        return Finding("error", "database", message, "Mend that; a Roundhouse that runs then starts it within 30 s.")
    state = f"runs on port {status.port} (process {status.pid})" if status.running else "is not running now"
    message = f"The embedded mongod {binary} {state}; it is meant for trials, so for production set MONGODB_URI."
    return Finding("warning", "database", message, _SET_URI)


def _server(uri: str, name: str) -> Finding:
    """Connects, and asks for what needs rights. The URI is never shown: it may hold a password."""
    milliseconds = int(_DATABASE_PATIENCE * 1000)
    try:
        with MongoClient[dict[str, Any]](
            uri,
            appname="roundhouse doctor",
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
            socketTimeoutMS=milliseconds,
        ) as client:
            hello = client.admin.command("hello")
            version = str(client.admin.command("buildInfo")["version"])
            client[name].list_collection_names()
            account = client.admin.command("connectionStatus", showPrivileges=True)["authInfo"]
    except (PyMongoError, OSError, ValueError) as error:
        return _unreachable(error, name)
    finding = server_finding(hello, version)
    return finding if finding.level == "error" else account_fault(account, name) or finding


def _unreachable(error: Exception, name: str) -> Finding:
    match error:
        case ConfigurationError() | ValueError() | OSError():
            message = f"MONGODB_URI cannot be used: {fault_of_uri(error)}."
            hint = "Correct MONGODB_URI, or the file." if isinstance(error, OSError) else _SET_URI
        case OperationFailure():
            message = f"MongoDB refuses the account of MONGODB_URI: {_short(error)}."
            hint = f"Give the right password, and {_roles(name)}"
        case ServerSelectionTimeoutError() if "replica set name" in _short(error):
            message = f"The server is in no replica set of the name that MONGODB_URI gives: {_short(error)}."
            hint = f"Correct replicaSet= in MONGODB_URI, or start mongod with --replSet and {_INITIATE}."
        case ServerSelectionTimeoutError():
            message = f"No primary of MONGODB_URI answers within {_DATABASE_PATIENCE:.0f} s: {_short(error)}."
            hint = f"Start MongoDB; where its replica set was never initiated, {_INITIATE}."
        case NotPrimaryError():
            message = f"The server is at work in no replica set: {_short(error)}."
            hint = f"Where its replica set was never initiated, {_INITIATE}."
        case _:
            message = f"MongoDB does not answer: {_short(error)}."
            hint = "See whether MONGODB_URI names the right host and port, and whether TLS is asked for on both sides."
    return Finding("error", "database", message, hint)


def _roles(name: str) -> str:
    return f"the account the roles readWrite and dbAdmin on the database {name}."


def account_fault(account: Mapping[str, Any], name: str) -> Finding | None:
    """What the account may not do on the database. ``account``: the ``authInfo`` of the command connectionStatus.

    Where access is not controlled there is nobody in it, and everybody may do everything.
    """
    if not account["authenticatedUsers"]:
        return None
    granted = {
        action
        for privilege in account["authenticatedUserPrivileges"]
        if _covers(privilege["resource"], name)
        for action in privilege["actions"]
    }
    if denied := [action for action in NEEDED if action not in granted]:
        *others, last = denied
        listed = f"{', '.join(others)} and {last}" if others else last
        message = f"The account of MONGODB_URI may not {listed} on the database {name}."
        return Finding("error", "database", message, f"Give {_roles(name)}")
    if "collMod" not in granted:
        message = f"The account of MONGODB_URI may not collMod on the database {name}: its indexes keep their term."
        return Finding("warning", "database", message, f"Give {_roles(name)}")
    return None


def _covers(resource: Mapping[str, Any], name: str) -> bool:
    """Whether a privilege holds for all collections of the database; no name stands for any."""
    return bool(resource.get("anyResource")) or (resource.get("db") in (name, "") and resource.get("collection") == "")


def _short(error: Exception) -> str:
    return first_line(in_short(error))


def server_finding(hello: Mapping[str, Any], version: str) -> Finding:
    """The verdict on a server that answers. ``hello``: its answer to the command of that name."""
    if int(version.partition(".")[0]) < OLDEST_MONGODB:
        message = f"MongoDB {version} is too old, {OLDEST_MONGODB} or newer is needed."
        return Finding("error", "database", message, "Upgrade MongoDB, or set MONGODB_URI to a newer one.")
    if hello.get("msg") == "isdbgrid":
        return Finding("ok", "database", f"MongoDB {version}, a sharded cluster.")
    replica_set = hello.get("setName")
    if replica_set is None:
        message = f"MongoDB {version} is no replica set, and only those have change streams."
        hint = f"Start it by `mongod --replSet rs0 …` and {_INITIATE}."
        return Finding("error", "database", message, hint)
    if not hello.get("isWritablePrimary"):
        message = f"MongoDB {version} at {hello.get('me')} is no primary of the replica set {replica_set}."
        return Finding("error", "database", message, "Take directConnection out of MONGODB_URI.")
    return Finding("ok", "database", f"MongoDB {version}, replica set {replica_set}, primary {hello.get('me')}.")

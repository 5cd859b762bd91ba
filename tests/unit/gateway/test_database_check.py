import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.uri_parser import parse_uri

from broker.mongodpath import find_mongod
from broker.mongodset import Polls
from gateway.commands import database_check
from tests.unit.gateway.conftest import Make


def test_the_embedded_mongod_is_warned_of(make: Make) -> None:
    finding = database_check.database(make())
    assert finding.level == "warning"
    assert f"{find_mongod()} is not running" in finding.message
    assert "MONGODB_URI=" in (finding.hint or "")


def test_damaged_files_of_the_embedded_mongod_are_an_error(make: Make) -> None:
    settings = make()
    (settings.home / "mongod").mkdir(parents=True)
    (settings.home / "mongod" / "mongod.json").write_text("{")
    finding = database_check.database(settings)
    assert finding.level == "error"
    assert "is damaged" in finding.message


def test_a_primary_of_a_replica_set_is_well(make: Make, mongod_uri: str) -> None:
    finding = database_check.database(make(MONGODB_URI=mongod_uri))
    assert finding.level == "ok"
    assert "replica set roundhouse, primary 127.0.0.1:" in finding.message


def test_a_wrong_password_is_an_error_and_is_not_shown(make: Make, mongod_uri: str) -> None:
    (host, port), *_ = parse_uri(mongod_uri)["nodelist"]
    finding = database_check.database(make(MONGODB_URI=f"mongodb://roundhouse:hunter2@{host}:{port}/?authSource=admin"))
    assert finding.level == "error"
    assert "refuses the account" in finding.message
    assert "hunter2" not in f"{finding}"


@asynccontextmanager
async def account(uri: str, database: str, *roles: str) -> AsyncIterator[str]:
    """The URI of an account of its own with these roles on the database."""
    (host, port), *_ = parse_uri(uri)["nodelist"]
    async with AsyncMongoClient[dict[str, Any]](uri) as root:
        about = [{"role": role, "db": database} for role in roles]
        await root[database].command("createUser", "clerk", pwd="clerk", roles=about)
        try:
            yield f"mongodb://clerk:clerk@{host}:{port}/?authSource={database}"
        finally:
            await root[database].command("dropUser", "clerk")


async def test_the_verdict_on_an_account_follows_its_roles(
    make: Make, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    name = database.name
    found = {}
    for roles in ("read", "readWrite", "readWrite dbAdmin"):
        async with account(mongod_uri, name, *roles.split()) as uri:
            found[roles] = database_check.database(make(MONGODB_URI=uri, ROUNDHOUSE__MONGODB__DATABASE=name))
            elsewhere = database_check.database(make(MONGODB_URI=uri, ROUNDHOUSE__MONGODB__DATABASE="other"))
            assert elsewhere.level == "error"
            assert "the roles readWrite and dbAdmin on the database other" in (elsewhere.hint or "")
    assert [finding.level for finding in found.values()] == ["error", "warning", "ok"]
    assert "may not insert, update, remove and createIndex" in found["read"].message
    assert "may not collMod" in found["readWrite"].message


def test_rights_are_counted_where_they_hold_for_every_collection() -> None:
    needed = sorted(database_check.NEEDED)

    def level(**resource: Any) -> str:
        account = {
            "authenticatedUsers": [{}],
            "authenticatedUserPrivileges": [{"resource": resource, "actions": needed}],
        }
        fault = database_check.account_fault(account, "mine")
        return "ok" if fault is None else fault.level

    for resource in ({"db": "mine", "collection": ""}, {"db": "", "collection": ""}, {"anyResource": True}):
        assert level(**resource) == "warning", "only collMod is missing"
    for resource in ({"db": "mine", "collection": "jobs"}, {"db": "other", "collection": ""}, {"cluster": True}):
        assert level(**resource) == "error"
    nobody: dict[str, Any] = {"authenticatedUsers": [], "authenticatedUserPrivileges": []}
    assert database_check.account_fault(nobody, "mine") is None


def test_a_database_that_is_away_is_an_error_in_one_line(make: Make) -> None:
    with socket.socket() as reserved:  # bound, and nobody listens
        reserved.bind(("127.0.0.1", 0))
        uri = f"mongodb://ann:hunter2@127.0.0.1:{reserved.getsockname()[1]}"
        finding = database_check.database(make(MONGODB_URI=uri))
    assert finding.level == "error"
    assert "Connection refused" in finding.message
    assert "Topology" not in finding.message
    assert "hunter2" not in finding.message


@pytest.mark.parametrize("uri", ["mongodb://ann:hun/ter2@host", "mongodb://hun,b/?directConnection=true"])
def test_a_uri_that_cannot_be_used_is_an_error_and_is_not_shown(make: Make, uri: str) -> None:
    finding = database_check.database(make(MONGODB_URI=uri))
    assert finding.level == "error"
    assert "hun" not in finding.message


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://ann:hun/ter2@host",
        "mongodb://ann:hunter2/db",
        "mongodb://ann:hunter2:27017",
        "mongodb://ann:x@host:99999",
        "mongodb://[::1/",
    ],
)
def test_a_uri_that_cannot_be_parsed_is_told_of_with_how_passwords_are_written(make: Make, uri: str) -> None:
    finding = database_check.database(make(MONGODB_URI=uri))
    assert finding.message == (
        "MONGODB_URI cannot be used: its hosts, password or options cannot be understood; "
        "signs in a password are written as %XX."
    )


def test_a_file_of_the_uri_that_is_not_there_is_named(make: Make) -> None:
    finding = database_check.database(make(MONGODB_URI="mongodb://127.0.0.1:1/?tls=true&tlsCAFile=/nowhere/ca.pem"))
    assert finding.message == (
        "MONGODB_URI cannot be used: it names a file that cannot be read: /nowhere/ca.pem: No such file or directory."
    )
    assert "the file" in (finding.hint or "")


def test_another_replica_set_than_the_servers_is_an_error_in_the_uri(make: Make, mongod_uri: str) -> None:
    (host, port), *_ = parse_uri(mongod_uri)["nodelist"]
    for options in ("replicaSet=other", "replicaSet=other&directConnection=true"):
        finding = database_check.database(make(MONGODB_URI=f"mongodb://{host}:{port}/?{options}"))
        assert finding.level == "error"
        assert "is in no replica set of the name that MONGODB_URI gives" in finding.message
        assert (finding.hint or "").startswith("Correct replicaSet= in MONGODB_URI")


@contextmanager
def mongod_alone(directory: Path, *more: str) -> Iterator[int]:
    """A mongod that is in no replica set; its port. ``more``: options of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (directory / "data").mkdir()
    options: list[str | Path] = [
        "--dbpath",
        directory / "data",
        "--port",
        str(port),
        "--bind_ip",
        "127.0.0.1",
        "--nounixsocket",
        *more,
    ]
    process = subprocess.Popen(
        [find_mongod(), *options, "--wiredTigerCacheSizeGB", "0.25", "--logpath", directory / "log"],
        env={**os.environ, "LC_ALL": "C"},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


async def listening(port: int) -> None:
    async for _ in Polls(30):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    raise AssertionError(f"nobody listens on {port}")


@pytest.mark.parametrize("more", [(), ("--replSet", "rs0")])
async def test_a_mongod_without_a_replica_set_is_an_error(make: Make, tmp_path: Path, more: Sequence[str]) -> None:
    with mongod_alone(tmp_path, *more) as port:
        await listening(port)
        for options in ("", "?directConnection=true", "?replicaSet=rs0", "?replicaSet=rs0&directConnection=true"):
            finding = database_check.database(make(MONGODB_URI=f"mongodb://127.0.0.1:{port}/{options}"))
            assert finding.level == "error"
            assert "rs.initiate()" in (finding.hint or ""), finding
            assert "another replica set" not in finding.message


def test_the_verdict_follows_version_and_role() -> None:
    primary = {"setName": "rs0", "isWritablePrimary": True, "me": "db:27017"}
    assert database_check.server_finding(primary, "6.0.5").level == "ok"
    assert database_check.server_finding(primary, "5.0.31").level == "error"
    assert database_check.server_finding(primary | {"isWritablePrimary": False}, "7.0.1").level == "error"
    assert database_check.server_finding({"msg": "isdbgrid", "isWritablePrimary": True}, "8.0.0-rc1").level == "ok"

"""mongod.sh and replica_set.py as compose.yaml runs them, on a real mongod with access control."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from broker.mongodpath import find_mongod
from tests.ports import free_port
from tests.system import System

DEPLOY = Path(__file__).parents[3] / "deploy"
ROOT_PASSWORD, PASSWORD = "of-root", "of-roundhouse"


class Mongod:
    """The database of compose.yaml in a directory and on a port of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.key = directory / "keyfile"
        self.port = free_port()
        self.member = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "data").mkdir()

    def start(self) -> None:
        place = {"PATH": f"{find_mongod().parent}:{os.environ['PATH']}"}
        own = ("--port", str(self.port), "--bind_ip", "127.0.0.1", "--wiredTigerCacheSizeGB", "0.25")
        with (self._directory / "mongod.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["bash", DEPLOY / "mongod.sh", self._directory / "data", self.key, *own, "--oplogSize", "64"],
                env=place,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(60)

    def set_up(self, root_password: str = ROOT_PASSWORD, password: str = PASSWORD, **environ: str) -> tuple[int, str]:
        """Exit status and what was said."""
        given = {
            "MONGODB_PORT": str(self.port),
            "MONGODB_MEMBER": self.member,
            "MONGODB_ROOT_PASSWORD": root_password,
            "MONGODB_PASSWORD": password,
        }
        done = subprocess.run(
            [sys.executable, DEPLOY / "replica_set.py"],
            env=given | environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def uri(self, password: str = PASSWORD) -> str:
        """The one of compose.yaml, but for the host."""
        return f"mongodb://roundhouse:{password}@{self.member}/?replicaSet=roundhouse&authSource=roundhouse"

    def answers(self, password: str) -> bool:
        """Whether the account may read with that password."""
        with MongoClient[dict[str, Any]](self.uri(password)) as client:
            try:
                client["roundhouse"].list_collection_names()
            except OperationFailure as error:
                if error.code != 18:  # AuthenticationFailed
                    raise
                return False
        return True


@pytest.fixture
def mongod(tmp_path: Path) -> Iterator[Mongod]:
    database = Mongod(tmp_path)
    database.start()
    try:
        yield database
    finally:
        database.stop()


def test_a_fresh_mongod_becomes_a_replica_set_with_an_account_and_a_second_run_changes_nothing(mongod: Mongod) -> None:
    assert mongod.set_up() == (0, "")
    assert stat.S_IMODE(mongod.key.stat().st_mode) == 0o400
    key = mongod.key.read_text()
    assert mongod.set_up() == (0, "")
    assert mongod.stop() == 0
    mongod.start()
    assert mongod.set_up() == (0, "")
    assert mongod.key.read_text() == key
    assert mongod.answers(PASSWORD)


def test_a_key_that_was_cut_short_is_made_anew() -> None:
    # Not below tmp_path, which others than its owner may not enter; and root might write to any file.
    with tempfile.TemporaryDirectory() as place, (DEPLOY / "mongod.sh").open() as script:
        directory = Path(place)
        key, cut_short, mongod = directory / "keyfile", directory / "keyfile.new", directory / "mongod"
        cut_short.write_text("cut sh")
        cut_short.chmod(0o400)
        mongod.write_text("#!/bin/sh\n")
        mongod.chmod(0o755)
        user = 65534 if os.getuid() == 0 else os.getuid()
        for path in (directory, cut_short):
            os.chown(path, user, -1)
        done = subprocess.run(
            ["bash", "-s", "--", directory, key],
            stdin=script,
            env={"PATH": f"{directory}:{os.environ['PATH']}"},
            user=user,
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert len(key.read_text()) == 684
        assert not cut_short.exists()


def test_nobody_gets_in_without_a_password_and_the_account_has_its_own_database_alone(mongod: Mongod) -> None:
    assert mongod.set_up() == (0, "")
    with MongoClient[dict[str, Any]]("127.0.0.1", mongod.port, directConnection=True) as anybody:
        with pytest.raises(OperationFailure) as refused:
            anybody["roundhouse"].list_collection_names()
        assert refused.value.code == 13
    with MongoClient[dict[str, Any]](mongod.uri()) as account:
        with pytest.raises(OperationFailure) as refused:
            account["elsewhere"]["things"].insert_one({})
        assert refused.value.code == 13


def test_another_password_replaces_that_of_the_account_and_a_wrong_one_of_root_is_named(mongod: Mongod) -> None:
    assert mongod.set_up() == (0, "")
    assert mongod.set_up(password="another") == (0, "")
    assert mongod.answers("another")
    assert not mongod.answers(PASSWORD)
    status, said = mongod.set_up(root_password="wrong")
    assert status == 1
    assert said == (
        "replica_set.py: MONGODB_ROOT_PASSWORD is not the password with which these data were made; give that one.\n"
    )
    assert mongod.answers("another")


def test_a_run_that_was_cut_short_after_any_step_is_finished_by_the_next(mongod: Mongod) -> None:
    # As if killed after the first step: initiated, no account.
    config = {"_id": "roundhouse", "members": [{"_id": 0, "host": mongod.member}]}
    with MongoClient[dict[str, Any]]("127.0.0.1", mongod.port, directConnection=True) as first:
        first.admin.command("replSetInitiate", config)
    assert mongod.set_up() == (0, "")
    # As if killed before the last one: root is there, the account is not.
    with MongoClient[dict[str, Any]](
        "127.0.0.1", mongod.port, directConnection=True, username="root", password=ROOT_PASSWORD
    ) as root:
        root["roundhouse"].command("dropUser", "roundhouse")
    assert mongod.set_up() == (0, "")
    assert mongod.answers(PASSWORD)


def test_a_missing_variable_is_named(mongod: Mongod) -> None:
    done = subprocess.run(
        [sys.executable, DEPLOY / "replica_set.py"],
        env={"MONGODB_MEMBER": "h:1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "replica_set.py: set MONGODB_ROOT_PASSWORD.\n")


def test_the_accounts_rights_are_all_that_a_gateway_and_a_worker_need(mongod: Mongod, tmp_path: Path) -> None:
    assert mongod.set_up() == (0, "")
    with System(tmp_path, mongod.uri(), "roundhouse") as system:
        system.gateway()
        system.start("worker")
        system.sign_in()
        assert system.ended(system.chat())["status"] == "completed"
    with MongoClient[dict[str, Any]](mongod.uri()) as account:
        # What a changed history.retention does, for which readWrite is not enough.
        (index,) = [it for it in account["roundhouse"]["jobs"].list_indexes() if "expireAfterSeconds" in it]
        account["roundhouse"].command(
            "collMod", "jobs", index={"name": index["name"], "expireAfterSeconds": index["expireAfterSeconds"] + 60}
        )

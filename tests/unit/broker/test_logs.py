"""What is logged of the driver's errors."""

import logging
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import BulkWriteError, ServerSelectionTimeoutError

from broker.logs import shorten
from tests.ports import free_port


def test_of_a_server_that_is_away_one_short_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    uri = f"mongodb://127.0.0.1:{port}"
    with (
        MongoClient[dict[str, object]](uri, serverSelectionTimeoutMS=200) as client,
        pytest.raises(ServerSelectionTimeoutError) as failure,
    ):
        client.admin.command("ping")
    caplog.handler.addFilter(shorten)
    logging.getLogger("broker.anything").warning("waiting for the %s: %s", "database", failure.value)
    assert caplog.messages == [f"waiting for the database: 127.0.0.1:{port}: [Errno 111] Connection refused"]


FULL = {"code": 14031, "errmsg": "available disk space of 1 bytes is less than required minimum"}
UNSURE = {"code": 64, "errmsg": "waiting for replication timed out"}


@pytest.mark.parametrize(
    ("details", "cause"),
    [
        ({"writeErrors": [{"index": 0, **FULL}], "writeConcernErrors": []}, FULL["errmsg"]),
        ({"writeErrors": [], "writeConcernErrors": [UNSURE]}, UNSURE["errmsg"]),
    ],
)
def test_of_many_writes_the_first_cause_is_logged(
    caplog: pytest.LogCaptureFixture, details: dict[str, Any], cause: str
) -> None:
    caplog.handler.addFilter(shorten)
    logging.getLogger("broker.anything").warning("waiting for the database: %s", BulkWriteError(details))
    assert caplog.messages == [f"waiting for the database: {cause}"]

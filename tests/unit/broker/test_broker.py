"""The background work of a process's broker."""

import logging
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.broker import Broker
from config import load_settings
from config.errors import ConfigError
from tests.conditions import eventually

CONFIG = "models: {tesseract: {task: ocr, engine: tesseract}}\n"


def broker_of(home: Path, uri: str, database: str) -> Broker:
    (home / "config.yaml").write_text(CONFIG)
    environ = {"ROUNDHOUSE_HOME": str(home), "ROUNDHOUSE__MONGODB__DATABASE": database, "MONGODB_URI": uri}
    return Broker(load_settings(home / "config.yaml", environ), uri)


def failures(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_preparation_that_fails_is_told_with_its_cause(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    async def prepare() -> None:
        raise ConfigError("this will not do")

    async def told() -> bool:
        return bool(failures(caplog))

    broker = broker_of(tmp_path, mongod_uri, database.name)
    broker.start(prepare)
    try:
        await eventually(told)
    finally:
        await broker.close()
    (failure,) = failures(caplog)
    assert failure.exc_info is not None
    assert str(failure.exc_info[1]) == "this will not do"


async def test_background_work_that_is_ended_is_no_failure(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    broker = broker_of(tmp_path, mongod_uri, database.name)
    broker.start()
    await broker.ready.wait()
    await broker.close()
    assert not failures(caplog)

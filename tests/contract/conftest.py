from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from config import Settings
from tests.deployments import Gateway, gateway_on, make_settings, patient_config, worker_on
from tests.system import System
from worker.worker import Worker


@pytest.fixture
def settings(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Settings:
    return make_settings(tmp_path, mongod_uri, database.name, patient_config())


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    async with gateway_on(settings) as gateway:
        yield gateway


@pytest.fixture
async def worker(settings: Settings, gateway: Gateway) -> AsyncIterator[Worker]:
    async with worker_on(settings) as worker:
        yield worker


@pytest.fixture
def system(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Iterator[System]:
    """Real processes."""
    with System(tmp_path, mongod_uri, database.name) as system:
        yield system
